"""Joint positions: the reader and the writer of `[T, J, 3]` arrays."""
