"""Many clips in one npz: `motion [frames, columns]`, `clip_start`, `clip_name`, `fps`, perhaps `split` and `layout`."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.base import (
    Reader,
    load_npz,
    matrix,
    missing_key,
    npz_headers,
    npz_keys,
    refuse_speakers,
    said_rate,
)
from ds_rvqvae.data.formats.features import CLIP_START, FPS, MOTION, check_rate, kept_rate
from ds_rvqvae.data.formats.npz import FPS_KEYS, frame_rate, other_rate, rate_of
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import Layout, feature_layout, layout_from_json
from ds_rvqvae.motion.rotations import same_rate, translation_positions


class PackedReader(Reader):
    """Reader of one packed npz. All of it is read into memory at the first clip: an npz cannot be memory-mapped.

    Motion is resampled to `rvqvae.data.fps` if `layout` tells the meaning of all columns; else it keeps its rate.
    """

    format = "packed npz"
    key = "packed"
    parallel = False
    certainty = 2

    def __init__(self, path: Path, config: DataConfig) -> None:
        super().__init__(path, config)
        refuse_speakers(config, path)
        self._fps = config.fps
        try:
            self._source_fps, layout = _head(path, config)
        except ClipError as error:
            raise UserError(f"{path}: {error}") from None
        if config.source_fps is not None:
            self.notes += other_rate(said_rate(path), config.source_fps)
        if same_rate(self._source_fps, config.fps) or all(part.kind != "feature" for part in layout):
            return
        if config.reading_version == 1:
            self.notes += (
                f"read as versions up to 0.2 did: features are resampled from {self._source_fps:g} to {config.fps:g} "
                "fps; prepare again with rvqvae.data.reading_version 2, which does not resample them",
            )
        else:
            self._fps = self._source_fps
            self.notes += (kept_rate(f"the file's own {self._fps:g} fps is kept", config),)

    @property
    def fps(self) -> float:
        return self._fps

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.is_file() and path.suffix == ".npz" and {MOTION, CLIP_START} <= set(npz_keys(path))

    def sources(self) -> list[Path]:
        return [self.path]

    def clip_names(self) -> list[str]:
        return list(self._content.names)

    def file_of(self, name: str) -> str:
        return f"{self.path.name}: {name}"

    def take(self, name: str) -> Take:
        content = self._content
        index = content.place_of[name]
        motion = content.motion[content.starts[index] : content.starts[index + 1]]
        roots = [part for part in content.layout if part.kind == "translation" and part.width == 3]
        is_resampled = bool(roots) and self.config.reading_version > 1 and not same_rate(content.fps, self.fps)
        if is_resampled:  # velocities are metres per frame, and the frames will have another length
            motion = np.array(motion, np.result_type(motion, np.float32))
            for part in roots:
                motion[:, part.start : part.stop] = translation_positions(motion[:, part.start : part.stop])
        return Take(name, motion, content.fps, content.layout, self.split_of(name), has_positions=is_resampled)

    def split_of(self, name: str) -> str | None:
        """Returns the split that the file gives for a clip."""
        return self._content.split[self._content.place_of[name]] if self._content.split else None

    def weight(self, name: str) -> int:
        return self.path.stat().st_size // len(self._content.names)

    @cached_property
    def _content(self) -> "_Content":
        try:
            return _read(self.path, self._source_fps)
        except ClipError as error:
            raise UserError(f"{self.path}: {error}") from None


def _head(path: Path, config: DataConfig) -> tuple[float, Layout]:
    """Reads the frame rate and the layout of a file; raises ClipError."""
    arrays = load_npz(path, (), (*FPS_KEYS, "layout"))
    shape = npz_headers(path)[MOTION].shape
    if len(shape) != 2:
        raise ClipError(f"{MOTION} has shape {list(shape)}, not [frames, features]")
    layout = _layout(arrays, shape[1])
    if config.reading_version == 1:
        return frame_rate(load_npz(path, (FPS,))[FPS], FPS), layout
    rate = config.source_fps or rate_of(arrays)
    if rate is None:
        raise ClipError(f"{missing_key(npz_keys(path), FPS)}; {to_say('source_fps', 'N')} sets the frame rate")
    check_rate(rate)
    return rate, layout


class _Content(NamedTuple):
    motion: NDArray[Any]
    starts: NDArray[np.int64]
    names: list[str]
    split: list[str] | None
    layout: Layout
    fps: float
    place_of: dict[str, int]
    """The first index of each name in `names`."""


def _read(path: Path, fps: float) -> _Content:
    """Reads a packed npz; raises ClipError."""
    free = psutil.virtual_memory().available  # users' own data may be large, but must fit into memory
    arrays = load_npz(path, (MOTION, CLIP_START, "clip_name"), ("split", "layout"), free)
    motion = matrix(arrays[MOTION], MOTION)
    names = _strings(arrays, "clip_name")
    split = _strings(arrays, "split") if "split" in arrays else None
    if split is not None and len(split) != len(names):
        raise ClipError(f"split has {len(split)} entries, clip_name {len(names)}")
    place_of = {name: place for place, name in reversed([*enumerate(names)])}
    starts = _checked_starts(arrays[CLIP_START], len(names), len(motion))
    return _Content(motion, starts, names, split, _layout(arrays, motion.shape[1]), fps, place_of)


def _checked_starts(starts: NDArray[Any], clips: int, frames: int) -> NDArray[np.int64]:
    if starts.dtype.kind not in "iu" or starts.shape != (clips + 1,):
        raise ClipError(
            f"clip_start is {starts.dtype} {list(starts.shape)}, not [clips + 1] = [{clips + 1}] row numbers"
        )
    starts = starts.astype(np.int64)
    if (np.diff(starts) < 0).any() or starts[0] < 0 or starts[-1] > frames:
        raise ClipError(f"clip_start does not rise from 0 to the {frames} frames of motion")
    return starts


def _layout(arrays: dict[str, NDArray[Any]], width: int) -> Layout:
    if "layout" not in arrays:
        return feature_layout(width)
    try:
        return layout_from_json(str(arrays["layout"]), width)
    except (ValueError, RecursionError) as error:  # json's own errors are ValueErrors
        raise ClipError(f"layout: {str(error).removeprefix('layout: ')}") from None


def _strings(arrays: dict[str, NDArray[Any]], key: str) -> list[str]:
    if arrays[key].dtype.kind != "U" or arrays[key].ndim != 1:
        raise ClipError(f"{key} holds {arrays[key].dtype} of shape {list(arrays[key].shape)}, not a list of strings")
    strings: list[str] = arrays[key].tolist()
    return strings
