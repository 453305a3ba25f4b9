"""Motion files of one clip each: read, and written from features."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.writing import (
    open_motion_file,
    read_beat2_source,
    rest_source,
    write_beat2,
    write_bvh,
    write_matrix,
)
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import Clip, ClipError, Take, UnfitError, check_finite
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.motion.rates import at_rate
from ds_rvqvae.motion.rotations import resampled_length

Rate = float | Literal["source"]
"""Frames a second, or as many as the source has."""
SUFFIXES = (".npz", ".bvh", ".npy")
"""Of files that are written."""


class Timing(NamedTuple):
    """How long a source is."""

    fps: float
    frames: int


def read_clip(file: Path, config: DataConfig) -> Clip:
    """The one clip of a file, at `config`'s frame rate; raises UserError, naming the file."""
    try:
        return _reader_and_take(file, config)[0]
    except ClipError as error:
        raise UserError(f"{file}: {error}") from None


def timing_of(file: Path, config: DataConfig) -> Timing:
    """A file's own frame rate and frames; raises ClipError where it cannot be read, or holds several clips."""
    take = _reader_and_take(file, config)[1]
    return Timing(take.fps, len(take.motion))


def _reader_and_take(file: Path, config: DataConfig) -> tuple[Clip, Take]:
    reader = open_motion_file(file, config)
    names = reader.clip_names()
    if len(names) != 1:
        raise ClipError(f"holds {len(names)} clips; ds-rvqvae encode takes several")
    take = reader.take(names[0])
    check_finite(take.motion)
    clip = reader.clip(take, names[0], 0, len(take.motion))
    check_finite(clip.motion)
    return clip, take


def retimed(
    motion: NDArray[np.float32], layout: Layout, fps: float, rate: Rate, source: Timing | None
) -> tuple[NDArray[np.float32], float]:
    """Motion `[T, C]` at another frame rate, as long as its source, and that rate.

    Args:
        fps: frames a second of `motion`.
        source: of the clip that it is a reconstruction of; without it `rate` is a number.

    Raises:
        ClipError: motion that cannot be resampled, or is of another length than its source.
    """
    if source is None:
        if rate == "source":
            raise ClipError("nothing says its source's frame rate")
        target, frames = rate, None
    else:
        target = source.fps if rate == "source" else rate
        frames = resampled_length(source.frames, source.fps, target)
    try:
        return at_rate(motion, layout, fps, target, frames), target
    except ValueError as error:
        raise UnfitError(f"cannot be written at {target:g} frames a second: {error}") from None


def write_clip(
    file: Path,
    motion: NDArray[np.float32],
    layout: Layout,
    config: DataConfig,
    source: Path | None = None,
    rate: Rate | None = None,
) -> None:
    """Writes features as a motion file, whole or not at all.

    Args:
        file: `.npy`, a matrix of all columns of `motion`; `.bvh`, such a file; `.npz`, one of BEAT2.
        motion: `[T, C]` at `config`'s frame rate.
        layout: of the columns that count; of the others BVH and BEAT2 files have what `source` has.
        config: how `source` is read.
        rate: at which the file is written; `config`'s by default.

    Raises:
        UserError: another suffix, a source that is missing where it is needed, cannot be read or is of another length,
            or columns that the file has no place for.
    """
    suffix = file.suffix.lower()
    try:
        if suffix not in SUFFIXES:
            raise ClipError(f"motion is written as {', '.join(SUFFIXES)}, by the file's name")
        if suffix == ".bvh" and source is None:
            raise ClipError("a BVH file takes its hierarchy from a source; name one")
        fps = config.fps
        if rate is not None:
            timing = None if source is None else timing_of(source, config)
            motion, fps = retimed(motion, layout, fps, rate, timing)
        if suffix == ".npy":
            write_matrix(file, motion)
        elif suffix == ".bvh" and source is not None:
            write_bvh(file, motion, layout, source, config.model_copy(update={"fps": fps}))
        else:
            rest = rest_source(len(motion), fps) if source is None else read_beat2_source(source, config)
            write_beat2(file, motion, layout, fps, rest)
    except ClipError as error:
        raise UserError(f"{source or file}: {error}") from None
