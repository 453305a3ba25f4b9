"""Scores of tokenizers: errors of motion and of joints, distances of features, and their tables."""
