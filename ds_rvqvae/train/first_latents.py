"""The windows for the first codes: those of the run's first batch, or of as many batches as give enough latents."""

import logging

from torch import Tensor

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.data.order import BatchOrder

logger = logging.getLogger("ds_rvqvae")

_LATENTS_A_CODE = 2
"""Latents per code of a level. With only as many latents as codes, each latent would be a code, and the residuals of
the levels would repeat."""


def first_batches(
    loader: BatchLoader, order: BatchOrder, step: int, config: ModelConfig, rank: int, world_size: int
) -> list[Tensor] | None:
    """A rank's windows for the first codes, `[windows, window_size, C]` each, from the batches from `step` on; None if
    the batch of `step` is enough."""
    steps, latents = count_steps(order, step, config)
    if steps == 1:
        return None
    logger.info("first codes: %d per level from %d latents, %d batches", config.nb_code, latents, steps)
    return stretch(loader, order, range(step, step + steps), rank, world_size)


def count_steps(order: BatchOrder, first: int, config: ModelConfig) -> tuple[int, int]:
    """The number of batches, from step `first` on, that the first codes need, and the number of their latents.

    It stops after one epoch, because the next epoch has the same windows.
    """
    windows = sum(sequence.num_windows for sequence in order.sequences.values())
    steps = taken = latents = 0
    while latents < _LATENTS_A_CODE * config.nb_code and taken < windows:
        step = first + steps
        taken += order.batch(step)
        latents += order.batch(step) * (order.window_size(step) // config.code_stride)
        steps += 1
    return steps, latents


def stretch(loader: BatchLoader, order: BatchOrder, steps: range, rank: int, world_size: int) -> list[Tensor]:
    """A rank's windows of several steps; concatenated in rank order they are in the order that one rank would use."""
    total = sum(map(order.batch, steps))
    first, stop = rank * total // world_size, (rank + 1) * total // world_size
    parts, before = [], 0
    for step in steps:
        batch = order.batch(step)
        here = max(first - before, 0), min(stop - before, batch)
        if here[0] < here[1]:
            parts.append(loader.samples(step, *here))
        before += batch
    return parts
