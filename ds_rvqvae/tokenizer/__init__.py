"""The trained tokenizer: export, load, encode, decode, score, look at. Knows nothing of DeepSpeed."""
