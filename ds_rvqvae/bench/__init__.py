"""Measures the speed of training steps: `ds-rvqvae bench`."""
