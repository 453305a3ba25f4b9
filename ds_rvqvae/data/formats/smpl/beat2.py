"""BEAT2: SMPL-X motion with facial expressions, in one folder per language, each with its official splits.

Source: H. Liu et al., "EMAGE: Towards Unified Holistic Co-Speech Gesture Generation via Expressive Masked Audio Gesture
Modeling", CVPR 2024. As published, `beat_english_v2.0.0` and the folders of other languages each have
`smplxflame_30/*.npz` and `train_test_split.csv`.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import (
    Reader,
    file_size,
    files_below,
    matrix,
    no_file,
    npz_keys,
    npz_samples,
    unused_lists,
    visible_files,
)
from ds_rvqvae.data.formats.smpl.fields import EXPRESSIONS, POSES, TRANS, Field, Fields
from ds_rvqvae.data.formats.smpl.forms import write_rotation_6d
from ds_rvqvae.data.formats.smpl.poses import given_skeleton, load_motion, said_figure, turn_root, turns_z
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_text
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import NUM_EXPRESSIONS, SMPLX_JOINTS, smplx_layout

CLIP_FOLDER = "smplxflame_30"
SPLIT_FILE = "train_test_split.csv"
MOTION_KEYS = (POSES, TRANS, EXPRESSIONS)
FIELDS = Fields(SMPLX_JOINTS, (Field(POSES, 0, len(SMPLX_JOINTS), "axis_angle"),), TRANS, expressions=EXPRESSIONS)
_LOOKED_AT = 16
"""In a folder without `smplxflame_30`, the number of files that are opened to find out whether it is BEAT2."""


class Beat2Reader(Reader):
    """BEAT2: the folder of a language, its folder of npz files, a folder of languages at any depth, or one npz.

    A clip has the name of its file; within the folder of one language, without the folder that the file is in. A clip
    that its language's `train_test_split.csv` lists but that has no file is left out for that reason. A file that is
    not listed counts as `additional`. So do all files of a language without a list, if another language has one. A
    single file has no split.
    """

    format = "BEAT2 npz"
    key = "beat2"
    has_body_parts = True
    has_up_axis = True
    certainty = 1

    def __init__(self, path: Path, config: DataConfig) -> None:
        super().__init__(path, config)
        self.skeleton = given_skeleton(config)
        self._files: dict[str, Path] = {}
        self._split: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        """Clips that are listed but have no file, with their names as in the list."""
        self._unlisted: list[str] = []
        """Clips that their language's list does not name."""
        self._split_files: list[Path] = []
        self._folders: list[Path] = []
        if path.is_file():
            self._files = {path.stem: path}
        else:
            self._folders = _first_folder(path) if config.reading_version == 1 else clip_folders(path)
            self._find()
        self._names = self._of_speakers(sorted({*self._files, *self._missing}))

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() == ".npz" and EXPRESSIONS in npz_keys(path)
        return bool(clip_folders(path))

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        return path.suffix == ".npz" and cls.matches(path) if path.is_file() else bool(_first_folder(path))

    def sources(self) -> list[Path]:
        return [*self.clip_files().values(), *self._split_files]

    def clip_files(self) -> dict[str, Path]:
        return {name: self._files[name] for name in self._names if name in self._files}

    def why_passed_over(self, file: Path) -> str:
        if file.suffix.lower() != ".npz":
            return super().why_passed_over(file)
        return "of other speakers" if file.parent in self._folders else "not in a folder of clips"

    def clip_names(self) -> list[str]:
        return self._names

    def file_of(self, name: str) -> str:
        if name not in self._files:
            return f"{name}.npz"
        file = self._files[name]
        return file.relative_to(self.path).as_posix() if "/" in name else file.name

    def take(self, name: str) -> Take:
        if name not in self._files:
            raise ClipError(f"{SPLIT_FILE} lists it, but {no_file(self._missing[name])}")
        arrays, _, fps, notes = load_motion(self._files[name], MOTION_KEYS, self.config)
        motion = rotations_and_positions(arrays)
        if turns_z(self.config):
            turn_root(motion, FIELDS)
        empty = ~np.logical_or.reduce([arrays[key].any(axis=1) for key in MOTION_KEYS])
        layout, split = smplx_layout(), self.split_of(name)
        return Take(name, motion, fps, layout, split, empty, has_positions=True, skeleton=self.skeleton, notes=notes)

    def check(self, names: Sequence[str]) -> None:
        self.readings += said_figure(self.skeleton)

    def source_of(self, name: str) -> Path | None:
        return self._files.get(name)

    def split_of(self, name: str) -> str | None:
        return self._split.get(name, "additional") if self._split_files else None

    def weight(self, name: str) -> int:
        return file_size(self._files.get(name))

    def _find(self) -> None:
        """Finds the clips and their splits."""
        of_list: dict[Path | None, dict[str, Path]] = defaultdict(dict)
        for folder in self._folders:
            found: dict[str, Path] = {}
            for file in visible_files(folder, ".npz"):
                if file.suffix == ".npz" or self.config.reading_version > 1:
                    name = f"{self._prefix(folder)}{file.stem}"
                    found[f"{name}{file.suffix}" if name in found else name] = file
            self._files |= found
            of_list[self._list_of(folder)] |= found
        self._split_files = [file for file in of_list if file is not None]
        for file in self._split_files:
            self._split_by(file, of_list[file])
        if self.config.reading_version > 1:
            self.notes += self._what_is_not_used(of_list.get(None, {}))

    def _split_by(self, list_file: Path, files: Mapping[str, Path]) -> None:
        """Reads from a list the splits of the clips that it covers."""
        listed = read_split_file(list_file)
        stems = {file.stem for file in files.values()}
        self._split |= {name: listed[file.stem] for name, file in files.items() if file.stem in listed}
        self._unlisted += [name for name, file in files.items() if file.stem not in listed]
        folders = {file.parent for file in files.values()} or {self.path}
        prefix = self._prefix(folders.pop() if len(folders) == 1 else list_file.parent)
        self._missing |= {f"{prefix}{name}": name for name in listed if name not in stems}

    def _what_is_not_used(self, unlisted: Collection[str]) -> tuple[str, ...]:
        """Returns notes on clips without a list, on lists without clips, and on motion that is not read."""
        notes = list(unused_lists(self._split_files[:1], self.config))
        if self._unlisted and self.config.split == "auto":
            count = f"{len(self._unlisted):,}, such as {self._unlisted[0]}"
            notes.append(
                f"clips that {SPLIT_FILE} does not name count as additional, neither trained on nor scored: {count}"
            )
        is_published = any(folder.name == CLIP_FOLDER for folder in self._folders)
        if unlisted and (self._split_files or (is_published and self.config.split == "auto")):
            what = "count as additional, neither trained on nor scored"
            what = what if self._split_files else "have no split except the one that rvqvae.data.split makes"
            notes.append(f"no {SPLIT_FILE} for {_languages(unlisted, self.path)}: {len(unlisted):,} clips {what}")
        if self.path / CLIP_FOLDER in self._folders:
            return tuple(notes)  # other files beside the clips of one language are of no interest
        below = files_below(self.path, (".npz", SPLIT_FILE)).values()
        lists = [file for file in below if file.name.lower() == SPLIT_FILE and file not in self._split_files]
        if lists:
            notes.append(f"{_some([file.relative_to(self.path).as_posix() for file in lists])}: not used")
        files = [file for file in below if file.suffix.lower() == ".npz" and file.parent not in self._folders]
        if any(POSES in keys for keys in npz_samples(files)):
            notes.append(
                f"{len(files):,} npz files beside the folders of BEAT2 clips are not read, such as "
                f"{files[0].relative_to(self.path).as_posix()}; give their folder by itself, or set rvqvae.data.format "
                "to smpl to read all"
            )
        return tuple(notes)

    def _prefix(self, folder: Path) -> str:
        """Returns the prefix of the names of a folder's clips."""
        inside = folder.relative_to(self.path) if folder.is_relative_to(self.path) else Path()
        return "" if inside in (Path(), Path(CLIP_FOLDER)) else f"{inside.as_posix()}/"

    def _list_of(self, folder: Path) -> Path | None:
        """Returns the list of splits nearest to a folder of clips: in it, or above it within the data."""
        places = [folder, folder.parent]
        while places[-1] != self.path and places[-1].is_relative_to(self.path):
            places.append(places[-1].parent)
        return next((place / SPLIT_FILE for place in places if (place / SPLIT_FILE).is_file()), None)

    def _of_speakers(self, names: list[str]) -> list[str]:
        if self.config.speakers is None:
            return names
        found = {name: re.match(r"\d{1,18}(?!\d)", name.rpartition("/")[2]) for name in names}
        speakers = {name: int(number[0]) for name, number in found.items() if number}
        wanted = [name for name in names if speakers.get(name) in self.config.speakers]
        if not wanted:
            there = ", ".join(map(str, sorted(set(speakers.values())))) or "none"
            raise UserError(
                f"rvqvae.data.speakers: {', '.join(map(str, self.config.speakers))} have no clip in {self.path}; "
                f"its speakers are {there}"
            )
        return wanted


def clip_folders(path: Path) -> list[Path]:
    """Returns the folders with clips of BEAT2 data, sorted; an empty list if the data are not BEAT2.

    They are the folders called `smplxflame_30`. If there is none, they are all folders with npz files, provided that
    most of these files have facial expressions.
    """
    first = _first_folder(path)
    if first and first != [path]:
        return first
    files = list(files_below(path, (".npz",)).values())
    named = {file.parent for file in files if file.parent.name == CLIP_FOLDER}
    if named:
        return sorted({*first, *named})
    keys = list(npz_samples(files[:: -(-len(files) // _LOOKED_AT)] if files else [], _LOOKED_AT))
    has_expressions = sum(EXPRESSIONS in some for some in keys)
    return sorted({file.parent for file in files}) if 2 * has_expressions > len(keys) else first


def _first_folder(path: Path) -> list[Path]:
    """Returns the folder of clips directly below, or the folder itself; an empty list if neither has clips."""
    if (path / CLIP_FOLDER).is_dir():
        return [path / CLIP_FOLDER]
    keys = npz_samples(visible_files(path, ".npz"))
    return [path] if any(EXPRESSIONS in some for some in keys) else []


def _languages(names: Collection[str], path: Path) -> str:
    folders = {name.rpartition("/")[0].removesuffix(f"/{CLIP_FOLDER}") or path.name for name in names}
    return _some(sorted(folders))


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_split_file(file: Path) -> dict[str, str]:
    """Reads the split of each clip from `train_test_split.csv`; raises UserError if its columns are missing."""
    try:
        with io.StringIO(read_text(file), newline="") as lines:
            rows = csv.DictReader(lines)
            columns = rows.fieldnames or []
            if not {"id", "type"} <= set(columns):
                raise UserError(f"{file}: needs the columns id and type; it has {', '.join(columns) or 'none'}")
            split: dict[str, str] = {}
            for row in rows:
                name, kind = (row["id"] or "").strip(), (row["type"] or "").strip()
                if name:
                    # Two different splits are joined to one unknown split, so that the clip is left out by its name.
                    split[name] = kind if split.get(name, kind) == kind else f"{split[name]} and {kind}"
            return split
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


def checked_arrays(arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Returns poses, positions and expressions of a clip; raises ClipError if a shape is wrong."""
    poses = matrix(arrays[POSES], POSES, 3 * len(SMPLX_JOINTS))
    positions = matrix(arrays[TRANS], TRANS, 3)
    expressions = matrix(arrays[EXPRESSIONS], EXPRESSIONS, NUM_EXPRESSIONS)
    counts = [len(poses), len(positions), len(expressions)]
    if len(set(counts)) > 1:
        raise ClipError("poses, trans and expressions have {}, {} and {} frames; they must be equal".format(*counts))
    return poses, positions, expressions


def rotations_and_positions(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Returns a clip's arrays in `smplx_layout`, with positions instead of velocities, float64 `[frames, 433]`.

    Frames with a NaN keep it. Raises ClipError.
    """
    poses, positions, expressions = checked_arrays(arrays)
    rotations = 6 * len(SMPLX_JOINTS)
    motion = np.empty((len(poses), rotations + 3 + NUM_EXPRESSIONS))
    write_rotation_6d(poses, motion[:, :rotations])
    motion[:, rotations : rotations + 3] = positions
    motion[:, rotations + 3 :] = expressions
    return motion
