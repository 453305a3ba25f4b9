"""Rotations on the device: what losses, scores and pictures need of 6D rotations."""

import torch
from torch import Tensor
from torch.nn import functional


def matrices_from_6d(rotation_6d: Tensor) -> Tensor:
    """Rotation matrices `[..., 3, 3]` from their first two rows `[..., 6]`, made orthonormal by Gram-Schmidt.

    Source: Zhou et al. 2019, "On the continuity of rotation representations in neural networks".
    """
    first, second = rotation_6d[..., :3], rotation_6d[..., 3:]
    x = functional.normalize(first, dim=-1)
    y = functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-2)


def angle_between(first_6d: Tensor, second_6d: Tensor) -> Tensor:
    """Geodesic angle `[...]` in degrees between rotations `[..., 6]`.

    By the chord, |A - B| = 2 sqrt(2) sin(angle / 2), which unlike the arc cosine of the trace keeps its digits at small
    angles.
    """
    chord = torch.linalg.matrix_norm(matrices_from_6d(first_6d) - matrices_from_6d(second_6d))
    return torch.rad2deg(2.0 * torch.asin((chord / 8.0**0.5).clamp(max=1.0)))
