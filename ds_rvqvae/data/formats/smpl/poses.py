"""SMPL-X and SMPL-H motion, one npz per clip, as in AMASS and similar data sets.

Sources: N. Mahmood et al., "AMASS: Archive of Motion Capture as Surface Shapes", ICCV 2019; G. Pavlakos et al.,
"Expressive Body Capture: 3D Hands, Face, and Body from a Single Image", CVPR 2019 (SMPL-X); J. Romero et al.,
"Embodied Hands", SIGGRAPH Asia 2017 (SMPL-H).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.base import (
    FilesReader,
    files_below,
    load_npz,
    load_npz_and_keys,
    matrix,
    missing_key,
    npz_keys,
    npz_samples,
    said_rate,
)
from ds_rvqvae.data.formats.npz import FPS_KEYS, frame_rate, other_rate, rate_of
from ds_rvqvae.data.formats.split_lists import SplitLists
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import SMPLH_JOINTS, SMPLX_JOINTS, joint_layout

POSES, TRANS, EXPRESSIONS = "poses", "trans", "expressions"
_FPS_KEYS_BEFORE = FPS_KEYS[:2]
"""The keys that versions up to 0.2 knew."""
BEAT2_FPS = 30.0
"""Assumed for a file with facial expressions that gives no frame rate."""
_UNSAID = (
    f"the file gives no frame rate: BEAT2's {BEAT2_FPS:g} fps is assumed; {to_say('source_fps', 'N')} sets another"
)
LAYOUTS = {3 * len(joints): joint_layout(joints, "translation") for joints in (SMPLX_JOINTS, SMPLH_JOINTS)}
"""Layouts by the number of axis-angle columns."""
_SHAPE_FILES = ("shape.npz", "stagei.npz")
"""Ends of the names of AMASS's files with a subject's shape, which hold no motion."""
_BLOCK = 512
"""Frames converted at a time: the temporary arrays of 55 joints stay in the processor's cache. With 4,096 frames they
do not, and it takes twice as long."""


class SmplReader(FilesReader):
    """Reader of npz files with `poses`, `trans` and the frame rate, in metres and radians: a folder or one file.

    SMPL-X has 165 columns of axis-angle rotations (55 joints), SMPL-H 156 (52). Facial expressions are not read.
    """

    format = "SMPL-X or SMPL-H npz"
    key = "smpl"
    suffix = ".npz"
    has_body_parts = True
    has_up_axis = True

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() == ".npz" and POSES in npz_keys(path)
        return any(POSES in keys for keys in npz_samples(cls.files_of(path).values()))

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        files = files_below(folder, (".npz",))
        return {name: file for name, file in files.items() if not _holds_no_motion(file)}

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        if path.is_file():
            return cls.matches(path)
        return any(POSES in keys for keys in npz_samples(cls._files_before(path).values()))

    @classmethod
    def _files_before(cls, folder: Path) -> dict[str, Path]:
        files = files_below(folder, (".npz",))
        return {name: file for name, file in files.items() if not file.name.endswith(_SHAPE_FILES)}

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        if self.config.reading_version > 1:
            return super()._find()
        files = self._files_before(self.path)
        return files, self._lists_of(files, [self.path], self.path.parent)

    def why_passed_over(self, file: Path) -> str:
        return "without poses, so without motion" if file.name.endswith(_SHAPE_FILES) else super().why_passed_over(file)

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        arrays, keys, fps, notes = load_motion(file, (POSES, TRANS), self.config)
        poses, trans = matrix(arrays[POSES], POSES), matrix(arrays[TRANS], TRANS, 3)
        if poses.shape[1] not in LAYOUTS:
            wanted = "165 (SMPL-X, 55 joints) or 156 (SMPL-H, 52)"
            raise ClipError(f"poses has shape {list(poses.shape)}, not [frames, {wanted}]")
        if len(poses) != len(trans):
            raise ClipError(f"poses and trans have {len(poses)} and {len(trans)} frames; they must be equal")
        layout = LAYOUTS[poses.shape[1]]
        motion = np.empty((len(poses), layout[-1].stop))
        write_rotation_6d(poses, motion[:, :-3])
        motion[:, -3:] = trans
        if self.config.up_axis == "z":
            turn_upright(motion)
        if self.config.format is None and self.config.reading_version > 1 and EXPRESSIONS in keys:
            notes += ("its facial expressions are not read; set rvqvae.data.format to beat2 to read them",)
        empty = np.asarray(~(poses.any(axis=1) | trans.any(axis=1)))
        return Take(name, motion, fps, layout, split, empty, has_positions=True, notes=notes)


def _holds_no_motion(file: Path) -> bool:
    """Returns whether a file is one of a subject's shape, by its name and its keys."""
    if file.name.endswith(_SHAPE_FILES):
        with suppress(ClipError):
            return POSES not in npz_keys(file)
    return False


class Loaded(NamedTuple):
    """Some arrays of a clip."""

    arrays: dict[str, NDArray[Any]]
    keys: list[str]
    """All keys of the file."""
    fps: float
    """Frames per second."""
    notes: tuple[str, ...]


def load_motion(file: Path, required: Sequence[str], config: DataConfig) -> Loaded:
    """Reads the required arrays of a clip and its frame rate.

    The rate is `rvqvae.data.source_fps`, else the one in the file, else BEAT2's if the file has facial expressions.

    Raises:
        ClipError: the file cannot be read, lacks one of the keys, or has no frame rate.
    """
    if config.source_fps is not None:
        return Loaded(
            *load_npz_and_keys(file, required), config.source_fps, other_rate(said_rate(file), config.source_fps)
        )
    before = config.reading_version == 1
    known = _FPS_KEYS_BEFORE if before else FPS_KEYS
    arrays, keys = load_npz_and_keys(file, required, known)
    if not any(key in arrays for key in known) and EXPRESSIONS not in keys:
        missing = missing_key(keys, f"{', '.join(known[:-1])} or {known[-1]}")
        raise ClipError(missing if before else f"{missing}; give {to_say('source_fps', 'N')}")
    if not before:
        is_said = any(key in arrays for key in known)
        return Loaded(arrays, keys, fps_of(arrays), () if is_said else (_UNSAID,))
    fps = next((frame_rate(arrays[key], key) for key in known if key in arrays), BEAT2_FPS)
    return Loaded(arrays, keys, fps, _differs_now(file, fps))


def _differs_now(file: Path, fps: float) -> tuple[str, ...]:
    """Returns a note if the file's frame rate is another one by today's rules."""
    try:
        now = rate_of(load_npz(file, (), FPS_KEYS)) or fps
        words = f"{now:g}"
    except ClipError:
        now, words = 0.0, "two rates or none"
    if now == fps:
        return ()
    return (
        f"read as versions up to 0.2 did: {fps:g} fps, but its keys say {words}; prepare again with "
        "reading_version 2 to use them",
    )


def fps_of(arrays: Mapping[str, NDArray[Any]]) -> float:
    """Returns the frame rate in a clip's arrays, or BEAT2's if they have none; raises ClipError."""
    return rate_of(arrays) or BEAT2_FPS


def write_rotation_6d(axis_angle: NDArray[Any], out: NDArray[np.floating[Any]]) -> None:
    """Converts rotations from axis times angle in radians to 6D, and writes them to `out`.

    With the Gibbs vector `g = axis * tan(angle / 2)`, the rotation is `I + 2 / (1 + g·g) * ([g] + [g][g])`. Only its
    first two rows are computed. This takes one tangent, which NumPy has vectorised, instead of a sine and a cosine. At
    pi the tangent of the nearest float64 is large but finite.

    Args:
        axis_angle: real `[frames, 3 * joints]`; a joint with NaN or infinite values becomes NaN.
        out: float `[frames, 6 * joints]`.
    """
    for start in range(0, len(axis_angle), _BLOCK):
        block = axis_angle[start : start + _BLOCK]
        _write_block(block.reshape(len(block), -1, 3), out[start : start + _BLOCK].reshape(len(block), -1, 6))


def _write_block(axis_angle: NDArray[np.floating[Any]], out: NDArray[np.floating[Any]]) -> None:
    """Converts `[frames, joints, 3]` to `[frames, joints, 6]`."""
    gibbs = np.empty((3, *axis_angle.shape[:2]))
    gibbs[:] = np.moveaxis(axis_angle, 2, 0)
    x, y, z = gibbs
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinite values are found by the rules
        angle = np.maximum(np.sqrt(x * x + y * y + z * z), 1e-150)  # gives the limit 1 / 2 instead of 0 / 0
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


def turns_z(config: DataConfig) -> bool:
    """Returns whether BEAT2 files are turned so that y points up; versions up to 0.2 turned only other SMPL files."""
    return config.up_axis == "z" and config.reading_version > 1


def turn_upright(motion: NDArray[np.floating[Any]]) -> None:
    """Turns the root, in the first six and the last three columns, by -90 degrees about x: z up becomes y up."""
    motion[:, 3:6] = np.cross(motion[:, :3], motion[:, 3:6])
    y = motion[:, -2].copy()
    motion[:, -2], motion[:, -1] = motion[:, -1], -y
