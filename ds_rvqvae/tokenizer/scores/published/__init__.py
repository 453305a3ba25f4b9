"""Published evaluators: nets of other systems whose features papers measure distances in."""
