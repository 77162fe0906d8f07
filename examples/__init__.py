"""User code against the public modules, one file per way to extend them; docs/extending.md explains them."""
