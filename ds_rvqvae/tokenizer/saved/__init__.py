"""The files of a saved tokenizer: which of them belong together, and how they are replaced. Without torch."""
