"""Skeletons from files (JSON, npz or BVH), and the unit of length of a BVH file from the height of its body."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import to_say
from ds_rvqvae.data.formats.base import load_npz
from ds_rvqvae.data.formats.bvh.bodies import Tree, bones_of, unique_names
from ds_rvqvae.data.formats.bvh.file import Joint, read_bvh, read_joints
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_json
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.skeleton import Skeleton, checked_skeleton, skeleton_from_json

_USUAL_HEIGHT = 1.7
"""Metres."""
_UNITS = (1.0, 0.01, 0.001, 0.0254, 0.3048, 0.0254 / 0.45)
"""In metres: metre, centimetre, millimetre, inch, foot, and the unit of CMU's ASF files."""
_SMALLEST, _TALLEST = 0.85, 3.4
"""Metres; a smaller or taller figure is hardly a person."""
Z_UP_TO_Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""A rotation of -90 degrees about x."""
UNITS = {
    "metres": 1.0,
    "feet": 0.3048,
    "CMU's unit": 0.0254 / 0.45,
    "inches": 0.0254,
    "centimetres": 0.01,
    "millimetres": 0.001,
}
"""Metres per unit; CMU's is the unit of its ASF files."""
_GROWN, _ABOUT_GROWN, _PERHAPS_GROWN = (1.3997, 2.0005), (1.38, 2.0005), (1.2, 2.3)
"""Heights of an adult, in metres. The second, with room for soles, applies if in only one other unit the figure has a
height within `_ANY_SIZE`; the third applies if in no other unit it has."""
_ANY_SIZE = (0.255, 3.65)
"""Metres: from a doll of 0.3 m whose head has no top in the file to a giant of 3.4 m."""
_OF_CMU = frozenset({"LHipJoint", "RHipJoint", "LowerBack", "LeftFingerBase", "RightFingerBase", "LThumb", "RThumb"})
"""Joints that occur together only in the CMU database's skeletons."""
_CMU_HEIGHTS = (1.38, 1.6)
"""Metres: the bodies in that database are 1.40 to 1.53 m tall at rest; with a margin."""

_WAY_ON = f"set the metres per unit: {to_say('metres_per_unit', 'N')}"


class Unit(NamedTuple):
    """A file's unit of length, and how it was found."""

    metres: float
    height: float
    """The body's height, in metres."""
    how: str
    """How the unit was found, as text that is the same for all files of a kind."""
    note: str | None
    """A warning to the user that other units are possible."""


def recognise_unit(tree: Tree, way_on: str = _WAY_ON) -> Unit:
    """Returns the unit of a file, found from its body's height; it is the same for all files of a skeleton.

    Args:
        way_on: the remedy at the end of an error message.

    Raises:
        ClipError: there is no body, or it is an adult's in no unit or in several; the message has the heights.
    """
    size, is_person = tree.size()
    if not is_person:
        raise ClipError(_refusal("it has no body with two arms and two legs", size, way_on))
    heights = {unit: size * metres for unit, metres in UNITS.items()}
    if {joint.name for joint in tree.joints} >= _OF_CMU and _within(heights["CMU's unit"], _CMU_HEIGHTS):
        return Unit(UNITS["CMU's unit"], heights["CMU's unit"], "by the CMU database's joints", None)
    others = {unit: sum(_within(other, _ANY_SIZE) for own, other in heights.items() if own != unit) for unit in UNITS}
    limits = (_PERHAPS_GROWN, _ABOUT_GROWN, _GROWN)
    grown = [unit for unit, height in heights.items() if _within(height, limits[min(others[unit], 2)])]
    if len(grown) != 1:
        raise ClipError(_refusal("its body is not an adult's in exactly one unit", size, way_on))
    unit = grown[0]
    note = None
    if others[unit]:
        note = (
            f"{in_words(UNITS[unit])} is assumed, as bodies are adults' then; a body of another size has the same "
            f"numbers in another unit: {to_say('metres_per_unit', 'N')} sets another"
        )
    return Unit(UNITS[unit], heights[unit], "by the body's height", note)


def check_one_unit(units: Mapping[Path, Unit]) -> None:
    """Compares the units of one skeleton's files.

    Raises:
        UserError: at least half of them have the same unit, and another file could have it too, with a body of
            another size.
    """
    counts = Counter(unit.metres for unit in units.values())
    for usual in (metres for metres, count in counts.items() if 2 * count >= len(units)):
        for file, unit in units.items():
            height = unit.height / unit.metres * usual
            if unit.metres != usual and _within(height, _ANY_SIZE):
                other = next(other for other, own in units.items() if own.metres == usual)
                raise UserError(
                    f"{file}: its unit of length is not known: by its body's height, {in_words(unit.metres)} "
                    f"({unit.height:.2f} m tall), but {in_words(usual)} in other files of its skeleton, such as "
                    f"{other} ({height:.2f} m tall then); {_WAY_ON}, or prepare it by itself"
                )


def in_words(metres: float) -> str:
    """Returns a unit as text, such as `1 unit = 1 cm`."""
    return f"1 unit = {metres:.4g} m" if metres >= 1 else f"1 unit = {100 * metres:.4g} cm"


def _within(height: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= height <= limits[1]


def _refusal(reason: str, size: float, way_on: str) -> str:
    heights = ", ".join(f"{size * metres:.2g} m in {unit}" for unit, metres in UNITS.items())
    return f"its unit of length is not known: {reason} (it is {heights} tall); {way_on}"


def guess_unit(joints: Sequence[Joint]) -> tuple[float, str]:
    """Guesses the unit as versions up to 0.2 did: a figure's largest extent should be as near as possible to 1.7 m.

    Returns:
        the unit in metres, and a text for the report.
    """
    places = np.zeros((len(joints), 3))
    for index, joint in enumerate(joints):
        if joint.parent >= 0:
            places[index] = places[joint.parent] + joint.offset
    extent = float(np.ptp(places, axis=0).max())
    if not 0 < extent < math.inf:
        return 0.01, "1 unit = 1 cm, because its skeleton has no size to guess from"
    metres = min(_UNITS, key=lambda unit: abs(math.log(extent) + math.log(unit / _USUAL_HEIGHT)))
    height = extent * metres
    guess = f"1 unit = {100 * metres:.4g} cm, guessed from the size of the skeleton"
    if not _SMALLEST < height < _TALLEST:
        guess += f", which is {height:.3g} m then: set rvqvae.data.metres_per_unit"
    return metres, guess


def outermost(joints: Sequence[Joint]) -> list[bool]:
    """Returns for each joint whether no joint above it turns: its offset and rotation are then in world axes."""
    free: list[bool] = []
    for joint in joints:
        free.append(joint.parent < 0 or (free[joint.parent] and not joints[joint.parent].axes))
    return free


def rest_skeleton(
    joints: Sequence[Joint],
    bones: NDArray[np.float64],
    carrier: int = 0,
    turn: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Returns the joints with channels, from the carrier down, as `joint_names`, `parents` and `offsets`, for JSON.

    Joints without channels do not move: their children are attached to their parents instead. The carrier is the root,
    at its position in the world. Offsets are in metres.

    Args:
        bones: `[joints, 3]` metres, each joint's position relative to its parent at rest.
        carrier: the joint that carries the body.
        turn: `[3, 3]`, a rotation of the world.
    """
    offsets = bones.copy()
    above = joints[carrier].parent
    while above >= 0:
        offsets[carrier] += bones[above]
        above = joints[above].parent
    if turn is not None:
        in_world = np.array(outermost(joints))
        in_world[carrier] = True
        offsets = np.where(in_world[:, None], offsets @ turn.T, offsets)
    is_kept = [bool(joint.channels) for joint in joints]
    is_kept[carrier] = True
    rows: list[int | None] = []  # each joint's row in the skeleton, or that of a kept joint above it; None off the body
    kept: list[int] = []
    parents: list[int] = []
    for index, joint in enumerate(joints):
        row = rows[joint.parent] if joint.parent >= 0 else None
        if index == carrier or (row is not None and is_kept[index]):
            kept.append(index)
            parents.append(-1 if index == carrier or row is None else row)
        if index != carrier and row is not None and not is_kept[joint.parent]:
            offsets[index] += offsets[joint.parent]
        rows.append(len(kept) - 1 if index in kept[-1:] else row)
    names = unique_names(joints)
    return {
        "joint_names": [names[index] for index in kept],
        "parents": parents,
        "offsets": offsets[kept].tolist(),
    }


def bvh_skeleton(file: Path, needs_unit: bool = True) -> dict[str, Any]:
    """Returns the skeleton of a BVH file as `rest_skeleton` does.

    Args:
        needs_unit: else a file whose unit is not known gives names and parents only.

    Raises:
        ClipError: the file cannot be read, or its unit is needed and not known.
    """
    joints, frame = read_joints(file), None
    with suppress(ClipError):
        frame = read_bvh(file, first_only=True).values[0]
    is_usable = frame is not None and np.isfinite(frame).all() and frame.any()
    tree = Tree(joints, bones_of(joints, frame if is_usable else None))
    carrier = tree.carrier()
    try:
        metres = recognise_unit(tree, "give it as JSON, with offsets in metres").metres
    except ClipError:
        if needs_unit:
            raise
        entries = rest_skeleton(joints, tree.bones, carrier)
        return {key: entries[key] for key in ("joint_names", "parents")}
    return rest_skeleton(joints, metres * tree.bones, carrier)


def load_skeleton(file: Path) -> Skeleton:
    """Reads a skeleton.

    Args:
        file: JSON with `joint_names`, `parents` and `offsets` (metres, one triple per joint), and optionally `name`; or
            an npz with `joint_names`, `parents` and `offsets_m`, `[joints, 3]` or `[clips, joints, 3]`, of which the
            first clip is used; or a BVH file, whose unit is recognised from the height of its body.

    Raises:
        UserError: the file cannot be read, or is not a tree of joints in metres with each parent before its children.
    """
    try:
        if file.suffix == ".npz":
            arrays = load_npz(file, ("joint_names", "parents", "offsets_m"))
            offsets = arrays["offsets_m"]
            if offsets.ndim == 3 and len(offsets):
                offsets = offsets[0]
            return checked_skeleton(arrays["joint_names"].tolist(), arrays["parents"].tolist(), offsets, file.stem)
        if file.suffix.lower() == ".bvh":
            return skeleton_from_json(bvh_skeleton(file), file.stem)
        entries = read_json(file)
        if not isinstance(entries, dict):
            raise ClipError("not an object with joint_names, parents and offsets")
        return skeleton_from_json(entries, str(entries.get("name", file.stem)))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ClipError as error:
        raise UserError(f"{file}: not a skeleton: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise UserError(f"{file}: neither JSON nor an npz or BVH file of a skeleton: {error}") from None
