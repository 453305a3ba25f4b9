"""Compute the windows per step. With `rvqvae.data.window_sizes` each length has its own number of windows, so that the
frames per step stay equal."""

from typing import NamedTuple

from ds_rvqvae.config.data import DataConfig


class BatchShape(NamedTuple):
    """A batch of windows."""

    windows: int
    window_size: int
    """Frames per window."""

    @property
    def frames(self) -> int:
        return self.windows * self.window_size


def window_sizes(data: DataConfig) -> list[int]:
    """Returns the lengths of training windows, each once, the shortest first."""
    return sorted(set(data.window_sizes or [data.window_size]))


def windows_a_step(data: DataConfig, global_batch: int, parts: int = 1) -> dict[int, int]:
    """Returns the windows per step over all ranks, by their length.

    They have about as many frames as `global_batch` windows of `window_size`; the difference is less than one window.
    So the number does not depend on the number of ranks, except that each micro batch has at least one window.

    Args:
        global_batch: windows per step, counted in windows of `window_size`.
        parts: micro batches per step, over all ranks.
    """
    return {size: max(parts, global_batch * data.window_size // size) for size in window_sizes(data)}


def largest_micro_batch_shape(data: DataConfig, micro_batch: int) -> BatchShape:
    """Returns the micro batch with the most frames, if `micro_batch` windows of `window_size` are configured.

    If the windows of a step cannot be divided evenly into micro batches, these differ by one window; so this is rounded
    up.
    """
    shapes = [BatchShape(-(-micro_batch * data.window_size // size), size) for size in window_sizes(data)]
    return max(shapes, key=lambda shape: shape.frames)


def window_sizes_text(data: DataConfig, micro_batch: int) -> str:
    """Returns `80 windows of 128 frames`; with several lengths, also these."""
    text = f"{micro_batch} windows of {data.window_size} frames"
    if data.window_sizes is None:
        return text
    return f"{text}, or as many frames in windows of {', '.join(map(str, window_sizes(data)))}"
