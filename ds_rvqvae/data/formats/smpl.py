"""SMPL-X and SMPL-H motion, one npz a clip, as AMASS and its kin keep it.

Sources: N. Mahmood et al., "AMASS: Archive of Motion Capture as Surface Shapes", ICCV 2019; G. Pavlakos et al.,
"Expressive Body Capture: 3D Hands, Face, and Body from a Single Image", CVPR 2019 (SMPL-X); J. Romero et al.,
"Embodied Hands", SIGGRAPH Asia 2017 (SMPL-H).
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import (
    FilesReader,
    Reader,
    file_size,
    files_below,
    frame_rate,
    load_npz,
    matrix,
    missing_key,
    no_file,
    npz_keys,
    npz_samples,
    visible_files,
)
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import NUM_EXPRESSIONS, SMPLH_JOINTS, SMPLX_JOINTS, joint_layout, smplx_layout

POSES, TRANS, EXPRESSIONS = "poses", "trans", "expressions"
FPS_KEYS = ("mocap_frame_rate", "mocap_framerate")
"""The frame rate stands under one of these."""
BEAT2_FPS = 30.0
"""Of a file with facial expressions that does not say."""
LAYOUTS = {3 * len(joints): joint_layout(joints, "translation") for joints in (SMPLX_JOINTS, SMPLH_JOINTS)}
"""By the number of axis-angle columns."""
_SHAPE_FILES = ("shape.npz", "stagei.npz")
"""How the names of AMASS's files of a subject's shape end, which hold no motion."""
_BLOCK = 512
"""Frames converted at a time: the temporaries of 55 joints stay in the processor's cache (at 4,096 frames they do not,
and it takes twice as long)."""


class SmplReader(FilesReader):
    """A folder of npz files at any depth, or one: `poses`, `trans` and the frame rate, in metres and radians.

    SMPL-X has 165 columns of axis-angle rotations (55 joints), SMPL-H 156 (52). Facial expressions are not read.
    """

    format = "SMPL-X or SMPL-H npz"
    key = "smpl"
    suffix = ".npz"
    has_body_parts = True

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() == ".npz" and POSES in npz_keys(path)
        return any(POSES in keys for keys in npz_samples(cls.files_of(path).values()))

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        files = files_below(folder, (".npz",))
        return {name: file for name, file in files.items() if not file.name.endswith(_SHAPE_FILES)}

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        arrays = load_npz(file, (POSES, TRANS), FPS_KEYS)
        fps = self._fps(arrays, file)
        poses, trans = matrix(arrays[POSES], POSES), matrix(arrays[TRANS], TRANS, 3)
        if poses.shape[1] not in LAYOUTS:
            wanted = "165 (SMPL-X, 55 joints) or 156 (SMPL-H, 52)"
            raise ClipError(f"poses has shape {list(poses.shape)}, not [frames, {wanted}]")
        if len(poses) != len(trans):
            raise ClipError(f"poses and trans have {len(poses)} and {len(trans)} frames, not as many")
        layout = LAYOUTS[poses.shape[1]]
        motion = np.empty((len(poses), layout[-1].stop))
        write_rotation_6d(poses, motion[:, :-3])
        motion[:, -3:] = trans
        if self.config.up_axis == "z":
            _turn_upright(motion)
        empty = np.asarray(~(poses.any(axis=1) | trans.any(axis=1)))
        return Take(name, motion, fps, layout, split, empty, has_positions=True)

    @staticmethod
    def _fps(arrays: Mapping[str, NDArray[Any]], file: Path) -> float:
        if not any(key in arrays for key in FPS_KEYS) and EXPRESSIONS not in (keys := npz_keys(file)):
            raise ClipError(missing_key(keys, " or ".join(FPS_KEYS)))
        return fps_of(arrays)


def fps_of(arrays: Mapping[str, NDArray[Any]]) -> float:
    """Frames a second of a clip's arrays, BEAT2's where they do not say; raises ClipError."""
    return next((frame_rate(arrays[key], key) for key in FPS_KEYS if key in arrays), BEAT2_FPS)


def write_rotation_6d(axis_angle: NDArray[Any], out: NDArray[np.floating[Any]]) -> None:
    """Writes rotations given as axis times angle in radians as 6D.

    With the Gibbs vector `g = axis * tan(angle / 2)` the rotation is `I + 2 / (1 + g·g) * ([g] + [g][g])`, of which
    only the first two rows are computed: one tangent, which NumPy has vectorised, for a sine and a cosine. At pi the
    tangent of the nearest float64 is large but finite.

    Args:
        axis_angle: real `[frames, 3 * joints]`; a joint with NaN or infinite values becomes NaN.
        out: float `[frames, 6 * joints]`.
    """
    for start in range(0, len(axis_angle), _BLOCK):
        block = axis_angle[start : start + _BLOCK]
        _write_block(block.reshape(len(block), -1, 3), out[start : start + _BLOCK].reshape(len(block), -1, 6))


def _write_block(axis_angle: NDArray[np.floating[Any]], out: NDArray[np.floating[Any]]) -> None:
    """`[frames, joints, 3]` to `[frames, joints, 6]`."""
    gibbs = np.empty((3, *axis_angle.shape[:2]))
    gibbs[:] = np.moveaxis(axis_angle, 2, 0)
    x, y, z = gibbs
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinite values are found by the rules
        angle = np.maximum(np.sqrt(x * x + y * y + z * z), 1e-150)  # for 0 / 0, the limit 1 / 2
        gibbs *= np.tan(angle / 2) / angle
        xx, yy, zz = gibbs * gibbs
        scale = 2 / (1 + (xx + yy + zz))
        out[..., 0] = 1 - scale * (yy + zz)
        out[..., 4] = 1 - scale * (xx + zz)
        scaled_x, scaled_y, scaled_z = gibbs * scale
        xy = scaled_x * y
        out[..., 1] = xy - scaled_z
        out[..., 3] = xy + scaled_z
        out[..., 2] = scaled_x * z + scaled_y
        out[..., 5] = scaled_y * z - scaled_x


def _turn_upright(motion: NDArray[np.floating[Any]]) -> None:
    """Turns the root, in the first six and the last three columns, by -90 degrees about x: z up becomes y up."""
    motion[:, 3:6] = np.cross(motion[:, :3], motion[:, 3:6])
    y = motion[:, -2].copy()
    motion[:, -2], motion[:, -1] = motion[:, -1], -y


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
    certainty = 1

    def __init__(self, path: Path, config: DataConfig) -> None:
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
        empty = ~np.logical_or.reduce([arrays[key].any(axis=1) for key in MOTION_KEYS])
        return Take(name, motion, fps_of(arrays), smplx_layout(), self.split_of(name), empty, has_positions=True)

    def source_of(self, name: str) -> Path | None:
        return self._files.get(name)

    def split_of(self, name: str) -> str | None:
        return self._split.get(name, "additional") if self._split_file else None

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


def rotations_and_positions(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
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
