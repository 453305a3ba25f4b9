"""Motion files that hold one clip each: reads them, and writes them from features."""

import logging
import math
import os
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.writing import BEAT2, WRITERS, open_motion_file
from ds_rvqvae.data.formats.written import Writer, write_matrix
from ds_rvqvae.data.store.figures import lying_note
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import Clip, ClipError, Take, UnfitError, check_finite
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.motion.rates import at_rate
from ds_rvqvae.motion.rotations import resampled_length, same_rate

Rate = float | Literal["source"]
"""Frames per second, or "source" for the source's own frame rate."""
SUFFIXES = tuple(dict.fromkeys((*(writer.suffix for writer in WRITERS.values()), ".npy")))
"""Suffixes of the files that are written."""
_logger = logging.getLogger("ds_rvqvae")


class Timing(NamedTuple):
    """The frame rate and length of a source."""

    fps: float
    frames: int


class WholeClip(NamedTuple):
    """A clip, the `Take` that it is made from, and notes about both."""

    clip: Clip
    take: Take
    notes: tuple[str, ...]


def whole_clip(reader: Reader, name: str) -> WholeClip:
    """Returns a complete clip of an open file; raises ClipError."""
    take = reader.take(name)
    check_finite(take.motion)
    clip = reader.clip(take, name, 0, len(take.motion))
    check_finite(clip.motion)
    lying = lying_note(reader, take)
    return WholeClip(clip, take, (*reader.notes, *take.notes, *((lying,) if lying else ())))


def read_clip(file: Path, config: DataConfig, tell: bool = False, wanted: Layout | None = None) -> Clip:
    """Reads the only clip of a file, at `config`'s frame rate; raises UserError, naming the file.

    Args:
        tell: log the notes about it.
        wanted: as of `open_motion_file`.
    """
    try:
        found = _only_clip(file, config, wanted)
    except ClipError as error:
        raise UserError(f"{file}: {error}") from None
    for note in found.notes if tell else ():
        _logger.warning("%s: %s", file, note)
    return found.clip


def timing_of(file: Path, config: DataConfig) -> Timing:
    """Reads a file's own frame rate and number of frames; raises ClipError if it is unreadable or has several clips."""
    take = _only_clip(file, config).take
    return Timing(take.fps, len(take.motion))


def _only_clip(file: Path, config: DataConfig, wanted: Layout | None = None) -> WholeClip:
    reader = open_motion_file(file, config, wanted)
    names = reader.clip_names()
    if len(names) != 1:
        raise ClipError(f"holds {len(names)} clips; ds-rvqvae encode takes several")
    return whole_clip(reader, names[0])


def check_rate(rate: Any) -> None:
    """Raises UserError if `rate` is not a `Rate`."""
    if rate != "source" and not (isinstance(rate, Real) and 0 < float(rate) < math.inf):
        raise UserError(f"fps is {rate!r}; give a number of frames per second, or 'source'")


def other_rate(source_fps: float, fps: float, back: str = "") -> tuple[str, ...]:
    """Returns a note if a file is written at another frame rate than its source's; `back` is what restores it."""
    if not source_fps or same_rate(source_fps, fps):
        return ()
    back = f"; {back} keeps the source's" if back else ""
    return (f"source at {source_fps:g} fps, written at {fps:g}{back}",)


def retimed(
    motion: NDArray[np.float32], layout: Layout, fps: float, rate: Rate, source: Timing | None
) -> tuple[NDArray[np.float32], float]:
    """Returns motion `[T, C]` at another frame rate, as long as its source, and that rate.

    Args:
        fps: frames per second of `motion`.
        source: of the clip that `motion` reconstructs; without it `rate` must be a number.

    Raises:
        ClipError: motion that cannot be resampled, or whose length differs from its source's.
        UserError: `rate` is not a `Rate`.
    """
    check_rate(rate)
    if source is None:
        if rate == "source":
            raise ClipError("its source's frame rate is not known")
        target, frames = rate, None
    else:
        target, frames = source.fps if rate == "source" else rate, None
    try:
        if source is not None:
            frames = resampled_length(source.frames, source.fps, target)
        return at_rate(motion, layout, fps, target, frames), target
    except ValueError as error:
        raise UnfitError(f"cannot be written at {target:g} fps: {error}") from None


def write_clip(
    file: Path,
    motion: NDArray[np.float32],
    layout: Layout,
    config: DataConfig,
    source: Path | None = None,
    rate: Rate | None = None,
) -> None:
    """Writes features as a motion file, complete or not at all.

    Args:
        file: its suffix says the format: that of `source` if this has the same suffix; else `.npy` for a matrix of all
            columns of `motion`, `.bvh` for BVH, `.npz` for BEAT2.
        motion: `[T, C]` at `config`'s frame rate.
        layout: of the columns that are used; formats other than matrices get all other values from `source`.
        config: how `source` is read.
        rate: frame rate of the file; by default `config`'s.

    Raises:
        UserError: another suffix, a needed source that is missing, a source that is unreadable, has another length or
            is `file` itself, `rate` is not a `Rate`, or the file cannot hold these columns.
        ValueError: motion of several clips.
    """
    suffix, source_fps = file.suffix.lower(), 0.0
    if motion.ndim != 2:
        raise ValueError(f"motion is {motion.shape}; a file holds one clip: give its codes, [codes, levels]")
    if source is not None and os.path.realpath(source) == os.path.realpath(file):
        raise UserError(f"{file} is its source, which is never overwritten; name another file")
    try:
        writer = _writer_for(suffix, source, config)
        if writer is not None and writer.needs_source and source is None:
            raise ClipError(f"{writer.kind} takes its hierarchy from a source; name one")
        fps = config.fps
        timing = timing_of(source, config) if source is not None and (rate is not None or writer is None) else None
        if rate is not None:
            motion, fps = retimed(motion, layout, fps, rate, timing)
        if writer is None:
            write_matrix(file, motion)
            source_fps = 0.0 if timing is None else timing.fps
        else:
            source_fps = writer.write(file, motion, layout, fps, source, config).source_fps
    except ClipError as error:
        raise UserError(f"{source or file}: {error}") from None
    for note in other_rate(source_fps, fps, "fps='source'" if rate is None else ""):
        _logger.warning("%s: %s", file, note)


def _writer_for(suffix: str, source: Path | None, config: DataConfig) -> Writer | None:
    """Returns the writer of a file with this suffix, or None for a matrix; raises ClipError for another suffix."""
    if suffix not in SUFFIXES:
        raise ClipError(f"motion is written as {', '.join(SUFFIXES)}; the file's name decides which")
    if source is not None:
        own = WRITERS.get(open_motion_file(source, config).key)
        if own is not None and own.suffix == suffix:
            return own
    if suffix == WRITERS[BEAT2].suffix:
        return WRITERS[BEAT2]
    return next((writer for writer in WRITERS.values() if writer.suffix == suffix != ".npy"), None)
