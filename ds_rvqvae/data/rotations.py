"""Rotations as matrices and as 6D rows, and motion at another frame rate.

6D is the first two rows of the rotation matrix, row-major (Zhou et al., "On the Continuity of Rotation
Representations in Neural Networks", 2019; pytorch3d's `matrix_to_rotation_6d`).
"""

import numpy as np
from scipy.spatial.transform import Rotation

DECIMATION_TOLERANCE = 1e-3
"""A rate this close to a whole multiple of the target, relatively, counts as that multiple: 29.97 is 30."""


def axis_angle_to_matrix(axis_angle: np.ndarray) -> np.ndarray:
    """Axis times angle in radians `[..., 3]` to matrices `[..., 3, 3]`, float64."""
    return Rotation.from_rotvec(axis_angle.reshape(-1, 3)).as_matrix().reshape(*axis_angle.shape[:-1], 3, 3)


def matrix_to_axis_angle(matrices: np.ndarray) -> np.ndarray:
    """Rotation matrices `[..., 3, 3]` to axis times angle in radians `[..., 3]`, angles from 0 to pi."""
    return Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_rotvec().reshape(*matrices.shape[:-2], 3)


def matrix_to_rotation_6d(matrices: np.ndarray) -> np.ndarray:
    """Matrices `[..., 3, 3]` to 6D `[..., 6]`."""
    return matrices[..., :2, :].reshape(*matrices.shape[:-2], 6)


def rotation_6d_to_matrix(rotation_6d: np.ndarray) -> np.ndarray:
    """6D `[..., 6]` to matrices `[..., 3, 3]` by Gram-Schmidt on the rows; any 6D of two independent rows will do."""
    first = _unit(rotation_6d[..., :3])
    second = rotation_6d[..., 3:]
    second = _unit(second - (first * second).sum(-1, keepdims=True) * first)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def resample(motion: np.ndarray, rotation_columns: np.ndarray, source_fps: float, target_fps: float) -> np.ndarray:
    """Motion at another frame rate: rotations along the sphere, every other column linearly.

    A source rate within 0.1 % of a whole multiple of the target is decimated: frames are kept as they are.

    Args:
        motion: `[frames, columns]`.
        rotation_columns: int `[rotations, 6]`, the columns of each 6D rotation.

    Raises:
        ValueError: where six columns that should be a rotation span no plane.
    """
    ratio = source_fps / target_fps
    step = round(ratio)
    if step >= 1 and abs(ratio - step) <= step * DECIMATION_TOLERANCE * (1 + 1e-9):
        return motion[::step]
    last = len(motion) - 1
    times = np.arange(int(last / ratio + 1e-9) + 1) * ratio
    before = np.minimum(times.astype(np.int64), max(last - 1, 0))
    after = np.minimum(before + 1, last)
    share = (times - before)[:, None]
    resampled = motion[before] * (1 - share) + motion[after] * share
    if rotation_columns.size:
        matrices = rotation_6d_to_matrix(motion[:, rotation_columns].astype(np.float64))
        between = matrix_to_rotation_6d(_slerp(matrices[before], matrices[after], share))
        resampled[:, rotation_columns.reshape(-1)] = between.reshape(len(times), -1)
    return resampled.astype(motion.dtype)


def _slerp(start: np.ndarray, stop: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Matrices `[frames, joints, 3, 3]` at `share` `[frames, 1]` of the shortest way from `start` to `stop`."""
    shape = start.shape
    first = Rotation.from_matrix(start.reshape(-1, 3, 3))
    way = (first.inv() * Rotation.from_matrix(stop.reshape(-1, 3, 3))).as_rotvec()
    part = Rotation.from_rotvec(way * np.repeat(share, shape[1], axis=0))
    return (first * part).as_matrix().reshape(shape)
