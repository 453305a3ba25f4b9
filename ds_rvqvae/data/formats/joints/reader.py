"""The reader of joint positions: `[T, J, 3]`, one clip per file.

Published form: HumanML3D's `new_joints/000021.npy`, float32 `[T, 22, 3]` in metres with y up, 20 frames per second
(https://github.com/EricGuo5513/HumanML3D: `motion_representation.ipynb`, "3d motion positions" in README.md), with
`train.txt`, `val.txt` and `test.txt` beside the folder; KIT's, `[T, 21, 3]` in millimetres, 12.5 frames per second.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.base import FilesReader, files_below, load_npy, load_npz, npy_header, npz_headers, said_rate
from ds_rvqvae.data.formats.bvh.skeletons import Z_UP_TO_Y_UP, in_words
from ds_rvqvae.data.formats.finding import is_statistics
from ds_rvqvae.data.formats.joints.skeletons import (
    PUBLISHED,
    Published,
    bones_of,
    described_again,
    extent_of,
    no_skeleton,
    skeleton_of,
    unit_of,
)
from ds_rvqvae.data.formats.npz import FPS_KEYS, Header, other_rate, rate_of
from ds_rvqvae.data.formats.split_lists import SplitLists
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import TRANSLATION, Channels, Layout
from ds_rvqvae.motion.rotations import same_rate
from ds_rvqvae.motion.skeleton import Skeleton

FOLDER = "new_joints"
"""The folder of HumanML3D's and KIT's joint positions."""
_SUFFIXES = (".npy", ".npz")
_OF_OTHERS = (".bvh", ".csv")
_LOOKED_AT = 100
"""Files that decide on the number of joints and on the unit."""
_MATCHED = 16
_MOST_JOINTS = 4096
_FRAMES = 100
"""Frames of a clip in which its bones and its size are looked at."""
_RIGID = 0.05
"""A bone whose length changes within a clip by more than this fraction of it is mentioned."""
_TALL = (0.3, 4.0)
"""Metres: bodies outside of this are mentioned."""


class JointsReader(FilesReader):
    """Reader of a folder of `.npy` or `.npz` files with joint positions at any depth, or of one such file.

    A file has one array `[T, J, 3]`, or `[T, 3 J]` with `rvqvae.data.skeleton`. The columns are the first joint's
    position as `translation`, then the position of each other joint relative to it.

    Names and parents of the joints come from `rvqvae.data.skeleton`, or are HumanML3D's or KIT's in a folder
    `new_joints`. What is recognised from all files, such as the unit of length, becomes a setting of `config`, so that
    a store and a tokenizer have it.
    """

    format = "joint positions"
    key = "joints"
    suffix = ".npy"
    has_up_axis = True
    certainty = 1

    def __init__(self, path: Path, config: DataConfig) -> None:
        super().__init__(path, config)
        joints = self._usual()
        self._skeleton, published = self._joints_of(joints)
        if config.source_fps is None:
            self._take_rate(published)
        elif published is not None and not same_rate(config.source_fps, published.fps):
            self.notes += (
                f"{config.source_fps:g} fps (rvqvae.data.source_fps) is used, but {published.name}'s joint positions "
                f"have {published.fps:g} fps",
            )
        if config.metres_per_unit is None:
            self._take_unit(published)
        if not self._skeleton.offsets.any():
            self._take_bones()

    @classmethod
    def matches(cls, path: Path) -> bool:
        files = [path] if path.is_file() else list(files_below(path, _SUFFIXES).values())
        spread = [file for file in files[:: -(-len(files) // _MATCHED) or 1] if not is_statistics(file)]
        # Data of another format may have joint positions beside them, as AIST++ has.
        is_other = any(file.suffix.lower() == ".npz" and _has_several(file) for file in spread)
        headers = list(_headers(spread))
        if not headers or is_other or not all(map(_is_positions, headers)):
            return False
        return path.is_file() or len(files_below(path, _OF_OTHERS)) <= len(files)

    @classmethod
    def matches_if_asked(cls, path: Path) -> bool:
        """Returns whether some file may hold joint positions: flattened ones look like any matrix."""
        if path.is_file():
            return path.suffix.lower() in _SUFFIXES
        return bool(cls.files_of(_folder_in(path)))

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        return False

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        found = files_below(folder, _SUFFIXES)
        return {name: file for name, file in found.items() if not is_statistics(file)}

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        self._folder = _folder_in(self.path)
        files = self.files_of(self._folder)
        if self._folder != self.path:
            return files, self._lists_of(files, [self._folder, self.path], None)
        return files, self._lists_of(files, [self.path], self.path.parent)

    def why_passed_over(self, file: Path) -> str:
        is_beside = self._folder != self.path and self._folder not in file.parents
        return f"not in {FOLDER}" if is_beside else super().why_passed_over(file)

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        values, said = read_positions(file, self._skeleton)
        config = self.config
        fps = config.source_fps or said or config.fps
        metres = 1.0 if config.metres_per_unit is None else config.metres_per_unit
        with np.errstate(over="ignore", invalid="ignore"):
            places = metres * values
            if config.up_axis == "z":
                places = places @ Z_UP_TO_Y_UP.T
        empty = np.asarray(~values.any(axis=(1, 2)))
        notes = (*other_rate(said, config.source_fps), *_notes(places[~empty], self._skeleton))
        skeleton = described_again(self._skeleton, self._skeleton.offsets)
        motion, layout = columns_of(places), joints_layout(self._skeleton)
        return Take(name, motion, fps, layout, split, empty, has_positions=True, skeleton=skeleton, notes=notes)

    def _usual(self) -> int:
        """Returns the number of joints of most of the first files; 0 if none can be read."""
        counts: Counter[int] = Counter()
        for header in _headers(islice(self._files.values(), _LOOKED_AT)):
            if _is_positions(header):
                counts[header.shape[1]] += 1
        return counts.most_common(1)[0][0] if counts else 0

    def _joints_of(self, joints: int) -> tuple[Skeleton, Published | None]:
        """Returns the skeleton, and the published set that the files are of; raises UserError."""
        folder = self.path.parent if self.path.is_file() else self._folder
        published = PUBLISHED.get(joints) if folder.absolute().name == FOLDER else None
        skeleton = skeleton_of(self.config)
        if skeleton is not None:
            if joints not in (0, len(skeleton.joint_names)):
                raise UserError(
                    f"{self.path}: the files have {joints} joints, rvqvae.data.skeleton {len(skeleton.joint_names)}"
                )
            is_same = published is not None and list(skeleton.parents) == list(published.parents)
            return skeleton, published if is_same else None
        if published is None:
            raise no_skeleton(self.path, joints)
        names = list(published.joint_names)
        entries = {"joint_names": names, "parents": list(published.parents)}
        self.config = self.config.with_values({"skeleton": entries})
        self.readings += (f"{published.name}'s {joints} joints, by the folder {FOLDER}",)
        found = skeleton_of(self.config)
        assert found is not None
        return found, published

    def _take_rate(self, published: Published | None) -> None:
        """Takes the rate of a published set if no file gives one, or says that one is assumed."""
        said = sum(said_rate(file) is not None for file in islice(self._files.values(), _LOOKED_AT))
        if published is not None and not said:
            self.config = self.config.with_values({"source_fps": published.fps})
            self.readings += (f"{published.fps:g} fps, as {published.name}'s joint positions have",)
            return
        if said < min(len(self._files), _LOOKED_AT):
            self.notes += (
                f"{'most files do not give their' if said else 'no file gives its'} frame rate: {self.config.fps:g} "
                f"fps (rvqvae.data.fps) is assumed where there is none; {to_say('source_fps', 'N')} sets another",
            )

    def _take_unit(self, published: Published | None) -> None:
        """Finds the unit of length; raises UserError if it is not known."""
        if published is not None:
            metres, how = published.metres, f"as {published.name}'s joint positions have"
        else:
            sample = self._sample()
            if not sample:
                return  # no file can be read, which the packing reports
            extents = {name: extent_of(values) for name, values in sample.items()}
            metres = unit_of(self.path, extents)
            tall = float(np.median(list(extents.values()))) * metres
            how = f"by the size of the bodies, {tall:.2f} m ({len(extents)} files)"
        self.config = self.config.with_values({"metres_per_unit": metres})
        self.readings += (f"{in_words(metres)}, {how}",)

    def _take_bones(self) -> None:
        """Takes the bones of the first file that can be read as those of the skeleton at rest.

        They are no setting of a store: another first file must not make it another store.
        """
        for values in self._sample(most=1).values():
            places = (self.config.metres_per_unit or 1.0) * values[np.isfinite(values).all(axis=(1, 2))]
            if self.config.up_axis == "z":
                places = places @ Z_UP_TO_Y_UP.T
            entries = described_again(self._skeleton, bones_of(self._skeleton, places))
            with suppress(UserError):  # of no body; each clip has a note then
                self._skeleton = skeleton_of(self.config.with_values({"skeleton": entries})) or self._skeleton

    def _sample(self, most: int = _LOOKED_AT) -> dict[str, NDArray[np.float64]]:
        """Returns the positions in some of the files, spread over all, of those that can be read."""
        found: dict[str, NDArray[np.float64]] = {}
        names = sorted(self._files)
        for name in [*names[:: -(-len(names) // most)], *names] if names else []:
            if len(found) < min(most, len(names)) and name not in found:
                with suppress(ClipError):
                    values = read_positions(self._files[name], self._skeleton)[0]
                    if np.isfinite(values).all(axis=(1, 2)).any():
                        found[name] = values
        return found


def joints_layout(skeleton: Skeleton) -> Layout:
    """Returns the layout of positions: the first joint's as `translation`, then each other joint's relative to it."""
    root = Channels(TRANSLATION, "translation", 0, 3)
    names = skeleton.joint_names[1:]
    return root, *(Channels(name, "relative_position", 3 * at, 3 * at + 3) for at, name in enumerate(names, 1))


def columns_of(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns positions `[T, J, 3]` as columns `[T, 3 J]`; the first three are the root's position."""
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite stay so, and the rules cut them out
        return np.concatenate([places[:, :1], places[:, 1:] - places[:, :1]], axis=1).reshape(len(places), -1)


def read_positions(file: Path, skeleton: Skeleton) -> tuple[NDArray[np.float64], float | None]:
    """Reads a file's positions, float64 `[T, J, 3]` in its own unit, and its frame rate, or None if it gives none.

    Raises:
        ClipError: the file cannot be read, or has not one array of this skeleton's joints.
    """
    if file.suffix.lower() == ".npz":
        key = _key_of(npz_headers(file))
        arrays = load_npz(file, (key,), FPS_KEYS)
        values, said = arrays[key], rate_of(arrays)
    else:
        values, said = load_npy(file), None
    joints = len(skeleton.joint_names)
    if values.dtype.kind not in "fiu":
        raise ClipError(f"holds {str(values.dtype)[:40]}, not positions")
    if values.ndim == 2 and values.shape[1] == 3 * joints:
        values = values.reshape(len(values), joints, 3)
    if values.ndim != 3 or values.shape[1:] != (joints, 3):
        raise ClipError(f"has the shape {list(values.shape)}, not [frames, {joints}, 3] by rvqvae.data.skeleton")
    if not len(values):
        raise ClipError("holds no frames")
    return values.astype(np.float64), said


def _notes(places: NDArray[np.float64], skeleton: Skeleton) -> tuple[str, ...]:
    """Returns notes on bones whose lengths change, and on a body of an odd size."""
    some = places[:: -(-len(places) // _FRAMES)] if len(places) else places
    good = some[np.isfinite(some).all(axis=(1, 2))]
    if not len(good):
        return ()
    notes = []
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(good[:, 1:] - good[:, list(skeleton.parents[1:])], axis=-1)
        low, usual, high = np.quantile(lengths, (0.05, 0.5, 0.95), axis=0)
        changes = np.where(usual > 1e-6, (high - low) / np.maximum(usual, 1e-6), 0)
    bent = [joint for joint in np.argsort(-changes).tolist() if changes[joint] > _RIGID]
    if bent:
        more = f" and {len(bent) - 1} more" if len(bent) > 1 else ""
        name = skeleton.joint_names[bent[0] + 1]
        notes.append(f"bones change their length within the clip: that to {name} by {changes[bent[0]]:.0%}{more}")
    tall = extent_of(good)
    if not _TALL[0] <= tall <= _TALL[1]:
        notes.append(
            f"the body is {tall:.3g} m tall: is the unit of length another one? {to_say('metres_per_unit', 'N')}"
        )
    return tuple(notes)


def _folder_in(path: Path) -> Path:
    """Returns the folder of joint positions in a data set's folder, or the folder itself."""
    return path / FOLDER if (path / FOLDER).is_dir() else path


def _headers(files: Iterable[Path]) -> Iterable[Header]:
    """Yields the headers of the only arrays of files; files that cannot be read or have several are skipped."""
    for file in files:
        with suppress(ClipError):
            if file.suffix.lower() == ".npy":
                yield npy_header(file)
            else:
                headers = npz_headers(file)
                yield headers[_key_of(headers)]


def _has_several(file: Path) -> bool:
    """Returns whether an npz has several arrays beside its frame rate."""
    with suppress(ClipError):
        return len([key for key in npz_headers(file) if key not in FPS_KEYS]) > 1
    return False


def _key_of(headers: dict[str, Header]) -> str:
    """Returns the key of an npz's only array beside its frame rate; raises ClipError."""
    keys = [key for key in headers if key not in FPS_KEYS]
    if len(keys) != 1:
        there = ", ".join(key[:40] for key in keys[:6]) or "none"
        raise ClipError(f"it needs one array of joint positions [frames, joints, 3]; it has {there}")
    return keys[0]


def _is_positions(header: Header) -> bool:
    shape: Sequence[int] = header.shape
    return len(shape) == 3 and shape[2] == 3 and 1 < shape[1] <= _MOST_JOINTS and header.dtype.kind in "fiu"
