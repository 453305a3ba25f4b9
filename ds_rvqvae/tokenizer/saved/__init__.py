"""The files of a saved tokenizer as files: which belong together, and how they are replaced. Without torch."""
