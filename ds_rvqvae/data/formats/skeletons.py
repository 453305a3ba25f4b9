"""Skeletons from files: JSON, npz or BVH."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.base import load_npz
from ds_rvqvae.data.formats.bvh import Joint, read_joints
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import TRANSLATION
from ds_rvqvae.motion.skeleton import Skeleton, checked_skeleton, skeleton_from_json

_USUAL_HEIGHT = 1.7
"""Metres."""
_UNITS = (1.0, 0.01, 0.001, 0.0254, 0.3048, 0.0254 / 0.45)
"""Metres: metre, centimetre, millimetre, inch, foot, and the unit of CMU's ASF files."""
_SMALLEST, _TALLEST = 0.85, 3.4
"""Metres; a figure beyond them is hardly a person."""
Z_UP_TO_Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""-90 degrees about x."""


class Unit(NamedTuple):
    """A length in metres, and the words for the report."""

    metres: float
    note: str


def unique_names(joints: Sequence[Joint]) -> list[str]:
    """A name for each joint, its own where it is the first to have it, else with `.1`, `.2`, …; End Sites have "".

    `translation` is the name of other columns, so no joint's.
    """
    taken = {TRANSLATION, *(joint.name for joint in joints)}
    times = {TRANSLATION: 0}
    names = []
    for joint in joints:
        name = joint.name
        number = times[name] = times.get(name, -1) + 1
        while name and number and name in taken:
            name = f"{joint.name}.{number}"
            number += 1
        taken.add(name)
        names.append(name)
    return names


def guess_unit(joints: Sequence[Joint]) -> Unit:
    """The unit in which a figure, by its largest extent at rest, comes nearest to a person's height."""
    places = np.zeros((len(joints), 3))
    for index, joint in enumerate(joints):
        if joint.parent >= 0:
            places[index] = places[joint.parent] + joint.offset
    extent = float(np.ptp(places, axis=0).max())
    if not 0 < extent < math.inf:
        return Unit(0.01, "1 unit = 1 cm, as its skeleton has no size to guess from")
    metres = min(_UNITS, key=lambda unit: abs(math.log(extent) + math.log(unit / _USUAL_HEIGHT)))
    height = extent * metres
    guess = f"1 unit = {100 * metres:.4g} cm, guessed from the size of the skeleton"
    if not _SMALLEST < height < _TALLEST:
        guess += f", which is {height:.3g} m then: set rvqvae.data.metres_per_unit"
    return Unit(metres, guess)


def outermost(joints: Sequence[Joint]) -> list[bool]:
    """Whether each joint's parent is turned by no joint, so that its own offset and rotation are the world's."""
    free: list[bool] = []
    for joint in joints:
        free.append(joint.parent < 0 or (free[joint.parent] and not joints[joint.parent].axes))
    return free


def rest_skeleton(
    joints: Sequence[Joint], metres_per_unit: float, turn: NDArray[np.float64] | None = None
) -> dict[str, Any]:
    """The joints with channels as `joint_names`, `parents` and `offsets` (metres), for JSON.

    Joints without channels do not move: what hangs on one hangs on its parent.

    Args:
        turn: `[3, 3]`, turns the world.
    """
    offsets = metres_per_unit * np.array([joint.offset for joint in joints])
    if turn is not None:
        offsets = np.where(np.array(outermost(joints))[:, None], offsets @ turn.T, offsets)
    is_kept = [bool(joint.channels) or joint.parent < 0 for joint in joints]
    rows: list[int] = []  # of each joint in the skeleton, or of what carries it
    parents: list[int] = []
    for index, joint in enumerate(joints):
        carrier = rows[joint.parent] if joint.parent >= 0 else -1
        if joint.parent >= 0 and not is_kept[joint.parent]:
            offsets[index] += offsets[joint.parent]
        if is_kept[index]:
            parents.append(carrier)
        rows.append(len(parents) - 1 if is_kept[index] else carrier)
    names = unique_names(joints)
    return {
        "joint_names": [name for name, kept in zip(names, is_kept, strict=True) if kept],
        "parents": parents,
        "offsets": offsets[is_kept].tolist(),
    }


def load_skeleton(file: Path) -> Skeleton:
    """Reads a skeleton.

    Args:
        file: JSON with `joint_names`, `parents` and `offsets` (metres, one triple a joint), and `name` if it likes; or
            an npz with `joint_names`, `parents` and `offsets_m`, `[joints, 3]` or `[clips, joints, 3]`, of which the
            first clip's count; or a BVH file, its unit guessed from how tall its figure is.

    Raises:
        UserError: unreadable, or no tree of joints in metres whose parents stand before their children.
    """
    try:
        if file.suffix == ".npz":
            arrays = load_npz(file, ("joint_names", "parents", "offsets_m"))
            offsets = arrays["offsets_m"]
            if offsets.ndim == 3 and len(offsets):
                offsets = offsets[0]
            return checked_skeleton(arrays["joint_names"].tolist(), arrays["parents"].tolist(), offsets, file.stem)
        if file.suffix.lower() == ".bvh":
            joints = read_joints(file)
            return skeleton_from_json(rest_skeleton(joints, guess_unit(joints).metres), file.stem)
        entries = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(entries, dict):
            raise ClipError("not an object of joint_names, parents and offsets")
        return skeleton_from_json(entries, str(entries.get("name", file.stem)))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: neither JSON nor an npz or BVH file of a skeleton: {error}") from None
    except ClipError as error:
        raise UserError(f"{file}: not a skeleton: {' '.join(str(error).split())}") from None
