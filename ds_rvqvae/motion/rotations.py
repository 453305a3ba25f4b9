"""Rotations as matrices and in 6D, and motion at another frame rate.

6D is the first two rows of the rotation matrix, row-major (Zhou et al., "On the Continuity of Rotation
Representations in Neural Networks", 2019; pytorch3d's `matrix_to_rotation_6d`).
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", bound=np.floating[Any])
"""float32 or float64; the result has the type of the input."""
DECIMATION_TOLERANCE = 1e-3
"""A rate within this relative distance of an integer multiple of the target counts as that multiple: 29.97 as 30."""
MOST_FRAMES_OF_ONE = 100
"""The most frames made from one frame: a rate further below the target must be an error in the file."""
_BLOCK = 1024
"""Frames resampled at a time (of the source or the target, whichever has more); this bounds the copies in float64."""


def axis_angle_to_matrix(axis_angle: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Converts axis times angle in radians `[..., 3]` to matrices `[..., 3, 3]`, float64."""
    from scipy.spatial.transform import Rotation  # imported late: it would be a fifth of the launcher's start time

    matrices: NDArray[np.float64] = Rotation.from_rotvec(axis_angle.reshape(-1, 3)).as_matrix()
    return matrices.reshape(*axis_angle.shape[:-1], 3, 3)


def matrix_to_axis_angle(matrices: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Converts rotation matrices `[..., 3, 3]` to axis times angle in radians `[..., 3]`, angles from 0 to pi."""
    from scipy.spatial.transform import Rotation

    axis_angle: NDArray[np.float64] = Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_rotvec()
    return axis_angle.reshape(*matrices.shape[:-2], 3)


def matrix_to_rotation_6d(matrices: NDArray[Float]) -> NDArray[Float]:
    """Converts matrices `[..., 3, 3]` to 6D `[..., 6]`."""
    return matrices[..., :2, :].reshape(*matrices.shape[:-2], 6)


def rotation_6d_to_matrix(rotation_6d: NDArray[Float]) -> NDArray[Float]:
    """Converts 6D `[..., 6]` to matrices `[..., 3, 3]` by Gram-Schmidt; any two linearly independent rows will do."""
    rows = _orthonormal_rows(rotation_6d.reshape(-1, 6))
    return np.ascontiguousarray(rows.transpose(2, 1, 0)).reshape(*rotation_6d.shape[:-1], 3, 3)


def decimation(source_fps: float, target_fps: float) -> int | None:
    """Returns n if every n-th frame of the source is kept (1: all), or None if frames must be interpolated.

    Raises:
        ValueError: the rates are so far apart that one of them must be wrong.
    """
    ratio = source_fps / target_fps
    if not 1 / MOST_FRAMES_OF_ONE <= ratio < 1e9:
        raise ValueError(
            f"more than {MOST_FRAMES_OF_ONE} frames would be made from one" if ratio < 1 else "too far apart"
        )
    step = round(ratio)
    return step if step >= 1 and abs(ratio - step) <= step * DECIMATION_TOLERANCE * (1 + 1e-9) else None


def same_rate(source_fps: float, fps: float) -> bool:
    """Returns whether `resample` keeps every frame: 29.97 counts as 30, also after rounding."""
    return abs(source_fps / fps - 1) <= DECIMATION_TOLERANCE * (1 + 1e-9)


def resampled_length(frames: int, source_fps: float, target_fps: float) -> int:
    """Returns how many frames `resample` makes from `frames`: those between the times of the first and the last."""
    step = decimation(source_fps, target_fps)
    if step is not None or not frames:
        return -(-frames // (step or 1))
    return int((frames - 1) / (source_fps / target_fps) * (1 + 1e-12) + 1e-9) + 1


def resample(
    motion: NDArray[Any], rotation_columns: NDArray[np.int64], source_fps: float, target_fps: float
) -> NDArray[Any]:
    """Resamples motion to another frame rate: rotations along the sphere, every other column linearly.

    A source rate within 0.1 % of an integer multiple of the target is decimated: the frames kept are not changed.

    Args:
        motion: `[frames, columns]`.
        rotation_columns: int `[rotations, 6]`, the columns of each 6D rotation.

    Returns:
        `[resampled_length(frames, …), columns]`, in motion's own dtype (float32 if integers are interpolated). A
        decimated result is a view of `motion`.

    Raises:
        ValueError: the two rows of a 6D rotation are not linearly independent, or the rate is impossible.
    """
    step = decimation(source_fps, target_fps)
    if step is not None:
        return motion[::step]
    ratio = source_fps / target_fps
    dtype = motion.dtype if motion.dtype.kind == "f" else np.dtype(np.float32)
    resampled = np.empty((resampled_length(len(motion), source_fps, target_fps), motion.shape[1]), dtype)
    block = max(int(_BLOCK / max(ratio, 1)), 1)
    for start in range(0, len(resampled), block):
        stop = min(start + block, len(resampled))
        times = np.arange(start, stop, dtype=np.float64) * ratio
        _interpolate(motion, rotation_columns, times, resampled[start:stop])
    return resampled


def _interpolate(
    motion: NDArray[Any], rotation_columns: NDArray[np.int64], times: NDArray[np.float64], out: NDArray[Any]
) -> None:
    """Writes motion at `times` (rising, counted in frames) to `out` `[times, columns]`."""
    last = len(motion) - 1
    before = np.minimum(times.astype(np.int64), max(last - 1, 0))
    share = np.clip(times - before, 0, 1)[:, None]  # rounding may put the last time past the last frame
    first = before[0]
    frames = motion[first : min(before[-1] + 1, last) + 1].astype(np.float64)
    before -= first
    after = np.minimum(before + 1, len(frames) - 1)
    out[:] = frames[before] * (1 - share) + frames[after] * share
    if rotation_columns.size:
        rows = _orthonormal_rows(frames[:, rotation_columns])
        _check_planes(rows, first)
        out[:, rotation_columns] = _slerp(rows[:, :, before], rows[:, :, after], share)


def _orthonormal_rows(rotation_6d: NDArray[Float]) -> NDArray[Float]:
    """Returns the three rows of the matrices of 6D `[..., 6]`, as floats `[axis, row, ...]`, by Gram-Schmidt.

    The axis comes first so that each step of the arithmetic works on full arrays.
    """
    dtype = rotation_6d.dtype if rotation_6d.dtype.kind == "f" else np.dtype(np.float64)
    rows = np.empty((3, 3, *rotation_6d.shape[:-1]), dtype)
    rows[:, :2] = np.moveaxis(rotation_6d.reshape(*rotation_6d.shape[:-1], 2, 3), (-1, -2), (0, 1))
    first, second, third = rows[:, 0], rows[:, 1], rows[:, 2]
    first /= np.maximum(np.sqrt(_dot(first, first)), 1e-12)
    second -= _dot(first, second) * first
    second /= np.maximum(np.sqrt(_dot(second, second)), 1e-12)
    third[:] = _cross(first, second)
    return rows


def _check_planes(rows: NDArray[np.floating[Any]], first_frame: int) -> None:
    """Raises ValueError if rows that `_orthonormal_rows` made from `[frames, rotations, 6]` are not a rotation."""
    third = rows[:, 2]
    flat = np.argwhere(~(_dot(third, third) > 0.9))  # NaN counts too
    if len(flat):
        frame, rotation = flat[0]
        raise ValueError(f"the 6D columns of rotation {rotation} span no plane in frame {first_frame + frame}")


def _slerp(start: NDArray[np.float64], stop: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns 6D rotations `[frames, rotations, 6]` at the fraction `share` `[frames, 1]` of the shortest arc.

    `start` and `stop` are orthonormal rows. Each row r of `start` is turned by Rodrigues' formula,
    r + f (w x r) + g (w x (w x r)). Here w is the axis times the sine of the angle between `start` and `stop`, which is
    half the sum of the cross products of their rows.
    """
    zero = np.zeros(())
    axis = sum((_cross(start[:, row], stop[:, row]) for row in range(3)), zero) / 2
    sine = np.sqrt(_dot(axis, axis))
    cosine = (sum((_dot(start[:, row], stop[:, row]) for row in range(3)), zero) - 1) / 2
    angle = np.arctan2(sine, cosine)
    small = sine < 1e-6
    sine[small] = 1
    along = np.where(small, share, np.sin(share * angle) / sine)
    across = np.where(small, share**2 / 2, 2 * (np.sin(share * angle / 2) / sine) ** 2)
    between = np.empty((*start.shape[2:], 6))
    for row in range(2):
        once = _cross(axis, start[:, row])
        turned = start[:, row] + along * once + across * _cross(axis, once)
        between[..., 3 * row : 3 * row + 3] = np.moveaxis(turned, 0, -1)
    opposite = small & (cosine < 0)
    if opposite.any():  # at half a turn, the sine does not give the axis
        between[opposite] = _half_turns(start[:, :, opposite], stop[:, :, opposite], (share + 0 * sine)[opposite])
    return between


def _half_turns(
    start: NDArray[np.float64], stop: NDArray[np.float64], share: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Does the work of `_slerp` with scipy's rotations, for rows `[3, 3, rotations]` and `share` `[rotations]`."""
    from scipy.spatial.transform import Rotation

    first = Rotation.from_matrix(np.moveaxis(start, -1, 0).swapaxes(1, 2))
    way = (first.inv() * Rotation.from_matrix(np.moveaxis(stop, -1, 0).swapaxes(1, 2))).as_rotvec()
    matrices: NDArray[np.float64] = (first * Rotation.from_rotvec(way * share[:, None])).as_matrix()
    return matrix_to_rotation_6d(matrices)


def _dot(left: NDArray[Float], right: NDArray[Float]) -> NDArray[Float]:
    """Returns dot products `[…]` of vectors `[3, …]`."""
    products: NDArray[Float] = left[0] * right[0] + left[1] * right[1] + left[2] * right[2]
    return products


def _cross(left: NDArray[Float], right: NDArray[Float]) -> NDArray[Float]:
    """Returns cross products of vectors `[3, …]`; np.cross is several times slower."""
    product = np.empty_like(left)
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        np.multiply(left[one], right[two], out=product[axis])
        product[axis] -= left[two] * right[one]
    return product


def translation_features(positions: NDArray[Float]) -> NDArray[Float]:
    """Converts root positions in metres `[frames, 3]` to x velocity, y height and z velocity.

    Velocities are in metres per frame; those of the first frame are 0.
    """
    features = positions.copy()
    features[1:, [0, 2]] = np.diff(positions[:, [0, 2]], axis=0)
    features[:1, [0, 2]] = 0
    return features


def translation_positions(
    features: NDArray[np.floating[Any]], start: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64]:
    """Inverts `translation_features`: returns root positions in metres `[frames, 3]`; `start` is the first x and z."""
    positions = features.astype(np.float64)
    positions[:, [0, 2]] = np.cumsum(positions[:, [0, 2]], axis=0) - positions[:1, [0, 2]] + start
    return positions
