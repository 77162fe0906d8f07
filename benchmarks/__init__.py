"""Speed and memory, always against a baseline timed in the same run."""
