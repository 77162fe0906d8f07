"""Networks. A network names its own sparse layers."""
