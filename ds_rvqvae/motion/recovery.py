"""Joint positions from the columns of published feature sets, by the arithmetic of their own code.

- 263 and 251 columns (HumanML3D, KIT): per frame the root's turning about y (half of the angle) and its own x and z
  velocity, all three towards the next frame, the root's height; then positions (J - 1), rotations (J - 1) and
  velocities (J) of joints, in axes that turn with the root; then contacts of the feet. Source: C. Guo et al. 2022,
  "Generating Diverse and Natural 3D Human Motions from Text"; `recover_from_ric` and `recover_from_rot` in
  github.com/EricGuo5513/HumanML3D, `motion_representation.ipynb`.
- 272 columns (MotionStreamer): per frame the root's own x and z velocity and the change of heading as 6D, both from the
  frame before; then positions, velocities and rotations of 22 joints. Source: L. Xiao et al. 2025, "MotionStreamer";
  `recover_from_local_position` and `recover_from_local_rotation` in github.com/zju3dv/MotionStreamer,
  `visualization/recover_visualize.py`.

KIT's lengths are millimetres; all results here are metres.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.motion.layout import SMPLX_JOINTS, SMPLX_PARENTS, Layout, feature_layout
from ds_rvqvae.motion.rotations import rotation_6d_to_matrix

HUMANML3D, KIT, HUMANML3D_272 = 263, 251, 272
"""Numbers of columns."""
JOINTS = {HUMANML3D: 22, KIT: 21, HUMANML3D_272: 22}
METRES = {HUMANML3D: 1.0, KIT: 0.001, HUMANML3D_272: 1.0}
"""Metres per unit of the columns."""
_KIT_JOINTS = (
    *("root", "belly", "chest", "neck", "head", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder"),
    *("left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle", "right_heel", "right_toe", "left_hip"),
    *("left_knee", "left_ankle", "left_heel", "left_toe"),
)
JOINT_NAMES = {HUMANML3D: SMPLX_JOINTS[:22], KIT: _KIT_JOINTS, HUMANML3D_272: SMPLX_JOINTS[:22]}
NAMES = {
    HUMANML3D: "HumanML3D's joint positions",
    KIT: "KIT's joint positions",
    HUMANML3D_272: "joint positions of 272 columns",
}
"""Figures in words."""
BODY_JOINTS, BODY_PARENTS = SMPLX_JOINTS[:22], SMPLX_PARENTS[:22]
"""The joints of 263 and of 272 columns: SMPL-X's body."""


_AXES = {
    "0": (0, 0, 0),
    "l": (1, 0, 0),
    "r": (-1, 0, 0),
    "u": (0, 1, 0),
    "d": (0, -1, 0),
    "f": (0, 0, 1),
}
"""Directions of bones at rest: to the left, to the right, up, down and forwards."""
_BONES = {
    HUMANML3D: (
        np.array([_AXES[way] for way in "0lruddudduffulrfdddddd"], np.float64),
        ((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21), (9, 13, 16, 18, 20)),
    ),
    KIT: (
        np.array([_AXES[way] for way in "0uuuulddrddlddffrddff"], np.float64),
        ((0, 11, 12, 13, 14, 15), (0, 16, 17, 18, 19, 20), (0, 1, 2, 3, 4), (3, 5, 6, 7), (3, 8, 9, 10)),
    ),
}
"""Each joint's direction from its parent at rest, `[J, 3]`, and the chains of bones along which rotations add up."""


def recovered_width(layout: Layout) -> int | None:
    """Returns the number of columns if these are published ones without names, from which joints are recovered."""
    width = layout[-1].stop
    return width if width in JOINTS and layout == feature_layout(width) else None


def ways_of(width: int) -> NDArray[np.float64]:
    """Returns each joint's direction from its parent at rest, unit vectors `[J, 3]`; 0 for the root."""
    return _BONES[HUMANML3D if width == HUMANML3D_272 else width][0]


def parents_of(width: int) -> tuple[int, ...]:
    """Returns the index of each joint's parent, -1 for the root."""
    if width == HUMANML3D_272:
        return BODY_PARENTS
    above = {joint: parent for chain in _BONES[width][1] for parent, joint in pairwise(chain)}
    return tuple(above.get(joint, -1) for joint in range(JOINTS[width]))


def places_by_positions(motion: NDArray[Any]) -> NDArray[np.float64]:
    """Returns joint positions in the world, metres `[frames, J, 3]`, y up, from the columns of positions.

    Args:
        motion: `[frames, 263 | 251 | 272]` in the data's own units. The root starts at x = z = 0; with 272 columns
            at the first frame's step, as in the published code.
    """
    width = motion.shape[1]
    motion = motion.astype(np.float64)
    if width == HUMANML3D_272:
        heading, root = _heading_272(motion), _root_272(motion)
        local = motion[:, 8 : 8 + 3 * JOINTS[width]].reshape(len(motion), -1, 3)
        return np.asarray(local @ heading + root[:, None])
    turn, root = _root_263(motion)
    local = motion[:, 4 : 4 + 3 * (JOINTS[width] - 1)].reshape(len(motion), -1, 3)
    joints = _about_y(turn[:, None], local) + root[:, None] * [1.0, 0.0, 1.0]
    return METRES[width] * np.concatenate([root[:, None], joints], axis=1)


def places_by_rotations(motion: NDArray[Any], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns joint positions in the world, metres `[frames, J, 3]`, y up, from the columns of rotations.

    Args:
        motion: `[frames, 263 | 251]` in the data's own units.
        lengths: `[J]` metres, each joint's distance from its parent, such as from `bone_lengths`.
    """
    width = motion.shape[1]
    ways, chains = _BONES[width]
    motion, joints = motion.astype(np.float64), len(ways)
    turn, root = _root_263(motion)
    start = 4 + 3 * (joints - 1)
    columns = motion[:, start : start + 6 * (joints - 1)].reshape(len(motion), -1, 6)
    local = np.swapaxes(rotation_6d_to_matrix(columns), -1, -2)
    places = np.empty((len(motion), joints, 3))
    places[:, 0] = METRES[width] * root
    heading = np.swapaxes(_about_y(-turn[:, None], np.eye(3)), 1, 2)
    for chain in chains:
        turned = heading  # of every chain: also of the arms, which begin at the spine
        for above, joint in pairwise(chain):
            turned = turned @ local[:, joint - 1]
            places[:, joint] = places[:, above] + lengths[joint] * (turned @ ways[joint])
    return places


def bone_lengths(places: NDArray[np.float64], parents: Sequence[int]) -> NDArray[np.float64]:
    """Returns each joint's distance from its parent in `[frames, J, 3]`, the median over frames, `[J]`; 0 for the root.

    The clips of HumanML3D and KIT all have the bones of one skeleton, so any of them gives their lengths.
    """
    above = [max(parent, 0) for parent in parents]
    return np.asarray(np.median(np.linalg.norm(places - places[:, above], axis=-1), axis=0))


def rotations_272(motion: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns what 272 columns give a body model: joint rotations in SMPL's sense, and the root's path.

    Args:
        motion: `[frames, 272]`.

    Returns:
        matrices `[frames, 22, 3, 3]`, each joint's rotation relative to its parent, the root's in the world; and the
        root's position, metres `[frames, 3]`.
    """
    motion = motion.astype(np.float64)
    joints = JOINTS[HUMANML3D_272]
    local = rotation_6d_to_matrix(motion[:, 8 + 6 * joints : 8 + 12 * joints].reshape(len(motion), -1, 6))
    local[:, 0] = np.swapaxes(_heading_272(motion), 1, 2) @ local[:, 0]
    root = _root_272(motion)
    root[:, 1] = motion[:, 9]
    return local, root


def _root_263(motion: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns by how much features are turned about y against the world, radians `[frames]`, and the root's path."""
    turn, steps = np.zeros(len(motion)), np.zeros((len(motion), 3))
    turn[1:] = -2 * np.cumsum(motion[:-1, 0])
    steps[1:, [0, 2]] = motion[:-1, 1:3]
    root = np.cumsum(_about_y(turn, steps), axis=0)
    root[:, 1] = motion[:, 3]
    return turn, root


def _heading_272(motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the turn from the world to each frame's own axes, matrices `[frames, 3, 3]`."""
    turns = rotation_6d_to_matrix(motion[:, 2:8])
    for frame in range(1, len(turns)):
        turns[frame] = turns[frame] @ turns[frame - 1]
    return turns


def _root_272(motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the root's path over the floor, metres `[frames, 3]`, with y = 0."""
    steps = np.zeros((len(motion), 3))
    steps[:, [0, 2]] = motion[:, :2]
    heading = _heading_272(motion)
    steps[1:] = (steps[1:, None] @ heading[:-1])[:, 0]
    root = np.cumsum(steps, axis=0)
    root[:, 1] = 0
    return root


def _about_y(angle: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turns vectors `[..., 3]` about y by angles `[...]` in radians."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.stack(np.broadcast_arrays(x * cosine + z * sine, y, z * cosine - x * sine), axis=-1)
