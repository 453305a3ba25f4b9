"""What losses need to know of a run's columns, without torch, so that it is checked before a GPU starts."""

import fnmatch

import numpy as np

from ds_rvqvae.data.layout import Layout, rotation_columns
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import LossConfig


def check_losses(config: LossConfig, layout: Layout) -> None:
    """Raises UserError where the columns lack what a loss is about."""
    if config.loss_rotation and not len(rotation_columns(layout)):
        raise UserError("rvqvae.loss.loss_rotation: the data have no columns known to be 6D rotations; set it to 0")
    column_weights(config, layout)


def column_weights(config: LossConfig, layout: Layout) -> np.ndarray | None:
    """`joint_weights` as float32 `[C]` of mean 1, or None where there are none; of several patterns the last counts.

    Raises:
        UserError: a pattern that no name fits, or weights that are all 0.
    """
    if config.joint_weights is None:
        return None
    weights = np.ones(layout[-1].stop, np.float32)
    for pattern, weight in config.joint_weights.items():
        parts = [part for part in layout if fnmatch.fnmatchcase(part.name, pattern)]
        if not parts:
            names = ", ".join(dict.fromkeys(part.name for part in layout))
            raise UserError(f"rvqvae.loss.joint_weights: no joint is called {pattern}; there are {names}")
        for part in parts:
            weights[part.start : part.stop] = weight
    if not weights.any():
        raise UserError("rvqvae.loss.joint_weights: every joint weighs 0")
    return weights / weights.mean()
