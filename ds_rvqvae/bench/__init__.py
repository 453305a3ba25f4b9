"""Measures training steps: `ds-rvqvae bench`."""
