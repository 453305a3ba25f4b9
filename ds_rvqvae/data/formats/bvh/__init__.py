"""BVH files: the file format, the motion in it, the body that it moves, and its unit of length."""
