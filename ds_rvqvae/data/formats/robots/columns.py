"""The columns that all files of robots' motion become: the root's rotation, an angle per joint, the root's position."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.smpl.poses import turn_upright
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import TRANSLATION, Channels, Layout
from ds_rvqvae.motion.rotations import matrix_to_rotation_6d
from ds_rvqvae.motion.skeleton import Skeleton, skeleton_from_json, slides_of

ROOT = "root"
"""The name of the root's rotation without a robot's file."""
_BEYOND = 0.05
"""Radians (slides: metres / 5) that a joint may be beyond its limits unmentioned."""
_NAMED = 4


def robot_of(config: DataConfig) -> Skeleton | None:
    """Returns the robot of `rvqvae.data.robot`, or None without one; raises UserError if it is none."""
    if config.robot is None:
        return None
    assert isinstance(config.robot, dict), "`open_reader` puts the content in place of the file's name"
    try:
        robot = skeleton_from_json(config.robot, "rvqvae.data.robot")
    except ClipError as error:
        raise UserError(f"rvqvae.data.robot: {error}") from None
    if not moving_joints(robot):
        raise UserError("rvqvae.data.robot: it has no joint with an axis")
    return robot


def moving_joints(robot: Skeleton) -> tuple[str, ...]:
    """Returns the names of a robot's joints that turn or slide, in its file's order."""
    axes = np.zeros((len(robot.joint_names), 3)) if robot.axes is None else robot.axes
    return tuple(name for name, axis in zip(robot.joint_names, axes, strict=True) if axis.any())


def named_joints(robot: Skeleton | None, count: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of a file's joints.

    Args:
        count: of the file's joints.
        names: in the file, with or without the ending `_joint`; None if it has none.

    Raises:
        ClipError: the robot has another number of joints, or others.
    """
    if robot is None:
        return tuple(names) if names is not None else tuple(f"joint_{joint}" for joint in range(count))
    own = moving_joints(robot)
    if len(own) != count:
        raise ClipError(f"has {count} joints, but rvqvae.data.robot has {len(own)} that turn or slide")
    if names is None:
        return own
    plain = {name.removesuffix("_joint"): name for name in own}
    other = [name for name in names if name.removesuffix("_joint") not in plain]
    if other:
        raise ClipError(f"{len(other)} of its {count} joints are none of rvqvae.data.robot, as {other[0][:40]}")
    return tuple(plain[name.removesuffix("_joint")] for name in names)


def robot_layout(robot: Skeleton | None, joints: Sequence[str]) -> Layout:
    """Returns the layout of `motion_of`: the base link's rotation, a column per joint, the root's position."""
    base = ROOT if robot is None else robot.joint_names[0]
    if base in joints:
        raise ClipError(f"a joint is called {base}, as the root")
    angles = [Channels(name, "angle", 6 + joint, 7 + joint) for joint, name in enumerate(joints)]
    end = 6 + len(joints)
    return Channels(base, "rotation_6d", 0, 6), *angles, Channels(TRANSLATION, "translation", end, end + 3)


def motion_of(
    places: NDArray[np.float64], matrices: NDArray[np.float64], angles: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the columns of `robot_layout` with y up, `[frames, 6 + joints + 3]`.

    Args:
        places: the root's positions in metres, z up, `[frames, 3]`.
        matrices: the root's rotations, z up, `[frames, 3, 3]`.
        angles: `[frames, joints]` radians, or metres of slides.
    """
    motion = np.concatenate([matrix_to_rotation_6d(matrices), angles, places], axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        turn_upright(motion)
    return motion


def are_slides(robot: Skeleton | None, joints: Sequence[str]) -> NDArray[np.bool_]:
    """Returns whether each joint slides, bool `[joints]`; without a robot none does."""
    slides = slides_of(robot)
    return np.array([name in slides for name in joints], bool)


def limit_notes(robot: Skeleton | None, joints: Sequence[str], angles: NDArray[np.float64]) -> tuple[str, ...]:
    """Returns a note on joints that are beyond the robot's limits by more than a small margin."""
    if robot is None or robot.limits is None or not len(angles):
        return ()
    low, high = robot.limits[[robot.joint_names.index(name) for name in joints]].T
    margin = np.where(are_slides(robot, joints), _BEYOND / 5, _BEYOND)
    with np.errstate(invalid="ignore"):
        beyond = ((angles < low - margin) | (angles > high + margin)).sum(axis=0)
    worst = [joint for joint in np.argsort(-beyond, kind="stable").tolist() if beyond[joint]]
    if not worst:
        return ()
    some = ", ".join(f"{joints[joint]} in {beyond[joint]}" for joint in worst[:_NAMED])
    more = f" and {len(worst) - _NAMED} more joints" if len(worst) > _NAMED else ""
    return (f"beyond the robot's limits: {some}{more} of {len(angles)} frames",)
