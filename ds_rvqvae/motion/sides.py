"""Left and right: which joints lie on which side of a figure, and which joint is the same one on the other side."""

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
"""Where a name surely tells a side."""
_PERHAPS_SIDED = re.compile(r"^[lrLR]|[lrLR]$|left|right")
"""Where it may: lfemur has rfemur beside it, lowerback nothing."""
_MIDDLE = 0.015
"""Metres from the root, to the left or right at rest, up to which a joint lies in the middle."""


def partners(names: Sequence[str], no_partner: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """Each joint's name and that of the same joint on the other side; those in the middle are their own partners.

    Args:
        no_partner: called with a name that surely tells a side but has no partner.
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
    """1 for joints on the figure's left, -1 on its right, 0 where names tell no side, int64 `[joints]`."""
    return np.array([_side(name, other) for name, other in partners(names).items()], np.int64)


def sides_at_rest(skeleton: Skeleton) -> NDArray[np.int64]:
    """1 for joints on the figure's left, -1 on its right, 0 in the middle, int64 `[joints]`; x at rest says so.

    The middle is where the figure branches first: a root that stands by itself on the floor may be anywhere.
    """
    parents = list(skeleton.parents)
    still = np.broadcast_to(np.eye(3), (1, len(parents), 3, 3))
    x = forward_kinematics(still, skeleton.offsets, parents)[0, :, 0]
    x = x - x[next((joint for joint in range(len(parents)) if parents.count(joint) > 1), 0)]
    return np.where(x > _MIDDLE, 1, np.where(x < -_MIDDLE, -1, 0))


def sides_of(skeleton: Skeleton) -> NDArray[np.int64]:
    """1 for joints on the figure's left, -1 on its right, 0 in the middle, int64 `[joints]`: as their names tell.

    A joint whose name tells no side is on that of its parent. Where names tell no sides at all, x at rest does.
    """
    sides = sides_by_name(skeleton.joint_names)
    if not (sides > 0).any() or not (sides < 0).any():
        return sides_at_rest(skeleton)
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0 and not sides[joint]:
            sides[joint] = sides[parent]
    return sides


def _candidates(name: str) -> list[str]:
    """What the partner of a joint may be called, the most likely first."""
    candidates = [_SIDED.sub(lambda match: _OTHER_WORD[match[0]], name)]
    for pattern in (_SIDED, _PERHAPS_SIDED):
        for match in pattern.finditer(name):
            candidates.append(name[: match.start()] + _OTHER_WORD[match[0]] + name[match.end() :])
    return [candidate for candidate in candidates if candidate != name]


def _side(name: str, partner: str) -> int:
    """The side of a joint with this partner, its own name where it has none."""
    if name != partner:
        # The names differ in one word; where left and right differ first, they are l and r.
        letter = next(letter for letter, other in zip(name, partner, strict=False) if letter != other)
    else:
        match = _SIDED.search(name)
        letter = match[0][0] if match else ""
    return {"l": 1, "左": 1, "r": -1, "右": -1}.get(letter.lower(), 0)
