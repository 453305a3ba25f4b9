"""The body in a BVH hierarchy: the joint that carries it, and its height."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.bvh.file import Joint
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import TRANSLATION
from ds_rvqvae.motion.sides import partners

_HIPS = re.compile(r"(?:(?:^|[^A-Za-z])(?:hips?|pelvis|HIPS?|PELVIS)|Hips?|Pelvis)[\W\d_]*$")
_HEAD = re.compile(r"head[\W\d_]*$", re.IGNORECASE)
_TOP = re.compile(r"^$|top|end|nub|tip|crown", re.IGNORECASE)
_NECK = re.compile(r"neck|head", re.IGNORECASE)
_LEG = re.compile("leg|thigh|knee|shin|calf|ankle|foot|femur|tibia", re.IGNORECASE)
_ARM = re.compile("arm|shoulder|elbow|hand|wrist|humerus", re.IGNORECASE)
_ALIKE = (0.03, 0.1)
"""Two limbs whose names do not say that they are a pair count as one if their lengths differ by at most this fraction.
Pairs within the first fraction come before those within the second, such as a leg and the path up to a hand."""
_BENT, _STRAIGHT = np.cos(np.radians(35)), 0.985
"""Bones whose cosine to upright is above the first are straightened, as in a person who stands. A rest pose at least
the second as tall as the straightened one is measured as it is."""
_STANDS = 0.7
"""A rest pose stands if its height from feet to head is at least this fraction of its bones' total length."""
_HIP, _FOOT, _CROWN = 0.6, 0.3, 0.12
"""For other rest poses: upright fractions of a leg's first and last bone; the head's fraction of a body's height."""


class Body(NamedTuple):
    """The joints that the limbs of a body are attached to, and the first joints of legs, arms and neck."""

    hips: int
    legs: tuple[int, int]
    """The first joint of each leg."""
    chest: int
    arms: tuple[int, int]
    neck: int | None


def unique_names(joints: Sequence[Joint]) -> list[str]:
    """Returns a unique name for each joint: its own for the first joint of that name, then with `.1`, `.2`, …

    End Sites have "". No joint is named `translation`, because other columns have this name.
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


def bones_of(joints: Sequence[Joint], frame: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Returns each joint's position relative to its parent at rest, float64 `[joints, 3]`, in the file's unit.

    This is its OFFSET. But if every joint that turns has position channels, it is their value in `frame`, `[channels]`,
    because OFFSET may then be anything, such as the position in the first frame.
    """
    bones = np.array([joint.offset for joint in joints], np.float64).reshape(-1, 3)
    if frame is None or not _all_have_positions(joints):
        return bones
    column = 0
    for index, joint in enumerate(joints):
        for axis, at in _positions(joint):
            bones[index, axis] = frame[column + at]
        column += len(joint.channels)
    return bones


def _all_have_positions(joints: Sequence[Joint]) -> bool:
    """Returns whether position channels stand for bones, which is so if every joint that turns has them."""
    return all(len(_positions(joint)) == 3 for joint in joints if joint.axes and joint.parent >= 0)


def _positions(joint: Joint) -> list[tuple[int, int]]:
    """Returns the axis of each position channel, and its index among the joint's channels."""
    return [("XYZ".index(name[0]), at) for at, name in enumerate(joint.channels) if name.endswith("position")]


class Tree:
    """A hierarchy, with facts about the limbs below each joint.

    Args:
        joints: each after its parent.
        bones: `[joints, 3]`, from `bones_of`.
    """

    def __init__(self, joints: Sequence[Joint], bones: NDArray[np.float64]) -> None:
        self.joints, self.bones = joints, bones
        self.lengths = np.linalg.norm(bones, axis=1)
        self.children: list[list[int]] = [[] for _ in joints]
        for index, joint in enumerate(joints):
            if joint.parent >= 0:
                self.children[joint.parent].append(index)
        rows = {name: index for index, name in enumerate(unique_names(joints)) if name}
        self._partner = {rows[name]: rows[other] for name, other in partners(list(rows)).items() if other != name}
        self._deep = [0] * len(joints)
        """For each joint: the largest number of joints that turn on a path down from it, itself included."""
        self.reach = [0.0] * len(joints)
        """For each joint: length of the longest path down from its parent through it and joints that turn."""
        self.pairs: list[tuple[int, int] | None] = [None] * len(joints)
        """For each joint: the longest pair of limbs attached to it."""
        self._limb = [0.0] * len(joints)
        """For each joint: length of the longest limb of a pair that is attached to it or below it."""
        self.pairs_below = [0] * len(joints)
        """For each joint: the number of joints with a pair, from it down."""
        self._bodies: dict[int, int | None] = {}
        """Results of `_beside_controls`."""
        for index in reversed(range(len(joints))):
            below = self.children[index]
            self._deep[index] = bool(joints[index].axes) + max((self._deep[child] for child in below), default=0)
            reached = max((self.reach[child] for child in below if self._deep[child]), default=0.0)
            self.reach[index] = float(self.lengths[index]) + reached
            self.pairs[index] = pair = self.pair(below)
            limbs = (self._limb[child] for child in below)
            self._limb[index] = max(limbs, default=0.0) if pair is None else max(self.reach[pair[0]], *limbs)
            self.pairs_below[index] = (self.pairs[index] is not None) + sum(self.pairs_below[child] for child in below)

    def pair(self, joints: Sequence[int]) -> tuple[int, int] | None:
        """Returns the longest two of `joints` that begin limbs and match by name or by length, or None.

        A limb has two or more joints that turn.
        """
        limbs = sorted((joint for joint in joints if self._deep[joint] > 1), key=lambda joint: -self.reach[joint])
        for joint in limbs:
            if self._partner.get(joint) in limbs:
                return joint, self._partner[joint]
        # The fingers of an arm are short; a branch with long limbs of its own is not a limb.
        limbs = [joint for joint in limbs if self._limb[joint] < 0.5 * self._tail((joint,))]
        pairs = ((pair, share) for share in _ALIKE for pair in pairwise(limbs))
        return next((pair for pair, share in pairs if self._is_alike(*pair, share)), None)

    def _is_alike(self, first: int, second: int, share: float = _ALIKE[0]) -> bool:
        """Returns whether the limbs of two joints, the longer one first, have about the same length and joint count."""
        is_as_long = self.reach[second] >= (1 - share) * self.reach[first] > 0
        return is_as_long and abs(self._deep[second] - self._deep[first]) < 2

    def is_hips(self, joint: int) -> bool:
        """Returns whether a joint is called hips or pelvis and is not the hip of one side."""
        return bool(_HIPS.search(self.joints[joint].name)) and joint not in self._partner

    def path(self, joint: int, above: int = -1) -> list[int]:
        """Returns the joints from below `above` (default: from the root) down to `joint`."""
        way = []
        while joint != above:
            way.append(joint)
            joint = self.joints[joint].parent
        return way[::-1]

    def below(self, joint: int) -> list[int]:
        """Returns a joint and all joints below it, in order."""
        found = {joint}
        for index in range(joint + 1, len(self.joints)):
            if self.joints[index].parent in found:
                found.add(index)
        return sorted(found)

    def branching(self, joint: int) -> int:
        """Returns the first joint from `joint` down with limbs; branches without limbs, such as a camera, are skipped.

        Raises:
            ClipError: the limbs belong to two figures.
        """
        while True:
            body = self._beside_controls(joint)
            if body is not None:
                joint = body
                continue
            if self.pairs[joint] is not None:
                break
            bodies = [child for child in self.children[joint] if self.pairs_below[child]]
            if self._are_figures(bodies):
                raise self._two_figures(bodies)
            if not bodies:
                bodies = [child for child in self.children[joint] if self._deep[child]]
            if len(bodies) != 1:
                break
            joint = bodies[0]
        return joint

    def _beside_controls(self, joint: int) -> int | None:
        """Returns the child of a joint that carries the body, if the joint's pair is not limbs but controls of a rig.

        Legs are never above a joint called hips.
        """
        pair = self.pairs[joint]
        if joint in self._bodies or pair is None or any(map(self.is_hips, self.path(joint))):
            return self._bodies.get(joint)
        bodies = []
        for child in self.children[joint]:
            if child not in pair and self.pairs_below[child] > 1:
                hips = next(filter(self.is_hips, self.below(child)), None)
                if hips is not None and self.body(hips) is not None:
                    bodies.append(child)
        if len(bodies) > 1:
            raise self._two_figures(bodies)
        self._bodies[joint] = bodies[0] if bodies else None
        return self._bodies[joint]

    def _two_figures(self, bodies: Sequence[int]) -> ClipError:
        names = " and ".join(self.joints[body].name for body in bodies[:2])
        return ClipError(f"holds two figures, {names}; export each one to a file of its own")

    def _are_figures(self, joints: Sequence[int]) -> bool:
        """Returns whether joints carry complete figures, not halves of one: each has hips, or they match in build."""
        first, second = sorted(joints, key=lambda joint: -self.reach[joint])[:2] if len(joints) > 1 else (0, 0)
        if first == second or min(self.pairs_below[first], self.pairs_below[second]) < 2:
            return False
        hips = [any(map(self.is_hips, self.below(joint))) for joint in (first, second)]
        return all(hips) or self._is_alike(first, second)

    def carrier(self) -> int:
        """Returns the first joint that carries the body: its position and rotation are the body's.

        On the path from the root to the joint with the limbs, this is the one called hips or pelvis, or a joint below
        it with a position of its own. If none is called so, it is the last one with position channels, else the joint
        with the limbs. It is the same for all files of a skeleton, whatever moves in them.

        Raises:
            ClipError: there are two figures.
        """
        last = self.branching(0)
        way = self.path(last)
        placed = [joint for joint in way if _positions(self.joints[joint])]
        named = list(filter(self.is_hips, way))
        if named:
            # Hips may be a fixed reference with a moving joint below. If all joints have position channels, these are
            # bones.
            own = [joint for joint in placed if joint in named or not _all_have_positions(self.joints)]
            chosen = max([named[0], *own[-1:]])
        elif any(self._deep[child] for child in self.children[last]):
            chosen = placed[-1] if placed else last
        else:  # joints in a row
            chosen = placed[-1] if len(way) > len(placed) > 0 else way[0]
        turning = [joint for joint in way if self.joints[joint].axes]
        below, above = [joint for joint in turning if joint >= chosen], [joint for joint in turning if joint < chosen]
        return (below or above[-1:] or [chosen])[0]

    def body(self, top: int = 0) -> Body | None:
        """Returns the body from `top` down if its legs and arms have the proportions of a person's, else None.

        Raises:
            ClipError: there are two figures.
        """
        hips = self.branching(top)
        legs = self.pairs[hips]
        others = [child for child in self.children[hips] if child not in (legs or ())]
        upper = [child for child in others if self.pairs_below[child]]
        if legs is None:  # both pelvis and chest are attached to the waist
            joints = [self.branching(child) for child in upper]
            joints.sort(key=lambda joint: len(self.children[joint]))
            if len(joints) != 2:
                return None
            hips, chest = joints
            legs = self.pairs[hips]
        else:
            chest = self.branching(max(upper, key=self.reach.__getitem__)) if upper else hips
        arms = self.pairs[chest] if chest != hips else self.pair(others)
        if legs is None or arms is None:
            return None
        if hips == chest and self._tail(arms) > self._tail(legs):
            legs, arms = arms, legs
        # The shorter one of each pair, as an object in one hand adds to the length of that arm.
        leg, arm = (min(self.reach[joint] for joint in pair) for pair in (legs, arms))
        if not 0.4 * leg <= arm <= 1.6 * leg:
            return None
        necks = [child for child in self.children[chest] if child not in (*legs, *arms)]
        necks.sort(key=lambda joint: (not _NECK.search(self.joints[joint].name), -self.reach[joint]))
        return Body(hips, legs, chest, arms, necks[0] if necks else None)

    def _tail(self, limbs: Sequence[int]) -> float:
        """Returns the length of the shorter limb without its first bone, which leads to a shoulder or a hip."""
        return min(self.reach[joint] - float(self.lengths[joint]) for joint in limbs)

    def size(self) -> tuple[float, bool]:
        """Returns the figure's height in the file's unit, and whether it is a person's body; raises ClipError.

        If the limbs do not show a body, the names may: hips, a leg and an arm. The height is then the largest extent at
        rest.
        """
        body = self.body()
        if body is not None:
            return self.height(body), True
        carrier = self.carrier()
        parts = self.below(carrier)
        places = np.zeros((len(self.joints), 3))
        for joint in parts[1:]:
            places[joint] = places[self.joints[joint].parent] + self.bones[joint]
        names = [self.joints[joint].name for joint in parts]
        is_named = self.is_hips(carrier) and all(any(map(part.search, names)) for part in (_LEG, _ARM))
        return float(np.ptp(places[parts], axis=0).max()), is_named

    def height(self, body: Body) -> float:
        """Returns the standing height of a body in the file's unit, from its straightened bones, for any rest pose."""
        top = self._top(body)
        up = self._ways(body.hips, top)
        legs = [self._ways(body.hips, self._end(leg, body)) for leg in body.legs]
        rest = self._rest(up) - np.mean([self._rest(leg) for leg in legs], axis=0)
        axis = int(np.abs(rest).argmax())
        upright = np.eye(3)[axis] * np.sign(rest[axis])
        spine = float(sum(self.lengths[joint] for joint, _ in up))
        whole = spine + float(np.mean([sum(self.lengths[joint] for joint, _ in leg) for leg in legs]))
        if abs(rest[axis]) >= _STANDS * whole > 0:
            tall = [
                max(self._ends(up, upright, bent), default=0.0)
                + float(np.mean([max(self._ends(leg, -upright, bent)) for leg in legs]))
                for bent in (1.0, _BENT)
            ]
            return tall[0] if tall[0] >= _STRAIGHT * tall[1] else tall[1]
        # The bones may point in any direction at rest: take their usual fractions.
        height = spine + float(np.mean([self._leg_length([joint for joint, _ in leg]) for leg in legs]))
        is_crown = bool(up) and bool(_TOP.search(self.joints[top].name)) and self.lengths[top] > 0
        return height if is_crown else height / (1 - _CROWN)

    def _top(self, body: Body) -> int:
        """Returns the top of the head: the End Site of the joint called head, else the end of the longest path up."""
        if body.neck is None:
            return body.chest
        above = self.below(body.neck)
        head = next((joint for joint in above if _HEAD.search(self.joints[joint].name)), None)
        if head is None:
            return self._end(body.neck, body)
        ends = [joint for joint in self.children[head] if _TOP.search(self.joints[joint].name)]
        carries_bones = {joint.parent for joint in self.joints if joint.name}
        tops = [joint for joint in ends if joint not in carries_bones and self._is_near(joint, body)]
        return max(tops, key=self.lengths.__getitem__) if tops else head

    def _end(self, joint: int, body: Body) -> int:
        """Returns the last joint of the longest path down from a joint."""
        while True:
            down = [child for child in self.children[joint] if self._is_near(child, body)]
            if not down:
                return joint
            joint = max(down, key=lambda child: (self.reach[child], self.lengths[child]))

    def _is_near(self, joint: int, body: Body) -> bool:
        """Returns False for an End Site that is further from its joint than the longest bone of a leg, else True."""
        bones = [self.lengths[index] for index in self.below(body.legs[0])[1:] if self.joints[index].name]
        return bool(self.joints[joint].name) or self.lengths[joint] <= max(bones, default=0.0)

    def _ways(self, start: int, end: int) -> list[tuple[int, int]]:
        """Returns the bones from `start` to `end` with their direction: up (-1) to the common joint, then down (1)."""
        down, up = self.path(end), self.path(start)
        shared = sum(1 for first, second in zip(down, up, strict=False) if first == second)
        return [(joint, -1) for joint in reversed(up[shared:])] + [(joint, 1) for joint in down[shared:]]

    def _rest(self, way: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
        return np.sum([sign * self.bones[joint] for joint, sign in way], axis=0) if way else np.zeros(3)

    def _ends(self, way: Sequence[tuple[int, int]], direction: NDArray[np.float64], bent: float) -> list[float]:
        """Returns how far along `direction` each bone of a path ends.

        A bone whose cosine to `direction` is over `bent` counts with its full length, as if it were straight.
        """
        ends, reached = [], 0.0
        for joint, sign in way:
            part = float(sign * self.bones[joint] @ direction)
            reached += float(self.lengths[joint]) if part > bent * self.lengths[joint] else part
            ends.append(reached)
        return ends

    def _leg_length(self, leg: Sequence[int]) -> float:
        long = sorted(sorted(leg, key=lambda joint: -self.lengths[joint])[:2])
        shares = [_HIP if joint < long[0] else _FOOT if joint > long[-1] else 1.0 for joint in leg]
        return float(np.dot(shares, self.lengths[list(leg)]))
