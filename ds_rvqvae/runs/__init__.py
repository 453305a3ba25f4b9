"""A run on disk: its folder, its checkpoints, how it starts or resumes, and its tokenizer."""
