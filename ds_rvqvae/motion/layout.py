"""The meaning of the columns of a feature matrix, and the columns that belong to a body part."""

import difflib
import fnmatch
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.model import LossConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import parse_json

Kind = Literal["rotation_6d", "translation", "position", "relative_position", "angle", "expression", "feature"]
"""`translation` is x velocity, height and z velocity (height in metres, velocities in metres per frame); `position` is
a position in metres; `relative_position` is a joint's position minus the root's, in metres along the world's axes;
`angle` is what a joint's motor sets: an angle in radians, or the length of a slide in metres."""

MOVING = ("rotation_6d", "angle", "relative_position")
"""Kinds of columns that move the joint that they are named after."""


@dataclass(frozen=True, slots=True)
class Channels:
    """Adjacent columns with one meaning, from `start` up to but not including `stop`; a `rotation_6d` has six."""

    name: str
    kind: Kind
    start: int
    stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start


Layout = tuple[Channels, ...]
_UNPRINTED = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of characters that end a line, control a terminal or are not text."""
_FINGERS = ("index", "middle", "pinky", "ring", "thumb")
SMPLX_JOINTS = (
    *("pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle"),
    *("spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder"),
    *("right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "jaw", "left_eye", "right_eye"),
    *(f"{side}_{finger}{bone}" for side in ("left", "right") for finger in _FINGERS for bone in (1, 2, 3)),
)
"""SMPL-X's 55 joints in its order: 22 of the body, 3 of the face, 15 per hand."""
SMPLX_PARENTS = (
    *(-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15),
    *(20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38),
    *(21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53),
)
"""Index of each joint's parent; the pelvis has none."""
SMPLH_JOINTS = tuple(name for name in SMPLX_JOINTS if name not in ("jaw", "left_eye", "right_eye"))
"""SMPL-H's 52 joints in its order: those of SMPL-X without the face."""
SMPL_JOINTS = (*SMPLX_JOINTS[:22], "left_hand", "right_hand")
"""SMPL's 24 joints in its order: SMPL-X's 22 of the body, and one per hand."""
TRANSLATION, EXPRESSIONS, NUM_EXPRESSIONS = "translation", "expressions", 100
_UPPER = (3, 6, 9, *range(12, 22))
_HANDS = tuple(range(25, 55))
_LOWER = (0, 1, 2, 4, 5, 7, 8, 10, 11)
_WHOLE = (*range(22), *_HANDS)
BODY_PART_CHANNELS: dict[str, tuple[str, ...]] = {
    "upper": tuple(SMPLX_JOINTS[joint] for joint in _UPPER),
    "hands": tuple(SMPLX_JOINTS[joint] for joint in _HANDS),
    "lower": tuple(SMPLX_JOINTS[joint] for joint in _LOWER),
    "lower_trans": (*(SMPLX_JOINTS[joint] for joint in _LOWER), TRANSLATION),
    "whole": tuple(SMPLX_JOINTS[joint] for joint in _WHOLE),
    "whole_trans": (*(SMPLX_JOINTS[joint] for joint in _WHOLE), TRANSLATION),
    "face": (EXPRESSIONS,),
    # The face of EMAGE and of GestureLSM has its 106 columns in this order.
    "face_jaw": ("jaw", EXPRESSIONS),
}
"""Names of the joints and other columns of SMPL-X data that belong to each body part."""
_OF_SMPL = {"whole": SMPL_JOINTS, "whole_trans": (*SMPL_JOINTS, TRANSLATION)}
"""Those parts that are others for SMPL, which has one joint per hand."""


def smplx_layout() -> Layout:
    """Returns 433 columns: 55 joints as 6D, root translation (x velocity, y height, z velocity), 100 expressions."""
    body = joint_layout(SMPLX_JOINTS, "translation")
    return (*body, Channels(EXPRESSIONS, "expression", body[-1].stop, body[-1].stop + NUM_EXPRESSIONS))


def joint_layout(joints: Sequence[str], root: Kind) -> Layout:
    """Returns a layout of joints as 6D, then the root's `translation`, of kind `translation` or `position`."""
    parts = [Channels(name, "rotation_6d", 6 * index, 6 * index + 6) for index, name in enumerate(joints)]
    return (*parts, Channels(TRANSLATION, root, 6 * len(joints), 6 * len(joints) + 3))


def feature_layout(width: int) -> Layout:
    """Returns a layout for columns of unknown meaning."""
    return (Channels("features", "feature", 0, width),)


def rotation_columns(layout: Layout) -> NDArray[np.int64]:
    """Returns the columns of each 6D rotation, int64 `[rotations, 6]`."""
    starts = [channels.start for channels in layout if channels.kind == "rotation_6d"]
    return np.asarray(starts, np.int64).reshape(-1, 1) + np.arange(6)


def body_part_channels(layout: Layout) -> dict[str, tuple[str, ...]]:
    """Returns the names of `BODY_PART_CHANNELS`; with SMPL's 24 joints, `whole` has these."""
    there = {channels.name for channels in layout}
    return BODY_PART_CHANNELS | (_OF_SMPL if there >= set(SMPL_JOINTS) else {})


def select_columns(
    layout: Layout, body_part: str, own_parts: Mapping[str, Sequence[str | int]] | None = None
) -> tuple[NDArray[np.int64], Layout]:
    """Returns the columns of a body part, int64, and their own layout, renumbered from 0.

    For data without the names of SMPL-X's body joints, all columns are returned, unless `own_parts` has the part.

    Args:
        own_parts: `rvqvae.data.body_parts`; such a part replaces the SMPL-X part of the same name.

    Raises:
        UserError: the data lack a joint, or other columns, that the body part needs.
    """
    if own_parts and body_part in own_parts:
        return take_channels(layout, _own_part(layout, body_part, own_parts[body_part]))
    there = {channels.name for channels in layout}
    channels_of = body_part_channels(layout)
    wanted = channels_of.get(body_part, ())
    if not there >= set(SMPLX_JOINTS[:22]):
        wanted = tuple(channels.name for channels in layout)
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        parts = [part for part, names in channels_of.items() if there.issuperset(names)]
        needs = f"needs {missing[0]}, which these data do not have" if missing else "is not known"
        needs += f"; they have the parts {', '.join(parts)}" if parts else ""
        raise UserError(f"rvqvae.data.body_part: {body_part} {needs}")
    return take_channels(layout, wanted)


def take_channels(layout: Layout, names: Sequence[str]) -> tuple[NDArray[np.int64], Layout]:
    """Returns the columns of the layout's entries called `names`, in that order, and their own layout.

    Raises:
        KeyError: the layout has no such entry.
    """
    there = {channels.name: channels for channels in layout}
    columns: list[int] = []
    selected, width = [], 0
    for channels in (there[name] for name in names):
        columns.extend(range(channels.start, channels.stop))
        selected.append(Channels(channels.name, channels.kind, width, width + channels.width))
        width += channels.width
    return np.asarray(columns, np.int64), tuple(selected)


def _own_part(layout: Layout, body_part: str, joints: Sequence[str | int]) -> list[str]:
    """Returns the layout names that a part's list of joints selects, each once, in the order given."""
    names = [channels.name for channels in layout]
    found: dict[str, None] = {}
    for joint in joints:
        if isinstance(joint, int):
            matches = [names[joint]] if 0 <= joint < len(names) else []
        else:
            matches = [joint] if joint in names else fnmatch.filter(names, joint)
        if not matches:
            near = difflib.get_close_matches(str(joint), names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names[:8])}, …; 0 to {len(names) - 1}"
            raise UserError(f"rvqvae.data.body_parts.{body_part}: these data have no joint {joint}; {hint}")
        found |= dict.fromkeys(matches)
    return list(found)


def missing_channels(layout: Layout, wanted: Sequence[Channels]) -> Channels | None:
    """Returns the first of `wanted` that `layout` lacks (by name, kind and width), or None if it has them all."""
    there = {(part.name, part.kind, part.width) for part in layout}
    return next((part for part in wanted if (part.name, part.kind, part.width) not in there), None)


def root_channels(layout: Layout) -> Channels | None:
    """Returns the entry of the root's position: the first of kind `translation` or `position` with three columns."""
    return next((part for part in layout if part.kind in ("translation", "position") and part.width == 3), None)


def check_disjoint(parts: Iterable[tuple[str, Sequence[str | int]]]) -> None:
    """Raises UserError if two body parts have a common column, or if one is named twice.

    Args:
        parts: body parts as pairs: the part's name, and the layout names of its columns.
    """
    taken: dict[str | int, str] = {}
    for body_part, names in parts:
        for name in names:
            if name in taken:
                both = "is named twice" if taken[name] == body_part else f"and {taken[name]} both have {name}"
                raise UserError(f"body part {body_part} {both}; name body parts that have nothing in common")
        taken |= dict.fromkeys(names, body_part)


def layout_to_json(layout: Sequence[Channels]) -> list[dict[str, Any]]:
    """Returns `[{"name", "kind", "columns": [from, to)}, …]`."""
    return [{"name": part.name, "kind": part.kind, "columns": [part.start, part.stop]} for part in layout]


def layout_from_json(entries: Any, width: int) -> Layout:
    """Reads a layout, given as JSON text or as the list in it; an entry with several rotations becomes one for each.

    Raises:
        ValueError: the entries do not cover columns 0 to `width` once and in order, or a name cannot be printed on one
            line. The message says what is wrong.
    """
    if isinstance(entries, str):
        entries = parse_json(entries)
    if not isinstance(entries, list):
        raise ValueError("layout: not a list")
    layout: list[Channels] = []
    for entry in entries:
        layout.extend(_channels_from_json(entry, layout[-1].stop if layout else 0, width))
    if (layout[-1].stop if layout else 0) != width:
        raise ValueError(f"layout: ends at column {layout[-1].stop if layout else 0} of {width}")
    names = [channels.name for channels in layout]
    if len(set(names)) < len(names):
        raise ValueError("layout: a name occurs twice")
    return tuple(layout)


def _channels_from_json(entry: Any, expected_start: int, width: int) -> list[Channels]:
    if not isinstance(entry, dict) or not {"name", "kind", "columns"} <= entry.keys():
        raise ValueError(f"layout: an entry is not an object with name, kind and columns: {entry}")
    name, kind, columns = entry["name"], entry["kind"], entry["columns"]
    if not isinstance(name, str) or kind not in get_args(Kind):
        raise ValueError(f"layout: {name}: kind is {kind!r}, not one of {', '.join(get_args(Kind))}")
    if any(unicodedata.category(character) in _UNPRINTED for character in name):
        raise ValueError(f"layout: the name {json.dumps(name)} contains control characters")
    if not isinstance(columns, list) or len(columns) != 2 or not all(type(column) is int for column in columns):
        raise ValueError(f"layout: {name}: columns must be [from, to], not {columns}")
    start, stop = columns
    if start != expected_start or stop <= start:
        raise ValueError(f"layout: {name}: columns {start} to {stop} do not follow column {expected_start}")
    if stop > width:
        raise ValueError(f"layout: {name}: columns {start} to {stop}, but there are {width}")
    if kind != "rotation_6d":
        return [Channels(name, kind, start, stop)]
    count, rest = divmod(stop - start, 6)
    if rest:
        raise ValueError(f"layout: {name}: {stop - start} columns; 6D rotations need a multiple of 6")
    names = [name] if count == 1 else [f"{name}{index}" for index in range(count)]
    return [Channels(part, kind, start + 6 * i, start + 6 * i + 6) for i, part in enumerate(names)]


def check_losses(config: LossConfig, layout: Layout) -> None:
    """Raises UserError if the data lack the columns that a loss needs."""
    if config.loss_rotation and not len(rotation_columns(layout)):
        raise UserError("rvqvae.loss.loss_rotation: the data have no columns known to be 6D rotations; set it to 0")
    column_weights(config, layout)


def column_weights(config: LossConfig, layout: Layout) -> NDArray[np.float32] | None:
    """Returns `joint_weights` as float32 `[C]` with mean 1, or None if not set; the last matching pattern counts.

    Raises:
        UserError: a pattern matches no name, or all weights are 0.
    """
    if config.joint_weights is None:
        return None
    weights = np.ones(layout[-1].stop, np.float32)
    for pattern, weight in config.joint_weights.items():
        parts = [part for part in layout if fnmatch.fnmatchcase(part.name, pattern)]
        if not parts:
            names = ", ".join(dict.fromkeys(part.name for part in layout))
            raise UserError(f"rvqvae.loss.joint_weights: no joint is called {pattern}; there are {names}")
        for part in parts:
            weights[part.start : part.stop] = weight
    if not weights.any():
        raise UserError("rvqvae.loss.joint_weights: the weight of every joint is 0")
    weights /= weights.mean()
    return weights
