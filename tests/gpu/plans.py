"""Names for tests of plans."""

KEYS = ("parameters", "gradients", "optimizer", "codebooks", "activations", "buckets", "batch", "overhead")
"""The items of a GPU's memory, by their names in a plan."""
