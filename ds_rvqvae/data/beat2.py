"""BEAT2: SMPL-X poses, root translation and facial expressions, one npz a clip.

Source: H. Liu et al., "EMAGE: Towards Unified Holistic Co-Speech Gesture Generation", CVPR 2024.
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ds_rvqvae.data.clips import (
    ClipError,
    Reader,
    Take,
    file_size,
    load_npz,
    matrix,
    no_file,
    npz_keys,
    npz_samples,
    visible_files,
)
from ds_rvqvae.data.layout import NUM_EXPRESSIONS, SMPLX_JOINTS, smplx_layout
from ds_rvqvae.data.smpl import EXPRESSIONS, FPS_KEYS, POSES, TRANS, fps_of, write_rotation_6d
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import DataConfig

CLIP_FOLDER = "smplxflame_30"
SPLIT_FILE = "train_test_split.csv"
MOTION_KEYS = (POSES, TRANS, EXPRESSIONS)


class Beat2Reader(Reader):
    """A BEAT2 folder, its folder of npz files, or one such npz.

    A clip listed in `train_test_split.csv` without a file is left out with that reason; a file that it does not list
    counts as `additional`. A single file has no split.
    """

    format = "BEAT2 npz"
    key = "beat2"
    has_body_parts = True
    certain = True

    def __init__(self, path: Path, config: DataConfig):
        super().__init__(path, config)
        self._split_file: Path | None = None
        if path.is_file():
            self._files = {path.stem: path}
        else:
            folder = path / CLIP_FOLDER if (path / CLIP_FOLDER).is_dir() else path
            self._files = {file.stem: file for file in visible_files(folder, ".npz")}
            beside = (folder / SPLIT_FILE, folder.parent / SPLIT_FILE)
            self._split_file = next((file for file in beside if file.is_file()), None)
        self._split = read_split_file(self._split_file) if self._split_file else {}
        self._names = self._of_speakers(sorted({*self._files, *self._split}))

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix == ".npz" and EXPRESSIONS in npz_keys(path)
        return (path / CLIP_FOLDER).is_dir() or any(
            EXPRESSIONS in keys for keys in npz_samples(visible_files(path, ".npz"))
        )

    def sources(self) -> list[Path]:
        files = [self._files[name] for name in self._names if name in self._files]
        return files if self._split_file is None else [*files, self._split_file]

    def clip_names(self) -> list[str]:
        return self._names

    def file_of(self, name: str) -> str:
        return self._files[name].name if name in self._files else f"{name}.npz"

    def take(self, name: str) -> Take:
        if name not in self._files:
            raise ClipError(f"{SPLIT_FILE} lists it, but {no_file(name)}")
        arrays = load_npz(self._files[name], MOTION_KEYS, FPS_KEYS)
        motion = rotations_and_positions(arrays)
        split = self._split.get(name, "additional") if self._split_file else None
        empty = ~np.logical_or.reduce([arrays[key].any(axis=1) for key in MOTION_KEYS])
        return Take(name, motion, fps_of(arrays), smplx_layout(), split, empty, has_positions=True)

    def weight(self, name: str) -> int:
        return file_size(self._files.get(name))

    def _of_speakers(self, names: list[str]) -> list[str]:
        if self.config.speakers is None:
            return names
        speakers = {name: int(number[0]) for name in names if (number := re.match(r"\d{1,18}(?!\d)", name))}
        wanted = [name for name in names if speakers.get(name) in self.config.speakers]
        if not wanted:
            there = ", ".join(map(str, sorted(set(speakers.values())))) or "none"
            raise UserError(
                f"rvqvae.data.speakers: {', '.join(map(str, self.config.speakers))} have no clip in {self.path}; "
                f"speakers there: {there}"
            )
        return wanted


def read_split_file(file: Path) -> dict[str, str]:
    """The split of each clip by `train_test_split.csv`; raises UserError where its columns are not there."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            columns = rows.fieldnames or []
            if not {"id", "type"} <= set(columns):
                raise UserError(f"{file}: needs the columns id and type; it has {', '.join(columns) or 'none'}")
            split: dict[str, str] = {}
            for row in rows:
                name, kind = (row["id"] or "").strip(), (row["type"] or "").strip()
                if name:
                    # Two answers make a split that is none of the known ones, which leaves the clip out by name.
                    split[name] = kind if split.get(name, kind) == kind else f"{split[name]} and {kind}"
            return split
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


def rotations_and_positions(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """A clip's arrays as `smplx_layout` has them, but with positions for velocities, float64 `[frames, 433]`.

    Frames with a NaN keep it. Raises ClipError.
    """
    poses = matrix(arrays[POSES], POSES, 3 * len(SMPLX_JOINTS))
    positions = matrix(arrays[TRANS], TRANS, 3)
    expressions = matrix(arrays[EXPRESSIONS], EXPRESSIONS, NUM_EXPRESSIONS)
    counts = [len(poses), len(positions), len(expressions)]
    if len(set(counts)) > 1:
        raise ClipError("poses, trans and expressions have {}, {} and {} frames, not as many".format(*counts))
    rotations = 6 * len(SMPLX_JOINTS)
    motion = np.empty((len(poses), rotations + 3 + NUM_EXPRESSIONS))
    write_rotation_6d(poses, motion[:, :rotations])
    motion[:, rotations : rotations + 3] = positions
    motion[:, rotations + 3 :] = expressions
    return motion
