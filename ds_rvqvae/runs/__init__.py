"""A run on disk: its folder, checkpoints, how it starts or goes on, and its tokenizer."""
