"""What plans in tests are about."""

KEYS = ("parameters", "gradients", "optimizer", "codebooks", "activations", "buckets", "batch", "overhead")
"""The parts of a card's memory, as a plan calls them."""
