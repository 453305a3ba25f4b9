"""Made motion of 22 joints, and its columns by the recipes of HumanML3D (263) and MotionStreamer (272)."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ds_rvqvae.motion.recovery import BODY_PARENTS
from ds_rvqvae.motion.skeleton import forward_kinematics

CHAINS = ((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21), (9, 13, 16, 18, 20))
WAYS = np.array(
    [
        {"0": (0, 0, 0), "l": (1, 0, 0), "r": (-1, 0, 0), "u": (0, 1, 0), "d": (0, -1, 0), "f": (0, 0, 1)}[way]
        for way in "0lruddudduffulrfdddddd"
    ],
    float,
)
"""The direction of each bone at rest in HumanML3D (`t2m_raw_offsets`)."""
BONES = (
    WAYS
    * np.array(
        [
            0.9,
            0.1,
            0.1,
            0.12,
            0.4,
            0.4,
            0.14,
            0.42,
            0.42,
            0.06,
            0.14,
            0.14,
            0.2,
            0.12,
            0.12,
            0.1,
            0.13,
            0.13,
            0.26,
            0.26,
            0.25,
            0.25,
        ]
    )[:, None]
)


class Made(NamedTuple):
    """A walk in a circle; y is up."""

    places: NDArray[np.float64]
    """`[T, 22, 3]` metres."""
    heading: NDArray[np.float64]
    """`[T]` radians: the angle about y from +z to where the figure faces."""
    local: NDArray[np.float64]
    """`[T, 22, 3, 3]`, each joint's rotation relative to its parent, the root's in the world."""
    root: NDArray[np.float64]
    """`[T, 3]` metres."""
    fps: float


def walk(seconds: float, fps: float) -> Made:
    """Returns a figure that walks in a circle of 2 m and swings its limbs."""
    times = np.arange(round(seconds * fps)) / fps
    heading = 0.4 * times + 0.1 * np.sin(3 * times)
    root = np.stack([2 - 2 * np.cos(0.4 * times), 0.9 + 0.02 * np.sin(8 * times), 2 * np.sin(0.4 * times)], axis=1)
    swing = np.random.default_rng(0).normal(size=(22, 3)) * 0.3
    vectors = np.sin(4 * times[:, None, None] + np.arange(22)[:, None]) * swing
    local = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(len(times), 22, 3, 3)
    local[:, 0] = Rotation.from_euler("y", heading).as_matrix()
    # Shoulders and hips follow the heading exactly, so that the recipe's own measure of it gives this heading.
    for joint in (3, 6, 9, 13, 14):
        local[:, joint] = np.eye(3)
    return Made(forward_kinematics(local, BONES, BODY_PARENTS, root), heading, local, root, fps)


def columns_263(made: Made) -> NDArray[np.float64]:
    """Returns `[T - 1, 263]` as `process_file` does, for motion that has HumanML3D's bones and faces +z at first.

    The rotations are those of its inverse kinematics: each bone's shortest turn from its direction at rest, relative to
    the bone before it in its chain; every chain begins with the root's heading.
    """
    places, frames = made.places, len(made.places)
    facing = Rotation.from_euler("y", -made.heading).as_matrix()  # from the world to the figure's own axes
    own = np.einsum("tab,tjb->tja", facing, places - places[:, :1] * [1, 0, 1])
    steps = np.einsum("tab,tb->ta", facing[1:], np.diff(places[:, 0], axis=0))
    turn = -np.diff(made.heading) / 2
    speeds = np.einsum("tab,tjb->tja", facing[:-1], np.diff(places, axis=0))
    turns = np.zeros((frames, 22, 3, 3))
    for chain in CHAINS:
        above = facing
        for parent, joint in pairwise(chain):
            bone = places[:, joint] - places[:, parent]
            shortest = np.array([_shortest(WAYS[joint], way) for way in bone / np.linalg.norm(bone, axis=1)[:, None]])
            turns[:, joint] = np.swapaxes(above, 1, 2) @ shortest
            above = shortest
    six = np.swapaxes(turns, -1, -2)[:, 1:, :2].reshape(frames, -1)  # the first two columns
    parts = [turn[:, None], steps[:, [0, 2]], places[:-1, 0, 1:2], own[:-1, 1:].reshape(frames - 1, -1), six[:-1]]
    return np.concatenate([*parts, speeds.reshape(frames - 1, -1), np.zeros((frames - 1, 4))], axis=1)


def columns_272(made: Made) -> NDArray[np.float64]:
    """Returns `[T, 272]` by the layout of MotionStreamer's `representation_272.py`."""
    frames = len(made.places)
    facing = Rotation.from_euler("y", -made.heading).as_matrix()
    own = np.einsum("tab,tjb->tja", facing, made.places - made.places[:, :1] * [1, 0, 1])
    steps = np.zeros((frames, 3))
    steps[1:] = np.einsum("tab,tb->ta", facing[:-1], np.diff(made.places[:, 0], axis=0))
    change = facing.copy()
    change[1:] = facing[1:] @ np.swapaxes(facing[:-1], 1, 2)
    speeds = np.zeros_like(made.places)
    speeds[1:] = np.einsum("tab,tjb->tja", facing[:-1], np.diff(made.places, axis=0))
    local = made.local.copy()
    local[:, 0] = facing @ local[:, 0]
    parts = [steps[:, [0, 2]], change[:, :2].reshape(frames, 6), own.reshape(frames, -1), speeds.reshape(frames, -1)]
    return np.concatenate([*parts, local[:, :, :2].reshape(frames, -1)], axis=1)


def _shortest(start: NDArray[np.float64], stop: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the matrix of the shortest turn between two unit vectors."""
    axis, cosine = np.cross(start, stop), start @ stop
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)
