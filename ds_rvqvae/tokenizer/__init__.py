"""The trained tokenizer: export, load, encode, decode and score. Does not import DeepSpeed."""
