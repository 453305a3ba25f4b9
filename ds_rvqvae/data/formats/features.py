"""Feature matrices, one clip a file: folders in the form of HumanML3D and KIT, and plain ones.

Sources: C. Guo et al., "Generating Diverse and Natural 3D Human Motions from Text", CVPR 2022 (HumanML3D); C. Guo et
al., "MoMask: Generative Masked Modeling of 3D Human Motions", CVPR 2024 (the weighting of columns).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import (
    FilesReader,
    Reader,
    files_below,
    frame_rate,
    load_npy,
    load_npz,
    matrix,
    npy_header,
    npz_headers,
    npz_keys,
    refuse_speakers,
)
from ds_rvqvae.data.formats.npz import Header
from ds_rvqvae.data.formats.split_lists import SplitLists
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import Layout, feature_layout, layout_from_json

CLIP_FOLDER = "new_joint_vecs"
STATISTICS = ("Mean.npy", "Std.npy")
MOTION, FPS, CLIP_START = "motion", "fps", "clip_start"
_JOINTS = {263: 22, 251: 21}
"""Of HumanML3D and of KIT, by their columns."""


class FeatureFolderReader(FilesReader):
    """A folder of `.npy` or `.npz` matrices `[frames, features]` at any depth, or one such file.

    An npz has its matrix under `motion`, or no other; its `fps` counts, all else is taken to be at `rvqvae.data.fps`.
    A file that no list of a split names counts as `additional`, or as held out where there is only `train.txt`.
    `Mean.npy` and `Std.npy` in the folder are the data's own statistics.
    """

    format = ".npy or .npz feature matrices"
    key = "features"
    suffix = ".npy"

    def __init__(self, path: Path, config: DataConfig) -> None:
        super().__init__(path, config)
        self._width: int | None = None

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() in (".npy", ".npz") and any(header.is_matrix for header in _headers([path]))
        return any(header.is_matrix for header in islice(_headers(cls.files_of(path).values()), 16))

    def sources(self) -> list[Path]:
        statistics = [file for name in STATISTICS if (file := self._beside(name))]
        return [*super().sources(), *statistics]

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        return _without_statistics(files_below(folder, (".npy", ".npz")))

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        values, fps = self._load(file)
        motion = matrix(values, "the matrix", self._usual_width())
        return Take(name, motion, fps, feature_layout(motion.shape[1]), split)

    def reading_facts(self) -> dict[str, Any]:
        return {"width": self._usual_width()}

    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        mean, std = (self._beside(name) for name in STATISTICS)
        if mean is None or std is None:
            return None
        return read_statistics(mean), read_statistics(std, positive=True)

    def _load(self, file: Path) -> tuple[NDArray[Any], float]:
        """A file's matrix and frame rate; raises ClipError."""
        if file.suffix.lower() == ".npy":
            return load_npy(file), self.config.fps
        key = _matrix_key(npz_headers(file))
        arrays = load_npz(file, (key,), (FPS,))
        return arrays[key], frame_rate(arrays[FPS], FPS) if FPS in arrays else self.config.fps

    def _beside(self, name: str) -> Path | None:
        return next((folder / name for folder in (self.path, self._folder) if (folder / name).is_file()), None)

    def _usual_width(self) -> int | None:
        """The most common width of the first files, so that one odd file does not rule out all the others."""
        if self._width is None:
            widths: Counter[int] = Counter()
            widths.update(header.shape[1] for header in _headers(islice(self._files.values(), 100)) if header.is_matrix)
            self._width = widths.most_common(1)[0][0] if widths else None
        return self._width


class HumanML3DReader(FeatureFolderReader):
    """A folder in the form of HumanML3D or KIT: `new_joint_vecs/*.npy`, lists of the splits beside it.

    Mirrored clips (`M000001`) are clips like others.
    """

    format = "HumanML3D or KIT features"
    key = "humanml3d"
    certainty = 1

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.is_dir() and (path.name == CLIP_FOLDER or (path / CLIP_FOLDER).is_dir())

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        return _without_statistics(files_below(folder, (".npy",)))

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        if not (self.path / CLIP_FOLDER).is_dir():
            return super()._find()
        self._folder = self.path / CLIP_FOLDER
        return self.files_of(self._folder), SplitLists(self.path, self._folder)


def feature_weights(width: int, feat_bias: float) -> NDArray[np.float32] | None:
    """What the std of each column is divided by, float32 `[width]`; None for columns of unknown meaning.

    As MoMask has it: turning and speed of the root, its height and the contacts of the feet weigh `feat_bias` times as
    much as joints' places, rotations and velocities.
    """
    if width not in _JOINTS:
        return None
    joints = _JOINTS[width]
    root, contacts = 4, 4
    body = (joints - 1) * 3 + (joints - 1) * 6 + joints * 3
    return np.repeat(np.array([feat_bias, 1, feat_bias], np.float32), (root, body, contacts))


def read_statistics(file: str | Path, positive: bool = False) -> NDArray[np.float32]:
    """A mean or std from a `.npy` file, float32 `[columns]`; raises UserError."""
    try:
        values = load_npy(Path(file))
    except ClipError as error:
        raise UserError(f"{file}: {error}") from None
    if values.dtype.kind not in "fiu" or values.ndim != 1:
        raise UserError(f"{file}: a .npy file with one number a column is wanted")
    with np.errstate(over="ignore"):  # what does not fit float32 is refused as infinite
        values = values.astype(np.float32)
    if not np.isfinite(values).all() or (positive and (values < 0).any()):
        raise UserError(f"{file}: holds {'negative, ' if positive else ''}NaN or infinite values")
    return values


def _without_statistics(files: dict[str, Path]) -> dict[str, Path]:
    return {name: file for name, file in files.items() if file.name not in STATISTICS}


def _header(file: Path) -> Header:
    """Of a file's matrix; raises ClipError."""
    if file.suffix.lower() == ".npy":
        return npy_header(file)
    headers = npz_headers(file)
    return headers[_matrix_key(headers)]


def _headers(files: Iterable[Path]) -> Iterator[Header]:
    """Of the files that can be read; what is wrong with others is told when they are."""
    for file in files:
        with suppress(ClipError):
            yield _header(file)


def _matrix_key(headers: dict[str, Header]) -> str:
    """The key of an npz's matrix; raises ClipError."""
    if MOTION in headers:
        if CLIP_START in headers:
            raise ClipError("a packed npz of many clips; it is read by itself, not in a folder")
        return MOTION
    keys = [key for key, header in headers.items() if header.is_matrix]
    if len(keys) != 1:
        there = ", ".join(key[:40] for key in keys[:6]) or "none"
        raise ClipError(f"one matrix [frames, features] is wanted, or one called {MOTION}; there are: {there}")
    return keys[0]


class PackedReader(Reader):
    """One packed npz. It is read whole, once its clips are asked for: an npz cannot be memory-mapped."""

    format = "packed npz"
    key = "packed"
    parallel = False
    certainty = 2

    def __init__(self, path: Path, config: DataConfig) -> None:
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
        return Take(name, motion, content.fps, content.layout, self.split_of(name))

    def split_of(self, name: str) -> str | None:
        return self._content.split[self._content.names.index(name)] if self._content.split else None

    def weight(self, name: str) -> int:
        return self.path.stat().st_size // len(self._content.names)

    @cached_property
    def _content(self) -> "_Content":
        try:
            return _read(self.path)
        except ClipError as error:
            raise UserError(f"{self.path}: {error}") from None


class _Content(NamedTuple):
    motion: NDArray[Any]
    starts: NDArray[np.int64]
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
