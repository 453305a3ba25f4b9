"""The step of DeepSpeed's ZeRO-2 optimizer in few operations: flat weights, buckets of gradients, one update."""
