"""A stick figure: a rest pose of our own with SMPL-X's joints, and forward kinematics.

The offsets are rough adult proportions (height 1.75 m), not SMPL-X's licensed template. y is up, x the figure's left,
z its front; arms are stretched out sideways.
"""

from collections.abc import Sequence

import numpy as np

from ds_rvqvae.data.layout import SMPLX_JOINTS, SMPLX_PARENTS

_MIDDLE = {
    "pelvis": (0.0, 0.95, 0.0),
    "spine1": (0.0, 0.11, 0.0),
    "spine2": (0.0, 0.13, 0.0),
    "spine3": (0.0, 0.06, 0.01),
    "neck": (0.0, 0.19, -0.02),
    "head": (0.0, 0.10, 0.03),
    "jaw": (0.0, 0.00, 0.03),
}
_LEFT = {
    "hip": (0.08, -0.08, 0.0),
    "knee": (0.02, -0.40, 0.01),
    "ankle": (0.0, -0.41, -0.03),
    "foot": (0.02, -0.05, 0.13),
    "collar": (0.05, 0.12, -0.01),
    "shoulder": (0.12, 0.03, -0.01),
    "elbow": (0.27, 0.0, -0.01),
    "wrist": (0.25, 0.0, 0.0),
    "eye": (0.03, 0.06, 0.08),
    "index1": (0.09, 0.0, 0.03),
    "middle1": (0.10, 0.0, 0.01),
    "pinky1": (0.08, -0.01, -0.03),
    "ring1": (0.09, 0.0, -0.01),
    "thumb1": (0.03, -0.02, 0.03),
    "index": (0.03, 0.0, 0.0),
    "middle": (0.03, 0.0, 0.0),
    "pinky": (0.02, 0.0, 0.0),
    "ring": (0.03, 0.0, 0.0),
    "thumb": (0.02, 0.0, 0.02),
}
"""Left side; the right one mirrors it. A finger's second and third joint share the last five."""


def rest_offsets() -> np.ndarray:
    """Each joint's place relative to its parent, metres, float64 `[55, 3]`; the pelvis's is its place in the world."""
    return np.array([_offset(name) for name in SMPLX_JOINTS])


def _offset(joint: str) -> tuple[float, float, float]:
    if joint in _MIDDLE:
        return _MIDDLE[joint]
    side, _, part = joint.partition("_")
    x, y, z = _LEFT.get(part) or _LEFT[part.rstrip("123")]
    return (x if side == "left" else -x), y, z


def forward_kinematics(
    rotations: np.ndarray,
    offsets: np.ndarray,
    parents: Sequence[int] = SMPLX_PARENTS,
    root_translation: np.ndarray | None = None,
) -> np.ndarray:
    """Places of all joints, metres `[frames, joints, 3]`.

    Args:
        rotations: each joint's rotation relative to its parent, `[frames, joints, 3, 3]`.
        offsets: `[joints, 3]` metres.
        parents: a joint's parent stands before it; -1 for the root.
        root_translation: `[frames, 3]` metres, the root's place; without it the root stays at its offset.
    """
    world = np.empty_like(rotations, dtype=np.float64)
    places = np.empty(rotations.shape[:-1])
    for joint, parent in enumerate(parents):
        if parent < 0:
            world[:, joint] = rotations[:, joint]
            places[:, joint] = offsets[joint] if root_translation is None else root_translation
        else:
            world[:, joint] = world[:, parent] @ rotations[:, joint]
            places[:, joint] = places[:, parent] + world[:, parent] @ offsets[joint]
    return places
