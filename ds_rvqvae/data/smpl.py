"""SMPL-X and SMPL-H motion, one npz a clip, as AMASS and its kin keep it.

Sources: N. Mahmood et al., "AMASS: Archive of Motion Capture as Surface Shapes", ICCV 2019; G. Pavlakos et al.,
"Expressive Body Capture: 3D Hands, Face, and Body from a Single Image", CVPR 2019 (SMPL-X); J. Romero et al.,
"Embodied Hands", SIGGRAPH Asia 2017 (SMPL-H).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ds_rvqvae.data.clips import (
    ClipError,
    Reader,
    Take,
    file_size,
    files_below,
    frame_rate,
    load_npz,
    matrix,
    missing_key,
    npz_keys,
    npz_samples,
    refuse_speakers,
)
from ds_rvqvae.data.layout import SMPLH_JOINTS, SMPLX_JOINTS, joint_layout
from ds_rvqvae.data.split_lists import SplitLists, lists_of
from ds_rvqvae.profile import DataConfig

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


class SmplReader(Reader):
    """A folder of npz files at any depth, or one: `poses`, `trans` and the frame rate, in metres and radians.

    SMPL-X has 165 columns of axis-angle rotations (55 joints), SMPL-H 156 (52). Facial expressions are not read.
    `train.txt`, `val.txt` and `test.txt` in the folder or beside it list the clips of each split.
    """

    format = "SMPL-X or SMPL-H npz"
    key = "smpl"
    has_body_parts = True

    def __init__(self, path: Path, config: DataConfig):
        super().__init__(path, config)
        refuse_speakers(config, path)
        if path.is_file():
            self._files, self._lists = {path.stem: path}, SplitLists()
        else:
            self._files = _motion_files(path)
            self._lists = lists_of(path, self._files)

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() == ".npz" and POSES in npz_keys(path)
        return any(POSES in keys for keys in npz_samples(_motion_files(path).values()))

    def sources(self) -> list[Path]:
        return [*self._files.values(), *self._lists.files]

    def clip_names(self) -> list[str]:
        return sorted({*self._files, *self._lists.missing(self._files)})

    def file_of(self, name: str) -> str:
        if name not in self._files:
            return f"{name}.npz"
        return self.path.name if self._files[name] == self.path else self._files[name].relative_to(self.path).as_posix()

    def take(self, name: str) -> Take:
        if name not in self._files:
            raise ClipError(self._lists.why_missing(name))
        arrays = load_npz(self._files[name], (POSES, TRANS), FPS_KEYS)
        fps = self._fps(arrays, self._files[name])
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
        empty = ~(poses.any(axis=1) | trans.any(axis=1))
        return Take(name, motion, fps, layout, self._lists.split_of(name), empty, has_positions=True)

    def weight(self, name: str) -> int:
        return file_size(self._files.get(name))

    @staticmethod
    def _fps(arrays: Mapping[str, np.ndarray], file: Path) -> float:
        if not any(key in arrays for key in FPS_KEYS) and EXPRESSIONS not in (keys := npz_keys(file)):
            raise ClipError(missing_key(keys, " or ".join(FPS_KEYS)))
        return fps_of(arrays)


def fps_of(arrays: Mapping[str, np.ndarray]) -> float:
    """Frames a second of a clip's arrays, BEAT2's where they do not say; raises ClipError."""
    return next((frame_rate(arrays[key], key) for key in FPS_KEYS if key in arrays), BEAT2_FPS)


def write_rotation_6d(axis_angle: np.ndarray, out: np.ndarray) -> None:
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


def _write_block(axis_angle: np.ndarray, out: np.ndarray) -> None:
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


def _turn_upright(motion: np.ndarray) -> None:
    """Turns the root, in the first six and the last three columns, by -90 degrees about x: z up becomes y up."""
    motion[:, 3:6] = np.cross(motion[:, :3], motion[:, 3:6])
    y = motion[:, -2].copy()
    motion[:, -2], motion[:, -1] = motion[:, -1], -y


def _motion_files(folder: Path) -> dict[str, Path]:
    files = files_below(folder, (".npz",))
    return {name: file for name, file in files.items() if not file.name.endswith(_SHAPE_FILES)}
