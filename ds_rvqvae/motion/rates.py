"""Features at another frame rate: velocities are resampled as positions, and then converted back."""

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.motion.layout import Layout, rotation_columns
from ds_rvqvae.motion.rotations import resample, same_rate, translation_features, translation_positions


def at_rate(
    motion: NDArray[np.float32], layout: Layout, fps: float, target_fps: float, frames: int | None = None
) -> NDArray[np.float32]:
    """Resamples features `[T, C]` to another frame rate: rotations along the sphere, all other columns linearly.

    Args:
        layout: of the columns; `translation` is converted to positions and back.
        frames: the number of frames wanted. Where rounding gave another number, the last frame is repeated or the
            surplus is cut.

    Returns:
        float32 `[frames, C]`.

    Raises:
        ValueError: columns of unknown meaning would have to be resampled, the rate is impossible, or `frames` differs
            by more than rounding explains.
    """
    moved = motion
    ways = [slice(part.start, part.stop) for part in layout if part.kind == "translation" and part.width == 3]
    if not same_rate(fps, target_fps):
        unknown = next((part for part in layout if part.kind == "feature"), None)
        if unknown is not None:
            raise ValueError(f"{unknown.name}: columns of unknown meaning are never resampled")
        moved = motion.copy()
        for columns in ways:
            moved[:, columns] = translation_positions(motion[:, columns])
        moved = resample(moved, rotation_columns(layout), fps, target_fps).copy()
        for columns in ways:
            moved[:, columns] = translation_features(moved[:, columns])
    count = len(moved)
    if frames is None or frames == count:
        return moved
    if abs(frames - count) > max(target_fps / fps, 1) + 1:
        raise ValueError(f"{count} frames at {target_fps:g} fps, but the source has {frames}")
    held: NDArray[np.float32] = moved[np.minimum(np.arange(frames), count - 1)]
    for columns in ways:
        held[count:, [columns.start, columns.start + 2]] = 0
    return held
