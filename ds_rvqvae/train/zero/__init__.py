"""A step in few operations: flat weights, gradients by buckets, ZeRO-2's update, recomputation in one call."""
