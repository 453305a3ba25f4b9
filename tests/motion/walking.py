"""Legs that walk, as normalised columns."""

import numpy as np
import torch

from ds_rvqvae.motion.layout import BODY_PART_CHANNELS, select_columns, smplx_layout


def legs():
    """Returns layout `lower_trans`, mean and std, and 80 frames of legs that turn a little over feet often at rest."""
    _, layout = select_columns(smplx_layout(), "lower_trans")
    rng = np.random.default_rng(0)
    rest = np.tile([1, 0, 0, 0, 1, 0], len(BODY_PART_CHANNELS["lower_trans"]) - 1)
    mean = torch.from_numpy(np.append(rest, [0, 0.95, 0])).float()
    std = torch.full((57,), 0.02)
    std[-3:] = torch.tensor([0.002, 0.01, 0.002])
    motion = torch.from_numpy(np.cumsum(rng.normal(size=(80, 57)) * 0.1, axis=0)).float()
    return layout, mean, std, motion
