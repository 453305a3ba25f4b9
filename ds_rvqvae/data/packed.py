"""A data set packed into one npz.

`motion [frames, features]`, `clip_start [clips + 1]` (rows where clips start and the last one ends), `clip_name
[clips]`, `fps`; optionally `split [clips]` and `layout`, JSON text: a list of `name`, `kind` and `columns` [from, to).
"""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from ds_rvqvae.data.clips import ClipError, Reader, Take, frame_rate, load_npz, matrix, npz_keys, refuse_speakers
from ds_rvqvae.data.layout import Layout, feature_layout, layout_from_json
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import DataConfig


class PackedReader(Reader):
    """One packed npz. It is read whole, once its clips are asked for: an npz cannot be memory-mapped."""

    format = "packed npz"
    key = "packed"
    parallel = False
    certain = True

    def __init__(self, path: Path, config: DataConfig):
        super().__init__(path, config)
        refuse_speakers(config, path)

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.is_file() and path.suffix == ".npz" and {"motion", "clip_start"} <= set(npz_keys(path))

    def sources(self) -> list[Path]:
        return [self.path]

    def clip_names(self) -> list[str]:
        return list(self._content.names)

    def file_of(self, name: str) -> str:
        return f"{self.path.name}: {name}"

    def take(self, name: str) -> Take:
        content = self._content
        index = content.names.index(name)
        motion = content.motion[content.starts[index] : content.starts[index + 1]]
        return Take(name, motion, content.fps, content.layout, content.split[index] if content.split else None)

    def weight(self, name: str) -> int:
        return self.path.stat().st_size // len(self._content.names)

    @cached_property
    def _content(self) -> "_Content":
        try:
            return _read(self.path)
        except ClipError as error:
            raise UserError(f"{self.path}: {error}") from None


class _Content(NamedTuple):
    motion: np.ndarray
    starts: np.ndarray
    names: list[str]
    split: list[str] | None
    layout: Layout
    fps: float


def _read(path: Path) -> _Content:
    """Raises ClipError."""
    free = psutil.virtual_memory().available  # data of one's own may be large, but not larger than what holds them
    arrays = load_npz(path, ("motion", "clip_start", "clip_name", "fps"), ("split", "layout"), free)
    motion = matrix(arrays["motion"], "motion")
    names = _strings(arrays, "clip_name")
    split = _strings(arrays, "split") if "split" in arrays else None
    if split is not None and len(split) != len(names):
        raise ClipError(f"split has {len(split)} entries, clip_name {len(names)}")
    starts = _checked_starts(arrays["clip_start"], len(names), len(motion))
    return _Content(motion, starts, names, split, _layout(arrays, motion.shape[1]), frame_rate(arrays["fps"], "fps"))


def _checked_starts(starts: np.ndarray, clips: int, frames: int) -> np.ndarray:
    if starts.dtype.kind not in "iu" or starts.shape != (clips + 1,):
        raise ClipError(
            f"clip_start is {starts.dtype} {list(starts.shape)}, not [clips + 1] = [{clips + 1}] row numbers"
        )
    starts = starts.astype(np.int64)
    if (np.diff(starts) < 0).any() or starts[0] < 0 or starts[-1] > frames:
        raise ClipError(f"clip_start does not rise from 0 to the {frames} frames of motion")
    return starts


def _layout(arrays: dict[str, np.ndarray], width: int) -> Layout:
    if "layout" not in arrays:
        return feature_layout(width)
    try:
        return layout_from_json(str(arrays["layout"]), width)
    except (ValueError, RecursionError) as error:  # json's own errors are ValueErrors
        raise ClipError(f"layout: {str(error).removeprefix('layout: ')}") from None


def _strings(arrays: dict[str, np.ndarray], key: str) -> list[str]:
    if arrays[key].dtype.kind != "U" or arrays[key].ndim != 1:
        raise ClipError(f"{key} holds {arrays[key].dtype} of shape {list(arrays[key].shape)}, not a list of strings")
    return arrays[key].tolist()
