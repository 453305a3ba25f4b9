"""Skeletons: a built-in one with SMPL-X's joints, skeletons from files, and forward kinematics.

SMPL-X's licence is for non-commercial research and covers everything computed from its files. So its joint offsets are
not used here: the built-in figure has our own rough proportions of an adult (1.75 m). y points up, x to the figure's
left, z to its front; the arms are stretched out sideways.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion import recovery
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import MOVING, SMPLX_JOINTS, SMPLX_PARENTS, Channels, Layout, root_channels
from ds_rvqvae.motion.recovery import places_by_positions, recovered_width
from ds_rvqvae.motion.rotations import axis_angle_to_matrix, rotation_6d_to_matrix, translation_positions

_LONGEST_BONE = 10.0
"""Metres; a longer bone must be in another unit, such as centimetres or inches."""
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
"""The left side; the right side mirrors it. The last five serve a finger's second joint and its third."""


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A tree of joints at rest.

    A joint's frame is its parent's, moved by the offset, turned by the rest rotation, then moved by its columns: a
    rotation, an angle about its axis, or a way along its axis if it slides.

    Attributes:
        joint_names: one name per joint; the columns of a layout are matched to joints by name.
        parents: index of each joint's parent, which comes before the joint; only the first joint, the root, has -1.
        offsets: float64 `[joints, 3]` metres, each joint's position relative to its parent; the root's, in the world.
        name: the skeleton's name in messages.
        rotations: float64 `[joints, 3, 3]`, each joint's rotation at rest relative to its parent; None: no rotation.
        axes: float64 `[joints, 3]`, unit vectors in the joint's own frame about which an angle turns it, or along which
            it slides; zeros for joints without such an axis. None if no joint has one.
        slides: bool `[joints]`, whether the joint slides; None if none does.
        limits: float64 `[joints, 2]`, lowest and highest angle (radians) or way (metres), NaN without a limit; or None.
    """

    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: NDArray[np.float64]
    name: str
    rotations: NDArray[np.float64] | None = None
    axes: NDArray[np.float64] | None = None
    slides: NDArray[np.bool_] | None = None
    limits: NDArray[np.float64] | None = None


def builtin_skeleton() -> Skeleton:
    """Returns the rough figure of this module, 1.75 m tall, with the names and order of SMPL-X's 55 joints."""
    offsets = np.array([_offset(name) for name in SMPLX_JOINTS])
    return Skeleton(SMPLX_JOINTS, SMPLX_PARENTS, offsets, "built-in")


def _offset(joint: str) -> tuple[float, float, float]:
    if joint in _MIDDLE:
        return _MIDDLE[joint]
    side, _, part = joint.partition("_")
    x, y, z = _LEFT.get(part) or _LEFT[part.rstrip("123")]
    return (x if side == "left" else -x), y, z


def skeleton_from_json(entries: Mapping[str, Any], name: str) -> Skeleton:
    """Makes a skeleton from `joint_names`, `parents` and `offsets` (metres, one triple per joint) of a file or store.

    Robots also have `rotations` (at rest, quaternions w, x, y, z), `axes` (x, y, z), `slides` (true or false) and
    `limits` (lowest and highest value, or null), one per joint.

    Raises:
        ClipError: the entries are not a tree of joints in metres with each parent before its children.
    """
    for key in ("joint_names", "parents", "offsets"):
        if key not in entries:
            raise ClipError(f"no key {key}; a skeleton has joint_names, parents and offsets")
    skeleton = checked_skeleton(entries["joint_names"], entries["parents"], _array(entries["offsets"]), name)
    return replace(skeleton, **_robot_entries(entries, len(skeleton.joint_names)))


def _robot_entries(entries: Mapping[str, Any], joints: int) -> dict[str, Any]:
    """Returns the optional entries of a skeleton as arrays; raises ClipError if they are wrong."""
    found: dict[str, Any] = {}
    for key, width in (("rotations", 4), ("axes", 3)):
        if entries.get(key) is not None:
            values = _array(entries[key], key)
            if values.dtype.kind not in "fiu" or values.shape != (joints, width) or not np.isfinite(values).all():
                raise ClipError(f"{key}: not {width} finite numbers for each of {joints} joints")
            found[key] = values.astype(np.float64)
    if "rotations" in found:
        lengths = np.linalg.norm(found["rotations"], axis=1)
        if (np.abs(lengths - 1) > 1e-3).any():
            raise ClipError("rotations: a quaternion (w, x, y, z) has not the length 1")
        found["rotations"] = matrices_of_quaternions(found["rotations"] / lengths[:, None])
    if "axes" in found:
        lengths = np.linalg.norm(found["axes"], axis=1)
        if (np.abs(lengths[lengths > 0] - 1) > 1e-3).any():
            raise ClipError("axes: an axis has neither the length 1 nor 0")
        found["axes"] = found["axes"] / np.where(lengths, lengths, 1)[:, None]
    if (slides := entries.get("slides")) is not None:
        if not isinstance(slides, list) or len(slides) != joints or not all(type(slide) is bool for slide in slides):
            raise ClipError(f"slides: not true or false for each of {joints} joints")
        found["slides"] = np.array(slides)
    if (limits := entries.get("limits")) is not None:
        if not isinstance(limits, list) or len(limits) != joints:
            raise ClipError(f"limits: not one entry for each of {joints} joints")
        rows = _array([limit if limit is not None else (np.nan, np.nan) for limit in limits], "limits")
        if rows.dtype.kind not in "fiu" or rows.shape != (joints, 2) or (rows[:, 0] > rows[:, 1]).any():
            raise ClipError("limits: not the lowest and the highest value, or null, for each joint")
        found["limits"] = rows.astype(np.float64)
    return found


def matrices_of_quaternions(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts quaternions w, x, y, z of length 1 `[joints, 4]` to matrices `[joints, 3, 3]`."""
    w, x, y, z = quaternions.T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.moveaxis(np.array(rows), -1, 0)


def _array(values: Any, key: str = "offsets") -> NDArray[Any]:
    try:
        return np.array(values)
    except ValueError:
        raise ClipError(f"{key}: rows of unequal length") from None


def checked_skeleton(joint_names: Any, parents: Any, offsets: NDArray[Any], name: str) -> Skeleton:
    """Makes a skeleton from the entries of a file; raises ClipError if they are wrong."""
    if not isinstance(joint_names, list) or not joint_names or not all(isinstance(joint, str) for joint in joint_names):
        raise ClipError("joint_names: not a list of names")
    twice = next((joint for joint in joint_names if joint_names.count(joint) > 1), None)
    if twice is not None:
        raise ClipError(f"joint_names: {twice} occurs twice")
    count = len(joint_names)
    if not isinstance(parents, list) or not all(type(parent) is int for parent in parents):
        raise ClipError("parents: not a list of integers")
    if len(parents) != count:
        raise ClipError(f"parents: {len(parents)} for {count} joints")
    for index, (joint, parent) in enumerate(zip(joint_names, parents, strict=True)):
        if index == 0 and parent != -1:
            raise ClipError(f"parents: {joint} is first, so it is the root; its parent must be -1, not {parent}")
        if index and not 0 <= parent < index:
            raise ClipError(f"parents: {joint} (joint {index}) has parent {parent}; a parent comes before its child")
    if offsets.dtype.kind not in "fiu" or offsets.shape != (count, 3):
        raise ClipError(f"offsets: {offsets.dtype} of shape {list(offsets.shape)}, not numbers [{count}, 3]")
    offsets = offsets.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(offsets).all(axis=1))
    if bad.size:
        raise ClipError(f"offsets: NaN or infinite at {joint_names[bad[0]]}")
    lengths = np.linalg.norm(offsets[1:], axis=1)
    if (lengths > _LONGEST_BONE).any():
        longest = int(lengths.argmax())
        raise ClipError(f"offsets: {joint_names[longest + 1]} is {lengths[longest]:.4g} from its parent; use metres")
    return Skeleton(tuple(joint_names), tuple(parents), offsets, name)


def joint_places(motion: NDArray[Any], layout: Layout, skeleton: Skeleton) -> NDArray[np.float64] | None:
    """Returns the positions of a skeleton's joints while it moves.

    Args:
        motion: `[frames, columns]` in the data's own units.
        layout: of the columns. Rotations and angles with a joint's name move that joint; joints without one stay at
            rest. Positions relative to the root are joints' positions as they are: then rotations do not count, and
            joints without such columns are at their rest offset from their parents. The first `translation` (x
            velocity, height, z velocity; metres and frames) moves the root, which starts at x = z = 0; or the first
            `position` (metres) is its position. Without either the root stays at its offset.

    Returns:
        float64 `[frames, joints, 3]` metres, or None if the layout has no columns of any joint of the skeleton.
        Published columns without names have their own joints (`ds_rvqvae.motion.recovery`), those of `figure_of`.
    """
    if recovered_width(layout) is not None:
        return places_by_positions(motion)
    joints = {name: index for index, name in enumerate(skeleton.joint_names)}
    root = _root_places(motion, layout)
    moving = [part for part in layout if part.kind != "relative_position" and _moves(part, skeleton)]
    placed = [part for part in layout if part.kind == "relative_position" and part.name in joints]
    if placed:
        return _places_as_given(motion, placed, skeleton, root)
    if not moving:
        return None
    rotations = np.broadcast_to(np.eye(3), (len(motion), len(joints), 3, 3)).copy()
    ways = None if skeleton.slides is None else np.zeros((len(motion), len(joints), 3))
    for part in moving:
        joint, columns = joints[part.name], motion[:, part.start : part.stop].astype(np.float64)
        if part.kind == "rotation_6d":
            rotations[:, joint] = rotation_6d_to_matrix(columns)
        elif skeleton.axes is not None:
            if ways is not None and skeleton.slides is not None and skeleton.slides[joint]:
                ways[:, joint] = columns * skeleton.axes[joint]
            else:
                rotations[:, joint] = axis_angle_to_matrix(columns * skeleton.axes[joint])
    return forward_kinematics(rotations, skeleton.offsets, skeleton.parents, root, skeleton.rotations, ways)


def _places_as_given(
    motion: NDArray[Any], placed: Sequence[Channels], skeleton: Skeleton, root: NDArray[Any] | None
) -> NDArray[np.float64]:
    """Returns the positions of joints that motion has as positions relative to the root."""
    found = {part.name: motion[:, part.start : part.stop].astype(np.float64) for part in placed}
    places = np.empty((len(motion), len(skeleton.joint_names), 3))
    for joint, (name, parent) in enumerate(zip(skeleton.joint_names, skeleton.parents, strict=True)):
        if parent < 0:
            places[:, joint] = 0
        else:
            places[:, joint] = found.get(name, places[:, parent] + skeleton.offsets[joint])
    above: NDArray[np.float64] = places + (skeleton.offsets[0] if root is None else root[:, None])
    return above


def _root_places(motion: NDArray[Any], layout: Layout) -> NDArray[Any] | None:
    for part in layout:
        if part.kind in ("translation", "position") and part.width == 3:
            columns = motion[:, part.start : part.stop]
            return columns if part.kind == "position" else translation_positions(columns)
    return None


def forward_kinematics(
    rotations: NDArray[np.floating[Any]],
    offsets: NDArray[np.float64],
    parents: Sequence[int] = SMPLX_PARENTS,
    root_translation: NDArray[np.floating[Any]] | None = None,
    rest: NDArray[np.float64] | None = None,
    ways: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Returns the positions of all joints, metres `[frames, joints, 3]`.

    Args:
        rotations: each joint's rotation relative to its parent, after that at rest, `[frames, joints, 3, 3]`.
        offsets: `[joints, 3]` metres.
        parents: a joint's parent comes before it; -1 for the root.
        root_translation: `[frames, 3]` metres, the root's position; without it the root stays at its offset.
        rest: `[joints, 3, 3]`, rotations at rest, as of `Skeleton.rotations`.
        ways: `[frames, joints, 3]` metres, how far each joint has slid in its own frame.
    """
    world = np.empty_like(rotations, dtype=np.float64)
    places = np.empty(rotations.shape[:-1])
    for joint, parent in enumerate(parents):
        local = rotations[:, joint] if rest is None else rest[joint] @ rotations[:, joint]
        way = offsets[joint]
        if ways is not None:
            way = way + (ways[:, joint] if rest is None else ways[:, joint] @ rest[joint].T)
        if parent < 0:
            world[:, joint] = local
            places[:, joint] = way if root_translation is None else root_translation
        else:
            world[:, joint] = world[:, parent] @ local
            places[:, joint] = places[:, parent] + (world[:, parent] @ way[..., None])[..., 0]
    return places


def moved_joints(layout: Layout, skeleton: Skeleton) -> list[bool]:
    """Returns for each joint whether columns of the layout move it.

    A rotation or an angle moves the joints below its own, except those at the same position as its own. A slide moves
    its own joint too. A position relative to the root moves its joint.
    """
    names = skeleton.joint_names
    if recovered_width(layout) is not None:
        return [True] * len(names)
    turned = {part.name for part in layout if part.kind != "relative_position" and _moves(part, skeleton)}
    placed = {part.name for part in layout if part.kind == "relative_position"}
    if placed:
        return [name in placed for name in names]
    turned_above, moved = [False] * len(names), [False] * len(names)
    for joint, parent in enumerate(skeleton.parents):
        slides = skeleton.slides is not None and bool(skeleton.slides[joint]) and names[joint] in turned
        if parent >= 0:
            turned_above[joint] = turned_above[parent] or names[parent] in turned
            moved[joint] = moved[parent] or slides or (turned_above[joint] and bool(skeleton.offsets[joint].any()))
    return moved


def measured_joints(layout: Layout, skeleton: Skeleton) -> list[int]:
    """Returns the joints that the layout's columns move and have columns of their own; their positions are measured."""
    own, moved = own_joints(layout, skeleton), moved_joints(layout, skeleton)
    return [joint for joint, name in enumerate(skeleton.joint_names) if moved[joint] and name in own]


def own_joints(layout: Layout, skeleton: Skeleton) -> set[str]:
    """Returns the names of the joints that have columns of their own."""
    if recovered_width(layout) is not None:
        return set(skeleton.joint_names)
    return {part.name for part in layout if _moves(part, skeleton)}


def _moves(part: Channels, skeleton: Skeleton) -> bool:
    """Returns whether columns move a joint of the skeleton; an angle does only if the joint has an axis."""
    if part.kind not in MOVING or part.name not in skeleton.joint_names:
        return False
    if part.kind != "angle":
        return True
    axes = skeleton.axes
    return axes is not None and part.width == 1 and bool(axes[skeleton.joint_names.index(part.name)].any())


def slides_of(skeleton: Skeleton | None) -> frozenset[str]:
    """Returns the names of joints whose angle is a length, not an angle."""
    if skeleton is None or skeleton.slides is None:
        return frozenset()
    return frozenset(name for name, slides in zip(skeleton.joint_names, skeleton.slides, strict=True) if slides)


def check_skeleton(given: Skeleton | None, layout: Layout) -> None:
    """Raises UserError if a skeleton is given for published columns, which have joints of their own."""
    width = recovered_width(layout)
    if given is not None and width is not None:
        raise UserError(f"--skeleton: {width} columns have {recovery.NAMES[width]}; leave it out")


def has_root(layout: Layout) -> bool:
    """Returns whether columns have the root's position."""
    return root_channels(layout) is not None or recovered_width(layout) is not None


def figure_of(skeleton: dict[str, Any] | None, motion: str, layout: Layout) -> Skeleton:
    """Returns the skeleton of motion files (`Take.skeleton`), with `motion` as its name.

    Published columns without names have joints of their own; their bones at rest have directions only.

    If they have none, or one that is not a figure in metres, the built-in skeleton takes its place. Data with other
    joint names do not match it, and no distance is measured.
    """
    width = recovered_width(layout)
    if width is not None:
        names = recovery.JOINT_NAMES[width]
        return Skeleton(names, recovery.parents_of(width), recovery.ways_of(width), recovery.NAMES[width])
    try:
        return builtin_skeleton() if skeleton is None else skeleton_from_json(skeleton, motion)
    except ClipError:
        return builtin_skeleton()
