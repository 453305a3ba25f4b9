"""Left and right: the side of a figure that each joint lies on, and its partner on the other side."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.motion.skeleton import Skeleton, forward_kinematics

_OTHER_WORD = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "l": "r", "L": "R", "左": "右"}
_OTHER_WORD |= {right: left for left, right in _OTHER_WORD.items()}
_SIDED = re.compile(
    r"(?<![A-Za-z])(?:left|right|LEFT|RIGHT)|Left|Right"  # left_hip, LeftHip, mixamorig:LeftArm, hand_left
    r"|(?<![A-Za-z])(?:[lr](?=[A-Z])|[LR](?=[A-Z][a-z]))"  # lThigh, LThumb; not LowerBack
    r"|(?<![A-Za-z0-9])[LRlr](?![A-Za-z0-9])"  # Hip.L, hip_l, Bip01 L Arm; not L5, a vertebra
    r"|(?<=[a-z0-9])(?<![CLST]\d)(?<![CLST]\d\d)[LR](?!\d{1,2}[CLST]|[A-Za-z])"  # ArmL, FootR1; not jL5S1, jL4L3
    r"|[左右]"
)
"""Patterns that certainly name a side."""
_PERHAPS_SIDED = re.compile(r"^[lrLR]|[lrLR]$|left|right")
"""Patterns that may name a side: lfemur does, as there is an rfemur; lowerback does not."""
_MIDDLE = 0.015
"""Metres: a joint at rest that is at most this far to the left or right of the root lies in the middle."""


def partners(names: Sequence[str], no_partner: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """Maps each joint's name to that of the same joint on the other side; a joint in the middle is its own partner.

    Args:
        no_partner: called with each name that certainly names a side but has no partner.
    """
    there, found = set(names), {}
    for name in names:
        found[name] = next((other for other in _candidates(name) if other in there), name)
    found = {name: other if found[other] == name else name for name, other in found.items()}
    for name, other in found.items():
        if name == other and _SIDED.search(name):
            no_partner(name)
    return found


def sides_by_name(names: Sequence[str]) -> NDArray[np.int64]:
    """Returns int64 `[joints]` from the names: 1 on the figure's left, -1 on its right, 0 where a name has no side."""
    return np.array([_side(name, other) for name, other in partners(names).items()], np.int64)


def sides_at_rest(skeleton: Skeleton) -> NDArray[np.int64]:
    """Returns int64 `[joints]` from x at rest: 1 on the figure's left, -1 on its right, 0 in the middle.

    The middle is the joint where the figure first branches: a separate root on the floor may be anywhere.
    """
    parents = list(skeleton.parents)
    still = np.broadcast_to(np.eye(3), (1, len(parents), 3, 3))
    x = forward_kinematics(still, skeleton.offsets, parents)[0, :, 0]
    x = x - x[next((joint for joint in range(len(parents)) if parents.count(joint) > 1), 0)]
    return np.where(x > _MIDDLE, 1, np.where(x < -_MIDDLE, -1, 0))


def sides_of(skeleton: Skeleton) -> NDArray[np.int64]:
    """Returns int64 `[joints]` from the names: 1 on the figure's left, -1 on its right, 0 in the middle.

    A joint whose name has no side takes its parent's side. If no name has a side, x at rest decides.
    """
    sides = sides_by_name(skeleton.joint_names)
    if not (sides > 0).any() or not (sides < 0).any():
        return sides_at_rest(skeleton)
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0 and not sides[joint]:
            sides[joint] = sides[parent]
    return sides


def _candidates(name: str) -> list[str]:
    """Returns possible names of a joint's partner, the most likely first."""
    candidates = [_SIDED.sub(lambda match: _OTHER_WORD[match[0]], name)]
    for pattern in (_SIDED, _PERHAPS_SIDED):
        for match in pattern.finditer(name):
            candidates.append(name[: match.start()] + _OTHER_WORD[match[0]] + name[match.end() :])
    return [candidate for candidate in candidates if candidate != name]


def _side(name: str, partner: str) -> int:
    """Returns the side of a joint, given its partner's name; a joint without a partner is given its own name."""
    if name != partner:
        # The names differ in one word; the first letters that differ are l and r.
        letter = next(letter for letter, other in zip(name, partner, strict=False) if letter != other)
    else:
        match = _SIDED.search(name)
        letter = match[0][0] if match else ""
    return {"l": 1, "左": 1, "r": -1, "右": -1}.get(letter.lower(), 0)
