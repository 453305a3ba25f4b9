"""How many windows a step takes: with `rvqvae.data.window_sizes` a number for each length, of as many frames."""

from typing import NamedTuple

from ds_rvqvae.config.data import DataConfig


class BatchShape(NamedTuple):
    """A batch of windows."""

    windows: int
    window_size: int
    """Frames a window."""

    @property
    def frames(self) -> int:
        return self.windows * self.window_size


def window_sizes(data: DataConfig) -> list[int]:
    """Lengths of training windows, each once, the shortest first."""
    return sorted(set(data.window_sizes or [data.window_size]))


def windows_a_step(data: DataConfig, global_batch: int, parts: int = 1) -> dict[int, int]:
    """Windows that a step takes over all ranks, by their length.

    As many as the frames of `global_batch` windows of `window_size` make up; what is left over is less than one window.
    So the number does not depend on how many ranks share it, except that each part has one window at the least.

    Args:
        global_batch: windows of `window_size` that a step stands for.
        parts: micro batches that make up a step, over all ranks.
    """
    return {size: max(parts, global_batch * data.window_size // size) for size in window_sizes(data)}


def largest_micro_batch_shape(data: DataConfig, micro_batch: int) -> BatchShape:
    """The most frames that one micro batch has, where `micro_batch` windows of `window_size` are asked for.

    The parts of a step differ by one window where it has no multiple of their number, so that this is rounded up.
    """
    shapes = [BatchShape(-(-micro_batch * data.window_size // size), size) for size in window_sizes(data)]
    return max(shapes, key=lambda shape: shape.frames)


def window_sizes_text(data: DataConfig, micro_batch: int) -> str:
    """`80 windows of 128 frames`, or of which lengths they are as many frames."""
    text = f"{micro_batch} windows of {data.window_size} frames"
    if data.window_sizes is None:
        return text
    return f"{text}, or as many frames in windows of {', '.join(map(str, window_sizes(data)))}"
