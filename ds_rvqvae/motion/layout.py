"""What the columns of a feature matrix mean, and which of them a body part takes."""

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

Kind = Literal["rotation_6d", "translation", "position", "expression", "feature"]
"""`translation` is x velocity, height and z velocity (metres, metres a frame); `position` is a place in metres."""


@dataclass(frozen=True, slots=True)
class Channels:
    """Neighbouring columns of one meaning, `start` up to but not including `stop`; a `rotation_6d` has six."""

    name: str
    kind: Kind
    start: int
    stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start


Layout = tuple[Channels, ...]
_UNPRINTED = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters that end a line, command a terminal or are no text."""
_FINGERS = ("index", "middle", "pinky", "ring", "thumb")
SMPLX_JOINTS = (
    *("pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle"),
    *("spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder"),
    *("right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "jaw", "left_eye", "right_eye"),
    *(f"{side}_{finger}{bone}" for side in ("left", "right") for finger in _FINGERS for bone in (1, 2, 3)),
)
"""SMPL-X's 55 joints in its order: 22 of the body, 3 of the face, 15 a hand."""
SMPLX_PARENTS = (
    *(-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15),
    *(20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38),
    *(21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53),
)
"""Index of each joint's parent; the pelvis has none."""
SMPLH_JOINTS = tuple(name for name in SMPLX_JOINTS if name not in ("jaw", "left_eye", "right_eye"))
"""SMPL-H's 52 joints in its order: SMPL-X's without the face."""
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
    # In this order EMAGE's and GestureLSM's face has its 106 columns.
    "face_jaw": ("jaw", EXPRESSIONS),
}
"""Names of the channels each body part takes of SMPL-X data."""


def smplx_layout() -> Layout:
    """55 joints as 6D, root translation (x velocity, y height, z velocity), 100 expressions: 433 columns."""
    body = joint_layout(SMPLX_JOINTS, "translation")
    return (*body, Channels(EXPRESSIONS, "expression", body[-1].stop, body[-1].stop + NUM_EXPRESSIONS))


def joint_layout(joints: Sequence[str], root: Kind) -> Layout:
    """Joints as 6D, then the root's `translation`, of kind `translation` or `position`."""
    parts = [Channels(name, "rotation_6d", 6 * index, 6 * index + 6) for index, name in enumerate(joints)]
    return (*parts, Channels(TRANSLATION, root, 6 * len(joints), 6 * len(joints) + 3))


def feature_layout(width: int) -> Layout:
    """Columns about which nothing is known."""
    return (Channels("features", "feature", 0, width),)


def rotation_columns(layout: Layout) -> NDArray[np.int64]:
    """Columns of each 6D rotation, int64 `[rotations, 6]`."""
    starts = [channels.start for channels in layout if channels.kind == "rotation_6d"]
    return np.asarray(starts, np.int64).reshape(-1, 1) + np.arange(6)


def select_columns(
    layout: Layout, body_part: str, own_parts: Mapping[str, Sequence[str | int]] | None = None
) -> tuple[NDArray[np.int64], Layout]:
    """The columns of a body part, int64, and their own layout, renumbered from 0.

    Data that do not have SMPL-X's body joints by name give all their columns, unless `own_parts` has the part.

    Args:
        own_parts: `rvqvae.data.body_parts`; they come before the parts of the same name that SMPL-X data have.

    Raises:
        UserError: data without a channel that the body part needs.
    """
    if own_parts and body_part in own_parts:
        return take_channels(layout, _own_part(layout, body_part, own_parts[body_part]))
    there = {channels.name for channels in layout}
    wanted = BODY_PART_CHANNELS.get(body_part, ())
    if not there >= set(SMPLX_JOINTS[:22]):
        wanted = tuple(channels.name for channels in layout)
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        parts = [part for part, names in BODY_PART_CHANNELS.items() if there.issuperset(names)]
        needs = f"needs {missing[0]}, which these data do not have" if missing else "is not known"
        needs += f"; they have {', '.join(parts)}" if parts else ""
        raise UserError(f"rvqvae.data.body_part: {body_part} {needs}")
    return take_channels(layout, wanted)


def take_channels(layout: Layout, names: Sequence[str]) -> tuple[NDArray[np.int64], Layout]:
    """Columns of the channels called `names`, in that order, and their own layout; raises KeyError."""
    there = {channels.name: channels for channels in layout}
    columns: list[int] = []
    selected, width = [], 0
    for channels in (there[name] for name in names):
        columns.extend(range(channels.start, channels.stop))
        selected.append(Channels(channels.name, channels.kind, width, width + channels.width))
        width += channels.width
    return np.asarray(columns, np.int64), tuple(selected)


def _own_part(layout: Layout, body_part: str, joints: Sequence[str | int]) -> list[str]:
    """The channels that a part's joints name, each once, in the order given."""
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
    """The first of `wanted` that `layout` does not have by name, kind and width; None where it has them all."""
    there = {(part.name, part.kind, part.width) for part in layout}
    return next((part for part in wanted if (part.name, part.kind, part.width) not in there), None)


def root_channels(layout: Layout) -> Channels | None:
    """The channels that say where the root is: the first three columns of kind `translation` or `position`."""
    return next((part for part in layout if part.kind in ("translation", "position") and part.width == 3), None)


def check_disjoint(parts: Iterable[tuple[str, Sequence[str | int]]]) -> None:
    """Raises UserError where two parts take the same channel, as a part named twice does.

    Args:
        parts: names of body parts, and of the channels that each takes.
    """
    taken: dict[str | int, str] = {}
    for body_part, names in parts:
        for name in names:
            if name in taken:
                both = "is named twice" if taken[name] == body_part else f"and {taken[name]} both have {name}"
                raise UserError(f"body part {body_part} {both}; name parts that share nothing")
        taken |= dict.fromkeys(names, body_part)


def layout_to_json(layout: Sequence[Channels]) -> list[dict[str, Any]]:
    """`[{"name", "kind", "columns": [from, to)}, …]`."""
    return [{"name": part.name, "kind": part.kind, "columns": [part.start, part.stop]} for part in layout]


def layout_from_json(entries: Any, width: int) -> Layout:
    """Reads a layout, given as JSON text or as the list it holds; several rotations in one entry become one each.

    Raises:
        ValueError: saying what is wrong, where the entries do not cover columns 0 to `width` once, in order, or a name
            is none that can be printed in a line.
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
        raise ValueError("layout: a name stands twice")
    return tuple(layout)


def _channels_from_json(entry: Any, expected_start: int, width: int) -> list[Channels]:
    if not isinstance(entry, dict) or not {"name", "kind", "columns"} <= entry.keys():
        raise ValueError(f"layout: an entry is not an object of name, kind and columns: {entry}")
    name, kind, columns = entry["name"], entry["kind"], entry["columns"]
    if not isinstance(name, str) or kind not in get_args(Kind):
        raise ValueError(f"layout: {name}: kind is {kind!r}, none of {', '.join(get_args(Kind))}")
    if any(unicodedata.category(character) in _UNPRINTED for character in name):
        raise ValueError(f"layout: the name {json.dumps(name)} holds control characters")
    if not isinstance(columns, list) or len(columns) != 2 or not all(type(column) is int for column in columns):
        raise ValueError(f"layout: {name}: columns are [from, to], not {columns}")
    start, stop = columns
    if start != expected_start or stop <= start:
        raise ValueError(f"layout: {name}: columns {start} to {stop} do not follow column {expected_start}")
    if stop > width:
        raise ValueError(f"layout: {name}: columns {start} to {stop} of {width}")
    if kind != "rotation_6d":
        return [Channels(name, kind, start, stop)]
    count, rest = divmod(stop - start, 6)
    if rest:
        raise ValueError(f"layout: {name}: {stop - start} columns are no whole number of 6D rotations")
    names = [name] if count == 1 else [f"{name}{index}" for index in range(count)]
    return [Channels(part, kind, start + 6 * i, start + 6 * i + 6) for i, part in enumerate(names)]


def check_losses(config: LossConfig, layout: Layout) -> None:
    """Raises UserError where the columns lack what a loss is about."""
    if config.loss_rotation and not len(rotation_columns(layout)):
        raise UserError("rvqvae.loss.loss_rotation: the data have no columns known to be 6D rotations; set it to 0")
    column_weights(config, layout)


def column_weights(config: LossConfig, layout: Layout) -> NDArray[np.float32] | None:
    """`joint_weights` as float32 `[C]` of mean 1, or None where there are none; of several patterns the last counts.

    Raises:
        UserError: a pattern that no name fits, or weights that are all 0.
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
        raise UserError("rvqvae.loss.joint_weights: every joint weighs 0")
    weights /= weights.mean()
    return weights
