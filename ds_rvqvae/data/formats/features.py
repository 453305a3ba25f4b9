"""Feature matrices, one clip per file: folders like those of HumanML3D, KIT and the 272 columns, and plain folders.

Sources: C. Guo et al., "Generating Diverse and Natural 3D Human Motions from Text", CVPR 2022 (HumanML3D); M. Plappert
et al., "The KIT Motion-Language Dataset", Big Data 2016; L. Xiao et al., "MotionStreamer", ICCV 2025 (272 columns); K.
Fan et al., "Go to Zero", ICCV 2025 (MotionMillion); C. Guo et al., "SnapMoGen", 2025; C. Guo et al., "MoMask:
Generative Masked Modeling of 3D Human Motions", CVPR 2024 (the weighting of columns).
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.base import (
    FilesReader,
    files_below,
    load_npy,
    load_npz,
    matrix,
    npy_header,
    npz_headers,
    said_rate,
)
from ds_rvqvae.data.formats.finding import HUMANML3D_CLIPS, STATISTICS, is_statistics, statistics_in
from ds_rvqvae.data.formats.npz import FPS_KEYS, Header, frame_rate, other_rate, rate_of
from ds_rvqvae.data.formats.split_lists import SplitLists
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import feature_layout
from ds_rvqvae.motion.rotations import same_rate

CLIP_FOLDERS_272 = ("motion_data/vector_272", "motion_data", "motion_272rpr")
"""Folders of MotionMillion, of MotionStreamer's HumanML3D and BABEL, and of MotionMillion's archive."""
MOTION, FPS, CLIP_START = "motion", "fps", "clip_start"
_JOINTS = {263: 22, 251: 21}
"""Numbers of joints of HumanML3D and KIT, by their numbers of columns."""
_SLOWEST, _FASTEST = 0.5, 1e4
_LOOKED_AT = 100
"""The number of files that decide a folder's width and frame rate."""


class _Known(NamedTuple):
    """A published set of features."""

    name: str
    fps: float


_KNOWN = {
    263: _Known("HumanML3D", 20.0),
    251: _Known("KIT", 12.5),
    272: _Known("HumanML3D-272", 30.0),
    296: _Known("SnapMoGen", 30.0),
}


def known_rate(columns: int) -> float | None:
    """Returns the frame rate of published features with this number of columns, or None."""
    return _KNOWN[columns].fps if columns in _KNOWN else None


class FeatureFolderReader(FilesReader):
    """Reader of a folder of `.npy` or `.npz` matrices `[frames, features]` at any depth, or of one such file.

    An npz has its matrix under `motion`, or has only one matrix. Matrices are never resampled. Their frame rate is
    `rvqvae.data.source_fps`, or the one in most npz files, or the one known for their columns, or `rvqvae.data.fps`.
    A file that no list of a split names counts as `additional`, or as held out if there is only `train.txt`.
    `Mean.npy` and `Std.npy` in the folder, or in a folder for statistics, are the data's own statistics.
    """

    format = ".npy or .npz feature matrices"
    key = "features"
    suffix = ".npy"

    def __init__(self, path: Path, config: DataConfig) -> None:
        self._places = [path]
        """The folder of the clips, and the folders above it that belong to the data."""
        super().__init__(path, config)
        self._width, self._said = self._usual()
        self._known = _KNOWN.get(self._width or 0)
        self._fps = self._rate()
        self._pair = self._find_statistics()

    @property
    def fps(self) -> float:
        return self._fps if self.config.reading_version > 1 else self.config.fps

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() in (".npy", ".npz") and any(header.is_matrix for header in _headers([path]))
        return any(header.is_matrix for header in islice(_headers(cls.files_of(path).values()), 16))

    def sources(self) -> list[Path]:
        return [*super().sources(), *self.statistics_files]

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        return _without_statistics(files_below(folder, (".npy", ".npz")))

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        self._folder = self._places[0]
        files = self.files_of(self._folder)
        if self.config.reading_version > 1:
            files = {name: file for name, file in files.items() if not is_statistics(file)}
        lists = self._lists_of(files, self._places, self.path.parent if self._places == [self.path] else None)
        if any(self.path not in file.parents for file in lists.files) and self._places == [self.path]:
            self._places = [self.path, self.path.parent]  # the lists beside the folder belong to the data
        return files, lists

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        values, said = self._load(file)
        motion = matrix(values, "the matrix", self._width)
        fps = self.config.source_fps or said or self._unsaid()
        if self.config.reading_version > 1:
            self._check_rate(fps, bool(said))
        is_overruled = self.config.source_fps is not None and file.suffix.lower() == ".npz"
        notes = other_rate(said_rate(file), self.config.source_fps) if is_overruled else ()
        return Take(name, motion, fps, feature_layout(motion.shape[1]), split, notes=notes)

    def _check_rate(self, fps: float, is_said: bool) -> None:
        check_rate(fps)
        if not same_rate(fps, self._fps):
            own = f"{fps:g} fps" if is_said else f"the file gives no frame rate, so {fps:g} fps is assumed"
            every = to_say("source_fps", "N")
            raise ClipError(f"{own}, but most of the files have {self._fps:g} fps; {every} sets the rate of all")

    def reading_facts(self) -> dict[str, Any]:
        """Returns facts beside the clips' own files and the settings that their numbers depend on."""
        return {"width": self._width, "fps": self.fps}

    @property
    def statistics_files(self) -> Sequence[Path]:
        return self._pair

    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        if not self._pair:
            return None
        mean, std = self._pair
        return read_statistics(mean), read_statistics(std, positive=True)

    def _load(self, file: Path) -> tuple[NDArray[Any], float | None]:
        """Reads a file's matrix and its frame rate, or None if it gives none; raises ClipError."""
        if file.suffix.lower() == ".npy":
            return load_npy(file), None
        key = _matrix_key(npz_headers(file))
        arrays = load_npz(file, (key,), FPS_KEYS)
        return arrays[key], self._said_in(arrays)

    def _said_in(self, arrays: dict[str, NDArray[Any]]) -> float | None:
        if self.config.reading_version == 1:
            return frame_rate(arrays[FPS], FPS) if FPS in arrays else None
        return None if self.config.source_fps else rate_of(arrays)

    def _usual(self) -> tuple[int | None, Counter[float | None]]:
        """Returns the most common width of the first files, and counts of the frame rates that they give.

        By the most common width, one odd file does not exclude all others.
        """
        widths: Counter[int] = Counter()
        rates: Counter[float | None] = Counter()
        for file in islice(self._files.values(), _LOOKED_AT):
            with suppress(ClipError):
                if (header := _header(file)).is_matrix:
                    widths[header.shape[1]] += 1
                    rates[self._said_in(load_npz(file, (), FPS_KEYS)) if file.suffix.lower() == ".npz" else None] += 1
        return (widths.most_common(1)[0][0] if widths else None), rates

    def _unsaid(self) -> float:
        """Returns the frame rate of a file that gives none."""
        if self.config.reading_version == 1 or self._known is None:
            return self.config.fps
        return self._known.fps

    def _rate(self) -> float:
        """Returns the frame rate of most files, by today's rules; adds a note on what was assumed."""
        wanted, known = self.config.fps, self._known
        unsaid = known.fps if known else wanted
        rates: Counter[float] = Counter()
        for said, count in self._said.items():
            rates[said or unsaid] += count
        rate = self.config.source_fps or (rates.most_common(1)[0][0] if rates else wanted)
        is_said = rate in self._said
        if self.config.reading_version == 1:
            if not same_rate(rate, wanted):
                self.notes += (_as_before(f"at {wanted:g} fps (rvqvae.data.fps), but the files have {rate:g} fps"),)
        elif self.config.source_fps is not None:
            if known and not same_rate(rate, known.fps):
                self.notes += (
                    f"{rate:g} fps (rvqvae.data.source_fps) is used, but {known.name}'s {self._width} columns have "
                    f"{known.fps:g} fps",
                )
        elif not (is_said or known):
            self.notes += (
                f"{'most files do not give their' if any(self._said) else 'no file gives its'} frame rate: "
                f"{rate:g} fps (rvqvae.data.fps) is assumed; {to_say('source_fps', 'N')} sets another",
            )
        elif not same_rate(rate, wanted):
            whose = "the files' own" if is_said or known is None else f"{known.name}'s, by the {self._width} columns"
            self.notes += (kept_rate(f"{rate:g} fps is {whose}", self.config),)
        return rate

    def _find_statistics(self) -> tuple[Path, ...]:
        """Returns the files of mean and std; adds notes on others that are not used."""
        before = tuple(file for name in STATISTICS if (file := _beside((self.path, self._folder), name)))
        before = before if len(before) == len(STATISTICS) else ()
        if self.path.is_file():
            return before
        found = [pair for place in self._places for pair in statistics_in(place, self._places[0].name)]
        whole = [pair for pair in found if len(pair) == len(STATISTICS)]
        fitting = [pair for pair in whole if all(_widths(file) == (self._width,) for file in pair)]
        chosen = next(iter(fitting or whole), ())
        if self.config.reading_version == 1:
            if chosen != before:
                self.notes += (_as_before("with another mean and std than those beside the data"),)
            return before
        words = " and ".join(self._relative(file) for file in chosen) or "the training clips"
        for pair in found:
            names = " and ".join(self._relative(file) for file in pair)
            if len(pair) < len(STATISTICS):
                self.notes += (f"{names}: not used, because mean and std must be in one folder together",)
            elif pair != chosen and not _same_numbers(pair, chosen):
                self.notes += (f"{names}: not used, mean and std are those of {words}, which differ",)
        return chosen

    def _relative(self, file: Path) -> str:
        return os.path.relpath(file, self._places[-1])


class HumanML3DReader(FeatureFolderReader):
    """Reader of a folder like that of HumanML3D or KIT: `new_joint_vecs/*.npy`, with lists of the splits beside it.

    Mirrored clips (`M000001`) are clips like others; they belong to the split of their originals.
    """

    format = "HumanML3D or KIT features"
    key = "humanml3d"
    certainty = 1
    clip_folders: ClassVar[tuple[str, ...]] = (HUMANML3D_CLIPS,)
    """Possible folders of the clips, relative to the data set's own."""

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        self._places = self._folders(self.path)
        if self.config.reading_version == 1 and self._places[0] == self.path.absolute():
            self._places = [self.path]
        files, lists = super()._find()
        if not lists.files and self.config.reading_version > 1 and self.config.split == "auto":
            self.notes += ("there is no list of the official splits: clips are held out by a hash of their names",)
        return files, lists

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.is_dir() and bool(cls._folders(path))

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        return _without_statistics(files_below(folder, (".npy",)))

    @classmethod
    def _folders(cls, path: Path) -> list[Path]:
        """Returns the folders of the clips and of the data set, either of which may be `path`; else an empty list."""
        whole = path.absolute()
        for root in (whole, whole.parent, whole.parent.parent):
            for clips in (root / name for name in cls.clip_folders):
                if (whole in (root, clips) or whole in clips.parents) and clips.is_dir():
                    return [clips, root]
        return []


class HumanML3D272Reader(HumanML3DReader):
    """Reader of a folder like that of HumanML3D-272: 272 columns in `motion_data/`, with `split/`, … beside it."""

    format = "HumanML3D-272 features"
    key = "humanml3d_272"
    clip_folders = CLIP_FOLDERS_272

    @classmethod
    def matches(cls, path: Path) -> bool:
        if not super().matches(path):
            return False
        headers = islice(_headers(cls.files_of(cls._folders(path)[0]).values()), 16)
        return any(header.is_matrix and header.shape[1] == 272 for header in headers)

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        return False


def feature_weights(width: int, feat_bias: float) -> NDArray[np.float32] | None:
    """Returns the divisors of each column's std, float32 `[width]`, or None for columns of unknown meaning.

    As in MoMask, the root's turning, speed and height and the contacts of the feet weigh `feat_bias` times as much as
    the joints' positions, rotations and velocities.
    """
    if width not in _JOINTS:
        return None
    joints = _JOINTS[width]
    root, contacts = 4, 4
    body = (joints - 1) * 3 + (joints - 1) * 6 + joints * 3
    return np.repeat(np.array([feat_bias, 1, feat_bias], np.float32), (root, body, contacts))


def read_statistics(file: str | Path, positive: bool = False) -> NDArray[np.float32]:
    """Reads a mean or std from a `.npy` file, float32 `[columns]`; raises UserError."""
    try:
        values = load_npy(Path(file))
    except ClipError as error:
        raise UserError(f"{file}: {error}") from None
    if values.dtype.kind not in "fiu" or values.ndim != 1:
        raise UserError(f"{file}: not a .npy file with one number per column")
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, and are refused
        values = values.astype(np.float32)
    if not np.isfinite(values).all() or (positive and (values < 0).any()):
        raise UserError(f"{file}: holds {'negative, ' if positive else ''}NaN or infinite values")
    return values


def check_rate(fps: float) -> None:
    """Raises ClipError for an impossible frame rate; resampling would refuse it, but here nothing is resampled."""
    if not _SLOWEST <= fps <= _FASTEST:
        raise ClipError(f"{fps:g} fps is not a frame rate of motion; {to_say('source_fps', 'N')} sets another")


def kept_rate(words: str, config: DataConfig) -> str:
    """Returns a note on a frame rate that is not the one asked for."""
    return f"{words}: feature matrices are never resampled, rvqvae.data.fps {config.fps:g} is not used"


def _as_before(words: str) -> str:
    return (
        f"read as versions up to 0.2 did: {words}; prepare again with rvqvae.data.reading_version 2 to use the data's "
        "own"
    )


def _beside(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _widths(file: Path) -> tuple[int, ...]:
    """Returns the shape of statistics, or () if the file cannot be read."""
    try:
        return npy_header(file).shape
    except ClipError:
        return ()


def _same_numbers(files: Sequence[Path], others: Sequence[Path]) -> bool:
    try:
        return all(np.array_equal(load_npy(file), load_npy(other)) for file, other in zip(files, others, strict=True))
    except ClipError:
        return False


def _without_statistics(files: dict[str, Path]) -> dict[str, Path]:
    return {name: file for name, file in files.items() if file.name not in STATISTICS}


def _header(file: Path) -> Header:
    """Reads the header of a file's matrix; raises ClipError."""
    if file.suffix.lower() == ".npy":
        return npy_header(file)
    headers = npz_headers(file)
    return headers[_matrix_key(headers)]


def _headers(files: Iterable[Path]) -> Iterator[Header]:
    """Yields the headers of the files that can be read; faults of others are reported when they are read."""
    for file in files:
        with suppress(ClipError):
            yield _header(file)


def _matrix_key(headers: dict[str, Header]) -> str:
    """Returns the key of an npz's matrix; raises ClipError."""
    if MOTION in headers:
        if CLIP_START in headers:
            raise ClipError("a packed npz of many clips; give it by itself, not in a folder")
        return MOTION
    keys = [key for key, header in headers.items() if header.is_matrix and key not in FPS_KEYS]  # [[30]] is a rate
    if len(keys) != 1:
        there = ", ".join(key[:40] for key in keys[:6]) or "none"
        raise ClipError(f"it needs one matrix [frames, features], or one called {MOTION}; it has {there}")
    return keys[0]
