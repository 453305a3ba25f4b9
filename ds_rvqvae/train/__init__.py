"""The DeepSpeed engine, the training loop, checkpoints and monitoring."""
