"""A small quantizer for tests, and steps of it."""

import torch

from ds_rvqvae import ResidualQuantizer


def make(levels=3, codes=16, dim=4, vectors=256, seed=0, kind=ResidualQuantizer, **options):
    """Returns a quantizer of a given class, initialised from latents `[4, vectors / 4, dim]`, and those latents."""
    torch.manual_seed(seed)
    quantizer = kind(levels, codes, dim, **options)
    latents = torch.randn(4, vectors // 4, dim)
    quantizer.initialize_codebooks(latents)
    return quantizer, latents


def train(quantizer, latents, steps, start=0):
    """Runs forward passes on the same latents, each followed by a step's update."""
    for step in range(start, start + steps):
        quantizer.set_step(0, step)
        quantizer(latents)
        quantizer.update_codebooks()
