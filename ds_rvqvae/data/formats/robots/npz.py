"""The reader of humanoid robots' motion as npz, one clip per file.

Published forms:

- whole_body_tracking's (https://github.com/HybridRobotics/whole_body_tracking, `scripts/csv_to_npz.py`, and mjlab's
  script of that name): `fps` `[1]`, `joint_pos` and `joint_vel` `[T, J]`, `body_pos_w` `[T, B, 3]`, `body_quat_w`
  `[T, B, 4]` (w, x, y, z), `body_lin_vel_w` and `body_ang_vel_w` `[T, B, 3]`; the first body is the base link. Some
  files also have `joint_names` and `body_names`. Isaac Lab counts joints breadth first, MuJoCo depth first.
- AMASS and others retargeted to robots (pickles of PHC, https://github.com/ZhengyiLuo/PHC, and GMR,
  https://github.com/YanjieZe/GMR), made npz: `root_trans_offset` or `root_pos` `[T, 3]`, `root_rot` `[T, 4]` (x, y, z,
  w), `dof` or `dof_pos` `[T, J]`, `fps`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.base import (
    FilesReader,
    files_below,
    load_npz_and_keys,
    matrix,
    missing_key,
    npz_keys,
    npz_samples,
    said_rate,
)
from ds_rvqvae.data.formats.npz import FPS_KEYS, other_rate, rate_of
from ds_rvqvae.data.formats.robots.columns import (
    limit_notes,
    motion_of,
    moving_joints,
    named_joints,
    robot_layout,
    robot_of,
)
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.skeleton import Skeleton, joint_places, matrices_of_quaternions

TRACKING = ("joint_pos", "body_pos_w", "body_quat_w")
RETARGETED = (("dof", "dof_pos"), ("root_trans_offset", "root_pos", "root_trans"), ("root_rot",))
"""Keys of retargeted motion: the angles, the root's positions and its quaternions, each under one of several names."""
JOINT_NAMES, BODY_NAMES = "joint_names", "body_names"
_MOST_SAMPLED = 16
_FITS = 0.02
"""Metres: a robot's links are this near to the bodies in a file that is of this robot."""


class NpzMotion(NamedTuple):
    """The motion of a file, z up."""

    places: NDArray[np.float64]
    """The root's positions, `[frames, 3]` metres."""
    quaternions: NDArray[np.float64]
    """The root's, w, x, y, z, `[frames, 4]`."""
    angles: NDArray[np.float64]
    """`[frames, joints]`."""
    names: tuple[str, ...] | None
    """The joints' names in the file."""
    bodies: NDArray[np.float64] | None
    """Positions of all bodies, `[frames, bodies, 3]` metres, if the file has them."""


class RobotNpzReader(FilesReader):
    """Reader of a folder of npz files at any depth, or of one such file.

    Columns, names and axes are those of robots' csv (`ds_rvqvae.data.formats.robots.csv`). With `rvqvae.data.robot`,
    joints without names get those of the robot in the order, depth first or breadth first, that puts its links where
    the file has the bodies.
    """

    format = "robot npz"
    key = "robot_npz"
    suffix = ".npz"

    def __init__(self, path: Path, config: DataConfig) -> None:
        self._robot = robot_of(config)
        super().__init__(path, config)
        if self._robot is None:
            self.readings += ("no kinematics, as rvqvae.data.robot names no MJCF or URDF",)

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() == ".npz" and is_robot(npz_keys(path))
        return any(is_robot(keys) for keys in npz_samples(cls.files_of(path).values()))

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        return False

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        return files_below(folder, (".npz",))

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        arrays, fps, notes = load_robot(file, self.config)
        content = motion_in(arrays)
        lengths = np.linalg.norm(content.quaternions, axis=1, keepdims=True)
        wrong = ~(np.abs(lengths - 1) < 0.01)
        with np.errstate(divide="ignore", invalid="ignore"):
            matrices = matrices_of_quaternions(content.quaternions / np.where(wrong, np.nan, lengths))
        if wrong.any():
            notes = (*notes, f"the root's quaternion has not the length 1 in {int(wrong.sum())} frames, left out")
        joints, how = joints_of(content, matrices, self._robot)
        notes = (*notes, *how, *limit_notes(self._robot, joints, content.angles))
        empty = np.asarray(~np.concatenate([content.places, content.quaternions, content.angles], axis=1).any(axis=1))
        skeleton = self.config.robot if isinstance(self.config.robot, dict) else None
        motion, layout = motion_of(content.places, matrices, content.angles), robot_layout(self._robot, joints)
        return Take(name, motion, fps, layout, split, empty, has_positions=True, skeleton=skeleton, notes=notes)


def is_robot(keys: Collection[str]) -> bool:
    """Returns whether an npz with these keys holds a robot's motion."""
    return set(TRACKING) <= set(keys) or all(any(key in keys for key in names) for names in RETARGETED)


def load_robot(file: Path, config: DataConfig) -> tuple[dict[str, NDArray[Any]], float, tuple[str, ...]]:
    """Reads the arrays of a robot's motion, its frame rate, and notes; raises ClipError."""
    keys = npz_keys(file)
    if not is_robot(keys):
        raise ClipError(missing_key(keys, "joint_pos, or dof and root_rot"))
    wanted = (*TRACKING, *(key for names in RETARGETED for key in names), JOINT_NAMES, BODY_NAMES)
    rates = () if config.source_fps is not None else FPS_KEYS
    arrays, _ = load_npz_and_keys(file, [key for key in wanted if key in keys], rates)
    if config.source_fps is not None:
        return arrays, config.source_fps, other_rate(said_rate(file), config.source_fps)
    fps = rate_of(arrays)
    if fps is None:
        raise ClipError(f"{missing_key(keys, 'fps')}; give {to_say('source_fps', 'N')}")
    return arrays, fps, ()


def motion_in(arrays: Mapping[str, NDArray[Any]]) -> NpzMotion:
    """Returns the motion in a file's arrays; raises ClipError if their shapes do not fit."""
    names = _names(arrays, JOINT_NAMES)
    if all(key in arrays for key in TRACKING):
        angles = matrix(arrays["joint_pos"], "joint_pos").astype(np.float64)
        places, turns = (_bodies(arrays[key], key, width) for key, width in (("body_pos_w", 3), ("body_quat_w", 4)))
        bodies = places
        places, turns = places[:, 0], turns[:, 0]
    else:
        keys = [next(key for key in some if key in arrays) for some in RETARGETED]
        values = arrays[keys[0]]
        values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
        angles, bodies = matrix(values, keys[0]).astype(np.float64), None
        places = matrix(arrays[keys[1]], keys[1], 3).astype(np.float64)
        turns = matrix(arrays[keys[2]], keys[2], 4).astype(np.float64)[:, [3, 0, 1, 2]]
    lengths = {"the angles": len(angles), "the root's positions": len(places), "its quaternions": len(turns)}
    if len(set(lengths.values())) > 1:
        there = ", ".join(f"{what} {count}" for what, count in lengths.items())
        raise ClipError(f"its arrays have different numbers of frames: {there}")
    if names is not None and len(names) != angles.shape[1]:
        raise ClipError(f"{JOINT_NAMES} has {len(names)} names for {angles.shape[1]} joints")
    return NpzMotion(places, turns, angles, names, bodies)


def _bodies(values: NDArray[Any], key: str, width: int) -> NDArray[np.float64]:
    if values.dtype.kind not in "fiu" or values.ndim != 3 or values.shape[2] != width or not values.size:
        raise ClipError(
            f"{key} holds {str(values.dtype)[:40]} of shape {list(values.shape)}, not [frames, bodies, {width}]"
        )
    return values.astype(np.float64)


def _names(arrays: Mapping[str, NDArray[Any]], key: str) -> tuple[str, ...] | None:
    """Returns the names under a key, or None without one; raises ClipError if they are no names."""
    if key not in arrays:
        return None
    values = arrays[key]
    if values.dtype.kind not in "US" or values.ndim != 1 or len(set(values.tolist())) < len(values):
        raise ClipError(f"{key} is no list of different names")
    texts = (name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in values.tolist())
    return tuple("".join(letter if letter.isprintable() else "?" for letter in name)[:200] for name in texts)


def joints_of(
    content: NpzMotion, matrices: NDArray[np.float64], robot: Skeleton | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the joints' names in the file's order, and notes; raises ClipError if the robot is another one."""
    count = content.angles.shape[1]
    first = named_joints(robot, count, content.names)
    if robot is None or content.names is not None:
        return first, ()
    if content.bodies is None:
        return first, ("its joints are taken to be in the order of the robot's file, as it does not name them",)
    orders = {"depth first": first, "breadth first": breadth_first(robot)}
    misses = {how: _miss(content, matrices, robot, joints) for how, joints in orders.items()}
    how = min(misses, key=misses.__getitem__)
    if not misses[how] < _FITS:
        raise ClipError(
            f"rvqvae.data.robot does not fit its bodies: they are {misses[how]:.3g} m from the nearest links, with "
            "joints counted depth first or breadth first"
        )
    return orders[how], ()


def breadth_first(robot: Skeleton) -> tuple[str, ...]:
    """Returns the names of a robot's moving joints as Isaac Lab counts them: level by level, without fixed links.

    Within a level the joints keep the order of the robot's file, which differs from that of their parents' children
    only if links of one level stand in another order.
    """
    moving, depths = set(moving_joints(robot)), list[int]()
    for name, parent in zip(robot.joint_names, robot.parents, strict=True):
        depths.append((depths[parent] if parent >= 0 else 0) + (name in moving))
    order = sorted(range(len(depths)), key=depths.__getitem__)
    return tuple(robot.joint_names[joint] for joint in order if robot.joint_names[joint] in moving)


def _miss(content: NpzMotion, matrices: NDArray[np.float64], robot: Skeleton, joints: tuple[str, ...]) -> float:
    """Returns how far the bodies in a file are from the robot's nearest links, metres, mean over some frames."""
    assert content.bodies is not None
    good = np.isfinite(content.bodies).all(axis=(1, 2)) & np.isfinite(content.angles).all(axis=1)
    good &= np.isfinite(matrices).all(axis=(1, 2))
    frames = np.flatnonzero(good)
    frames = (
        frames[np.unique(np.linspace(0, len(frames) - 1, _MOST_SAMPLED).astype(np.int64))] if len(frames) else frames
    )
    if not len(frames):
        return 0.0  # nothing in the file can be used, which the rules report
    turns = matrices[frames, :2].reshape(-1, 6)
    columns = np.concatenate([turns, content.angles[frames]], axis=1)
    places = joint_places(columns, robot_layout(robot, joints)[:-1], robot)
    assert places is not None
    links = places - places[:, :1]
    bodies = content.bodies[frames] - content.bodies[frames, :1]
    distances = np.linalg.norm(bodies[:, :, None] - links[:, None], axis=-1)
    return float(distances.min(axis=2).mean())
