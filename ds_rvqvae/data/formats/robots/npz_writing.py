"""Writes robots' motion as npz, with the keys, dtypes, shapes and orders of joints and bodies of a source."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import load_npz, npz_keys
from ds_rvqvae.data.formats.npz import FPS_KEYS, write_npz
from ds_rvqvae.data.formats.robots.columns import motion_of, robot_layout, robot_of
from ds_rvqvae.data.formats.robots.npz import (
    BODY_NAMES,
    JOINT_NAMES,
    RETARGETED,
    TRACKING,
    NpzMotion,
    joints_of,
    load_robot,
    motion_in,
)
from ds_rvqvae.data.formats.written import Written
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import ClipError, UnfitError, check_finite
from ds_rvqvae.motion.layout import Layout, missing_channels, rotation_columns
from ds_rvqvae.motion.rotations import matrix_to_axis_angle, resample, rotation_6d_to_matrix, translation_positions
from ds_rvqvae.motion.skeleton import Skeleton, joint_places, matrices_of_quaternions

_FITS = 0.02
"""Metres, and a fifth of it for the entries of rotation matrices: a body in the file is this near to its link."""
_SAMPLED = 16


def write_robot_npz(
    file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Path | None, config: DataConfig
) -> Written:
    """Writes a robot's motion as npz (`ds_rvqvae.data.formats.written.Write`).

    Bodies of whole_body_tracking's files are placed by the kinematics of `rvqvae.data.robot`; their velocities are
    central differences of the links' origins; its own `csv_to_npz.py` takes those of a simulator.
    """
    if source is None:
        raise UnfitError("a robot's npz is written with the arrays of a source only")
    try:
        robot = robot_of(config)
    except UserError as error:
        raise UnfitError(str(error)) from None
    arrays, own, _ = load_robot(source, config)
    content = motion_in(arrays)
    joints, _ = joints_of(content, _matrices(content), robot)
    columns = _columns(content, motion, layout, (own, fps), robot_layout(robot, joints))
    upright = rotation_6d_to_matrix(columns[:, :6])
    matrices = np.stack([upright[:, 0], -upright[:, 2], upright[:, 1]], axis=1)
    x, y, z = columns[:, -3:].T
    places, angles = np.stack([x, -z, y], axis=1), columns[:, 6:-3]
    if content.bodies is None:
        made = _retargeted(arrays, places, matrices, angles)
    elif robot is None:
        raise UnfitError("body_pos_w and body_quat_w need the robot's kinematics: prepare the data with --robot FILE")
    else:
        made = _tracking(content, arrays, (places, matrices, angles), robot, joints, fps)
    keys = npz_keys(source)
    rates = load_npz(source, (), FPS_KEYS)
    for key, values in rates.items():
        is_whole = values.dtype.kind in "iu" and fps == int(fps)
        made[key] = np.full(values.shape, fps, values.dtype if values.dtype.kind == "f" or is_whole else np.float64)
    if not rates:
        made["fps"] = np.array([fps])
    made |= {key: arrays[key] for key in (JOINT_NAMES, BODY_NAMES) if key in arrays}
    with whole_file(file) as stream:
        write_npz(stream, {key: made[key] for key in (*keys, *made) if key in made})
    others = [key for key in keys if key not in made]
    note = "the source has other arrays, which are left out"
    return Written(own, (note,) if others else (), (f"left out: {', '.join(others)}",) if others else ())


def _columns(
    content: NpzMotion, motion: NDArray[Any], layout: Layout, rates: tuple[float, float], own: Layout
) -> NDArray[np.float64]:
    """Returns the source's columns at the new rate, with those of the motion in their places."""
    missing = missing_channels(own, layout)
    if missing is not None:
        raise UnfitError(f"{missing.name} ({missing.kind}) is no column of this npz")
    columns = motion_of(content.places, _matrices(content), content.angles)
    check_finite(columns)
    try:
        columns = resample(columns, rotation_columns(own), *rates).copy()
    except ValueError as error:
        raise ClipError(f"cannot be resampled from {rates[0]:g} to {rates[1]:g} fps: {error}") from None
    if len(columns) != len(motion):
        raise UnfitError(f"the source has {len(columns)} frames at {rates[1]:g} fps, but the motion has {len(motion)}")
    start, places = (float(columns[0, -3]), float(columns[0, -1])), {part.name: part for part in own}
    for part in layout:
        values = motion[:, part.start : part.stop].astype(np.float64)
        if part.kind == "translation":
            values = translation_positions(values, start)
        columns[:, places[part.name].start : places[part.name].stop] = values
    return columns


def _matrices(content: NpzMotion) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.linalg.norm(content.quaternions, axis=1, keepdims=True)
        return matrices_of_quaternions(content.quaternions / lengths)


def _like(values: NDArray[np.float64], source: NDArray[Any]) -> NDArray[Any]:
    dtype = source.dtype if source.dtype.kind == "f" else np.dtype(np.float32)
    return np.ascontiguousarray(values.reshape(len(values), *source.shape[1:]), dtype)


def _retargeted(
    arrays: dict[str, NDArray[Any]],
    places: NDArray[np.float64],
    matrices: NDArray[np.float64],
    angles: NDArray[np.float64],
) -> dict[str, NDArray[Any]]:
    keys = [next(key for key in some if key in arrays) for some in RETARGETED]
    made = zip(keys, (angles, places, _quaternions(matrices)[:, [1, 2, 3, 0]]), strict=True)
    return {key: _like(values, arrays[key]) for key, values in made}


def _tracking(
    content: NpzMotion,
    arrays: dict[str, NDArray[Any]],
    motion: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    robot: Skeleton,
    joints: tuple[str, ...],
    fps: float,
) -> dict[str, NDArray[Any]]:
    """Returns whole_body_tracking's arrays; raises UnfitError if a body of the source is no link of the robot."""
    links = _links_of(content, arrays, robot, joints)
    places, turns = _world(*motion, robot, joints)
    places, turns = places[:, links], turns[:, links]
    made = {
        "joint_pos": motion[2],
        "joint_vel": np.gradient(motion[2], 1 / fps, axis=0),
        "body_pos_w": places,
        "body_quat_w": _quaternions(turns),
        "body_lin_vel_w": np.gradient(places, 1 / fps, axis=0),
        "body_ang_vel_w": _turning(turns, fps),
    }
    shapes = {"joint_vel": "joint_pos", "body_lin_vel_w": "body_pos_w", "body_ang_vel_w": "body_pos_w"}
    return {key: _like(values, arrays[shapes.get(key, key)]) for key, values in made.items()}


def _links_of(
    content: NpzMotion, arrays: dict[str, NDArray[Any]], robot: Skeleton, joints: tuple[str, ...]
) -> list[int]:
    """Returns the node of the robot that each body of a source is."""
    frames = np.unique(np.linspace(0, len(content.places) - 1, _SAMPLED).astype(np.int64))
    places, turns = _world(content.places[frames], _matrices(content)[frames], content.angles[frames], robot, joints)
    found = []
    for body in range(arrays[TRACKING[1]].shape[1]):
        own = arrays["body_quat_w"][frames, body].astype(np.float64)
        matrices = matrices_of_quaternions(own / np.linalg.norm(own, axis=1, keepdims=True))
        away = np.linalg.norm(places - arrays["body_pos_w"][frames, body, None], axis=-1).mean(axis=0)
        turned = np.abs(turns - matrices[:, None]).mean(axis=(0, 2, 3))
        link = int((away + turned).argmin())
        if not (away[link] < _FITS and turned[link] < 5 * _FITS):
            raise UnfitError(f"body {body} of the source is no link of rvqvae.data.robot")
        found.append(link)
    return found


def _world(
    places: NDArray[np.float64],
    matrices: NDArray[np.float64],
    angles: NDArray[np.float64],
    robot: Skeleton,
    joints: tuple[str, ...],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns positions `[frames, nodes, 3]` and rotations `[frames, nodes, 3, 3]` of a robot's nodes in the world."""
    count = len(robot.joint_names)
    still = np.tile(np.eye(3), (3 * count, 1, 1))
    # A node one metre along each axis of each node shows how that is turned.
    added = replace(
        robot,
        joint_names=(*robot.joint_names, *(f"{name} {axis}" for name in robot.joint_names for axis in "xyz")),
        parents=(*robot.parents, *np.repeat(np.arange(count), 3).tolist()),
        offsets=np.concatenate([robot.offsets, np.tile(np.eye(3), (count, 1))]),
        rotations=None if robot.rotations is None else np.concatenate([robot.rotations, still]),
        axes=None if robot.axes is None else np.concatenate([robot.axes, np.zeros((3 * count, 3))]),
        slides=None if robot.slides is None else np.concatenate([robot.slides, np.zeros(3 * count, bool)]),
        limits=None,
    )
    columns = np.concatenate([matrices[:, :2].reshape(-1, 6), angles], axis=1)
    found = joint_places(columns, robot_layout(robot, joints)[:-1], added)
    assert found is not None
    found += (places - found[:, 0])[:, None]
    ends = found[:, count:].reshape(len(found), count, 3, 3) - found[:, :count, None]
    return found[:, :count], ends.swapaxes(-1, -2)


def _quaternions(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts matrices `[frames, …, 3, 3]` to quaternions w, x, y, z whose signs do not jump between frames."""
    from scipy.spatial.transform import Rotation

    found: NDArray[np.float64] = Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_quat()[:, [3, 0, 1, 2]]
    found = found.reshape(*matrices.shape[:-2], 4)
    found *= np.where(found[:1, ..., :1] < 0, -1.0, 1.0)
    jumps = (found[1:] * found[:-1]).sum(axis=-1, keepdims=True) < 0
    found[1:] *= np.cumprod(np.where(jumps, -1.0, 1.0), axis=0)
    return found


def _turning(turns: NDArray[np.float64], fps: float) -> NDArray[np.float64]:
    """Returns angular velocities in the world, radians per second, of rotations `[frames, bodies, 3, 3]`."""
    if len(turns) < 3:
        return np.zeros(turns.shape[:-1])
    middle = matrix_to_axis_angle(turns[2:] @ turns[:-2].swapaxes(-1, -2)) * (fps / 2)
    return np.concatenate([middle[:1], middle, middle[-1:]])
