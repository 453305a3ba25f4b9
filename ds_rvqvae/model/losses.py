"""The losses that training minimises: reconstruction, velocity, and others that a profile turns on."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.config.model import LossConfig
from ds_rvqvae.motion.kinematics import matrices_from_6d
from ds_rvqvae.motion.layout import Layout, column_weights, rotation_columns

_DISTANCES = {"l1": functional.l1_loss, "l2": functional.mse_loss, "l1_smooth": functional.smooth_l1_loss}
_SMALLEST_CHORD = 1e-4
"""Its square is added to squared chords: at an error of 0 the geodesic angle has no gradient."""


class Losses(NamedTuple):
    """Scalars in fp32; `loss` is their weighted sum. A loss that the profile does not use is 0."""

    loss: Tensor
    recons: Tensor
    velocity: Tensor
    acceleration: Tensor
    rotation: Tensor
    commit: Tensor


class LossColumns(NamedTuple):
    """Facts about the columns that losses need, on the device."""

    weights: Tensor | None
    """`[C]`, from `joint_weights`."""
    rotations: Tensor
    """int64 `[joints, 6]`."""
    mean: Tensor
    """`[joints, 6]`."""
    std: Tensor
    """`[joints, 6]`."""
    zero: Tensor
    """Scalar 0, fp32: a loss that is not used."""


def loss_columns(
    config: LossConfig, layout: Layout, mean: NDArray[np.float32], std: NDArray[np.float32], device: torch.device
) -> LossColumns:
    """`LossColumns` for the columns of `layout`, normalised by `mean` and `std`, float32 `[C]`.

    Raises:
        UserError: as `column_weights` does.
    """
    rotations = torch.from_numpy(rotation_columns(layout))
    means, stds = (torch.from_numpy(values)[rotations].to(device) for values in (mean, std))
    by_column = column_weights(config, layout)
    weights = None if by_column is None else torch.from_numpy(by_column).to(device)
    return LossColumns(weights, rotations.to(device), means, stds, torch.zeros((), device=device))


def tokenizer_losses(
    reconstruction: Tensor,
    motion: Tensor,
    commit_loss: Tensor,
    config: LossConfig,
    columns: LossColumns | None = None,
) -> Losses:
    """Losses of one micro batch.

    Args:
        reconstruction, motion: `[batch, time, features]`, normalised.
        commit_loss: from the quantizer, a scalar.
        columns: if None, the losses that need them are skipped.

    Velocity and acceleration apply the reconstruction's distance to first and second differences (EMAGE, MoMask).
    """
    weights = None if columns is None else columns.weights
    reconstruction, motion = reconstruction.float(), motion.float()
    acceleration = rotation = commit_loss.new_zeros(()) if columns is None else columns.zero
    recons = _distance(reconstruction, motion, config, weights)
    velocity = _distance(reconstruction.diff(dim=1), motion.diff(dim=1), config, weights)
    loss = torch.add(recons, velocity, alpha=config.loss_vel).add(commit_loss, alpha=config.commit)
    if config.loss_acc:
        acceleration = _distance(reconstruction.diff(n=2, dim=1), motion.diff(n=2, dim=1), config, weights)
        loss = loss.add(acceleration, alpha=config.loss_acc)
    if config.loss_rotation and columns is not None:
        rotation = _rotation_loss(reconstruction, motion, config, columns)
        loss = loss.add(rotation, alpha=config.loss_rotation)
    return Losses(
        loss=loss,
        recons=recons,
        velocity=velocity,
        acceleration=acceleration,
        rotation=rotation,
        commit=commit_loss,
    )


def _distance(found: Tensor, truth: Tensor, config: LossConfig, weights: Tensor | None) -> Tensor:
    distance = _DISTANCES[config.recons_loss]
    if weights is None:
        return distance(found, truth)
    return (distance(found, truth, reduction="none") * weights).mean()


def _rotation_loss(reconstruction: Tensor, motion: Tensor, config: LossConfig, columns: LossColumns) -> Tensor:
    found, truth = (
        matrices_from_6d(values[..., columns.rotations] * columns.std + columns.mean)
        for values in (reconstruction, motion)
    )
    if config.rotation_distance == "matrix":
        return functional.l1_loss(found, truth)
    chord = ((found - truth).square().sum(dim=(-2, -1)) + _SMALLEST_CHORD**2).sqrt()
    return 2.0 * torch.asin((chord / 8.0**0.5).clamp(max=1.0 - 1e-6)).mean()
