"""BVH files of several skeletons: what they have in common, and a refusal to mix them unasked."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.bvh.bodies import Tree, bones_of, unique_names
from ds_rvqvae.data.formats.bvh.file import Joint, is_motion, read_bvh, read_joints
from ds_rvqvae.data.formats.bvh.kept import kept_joints, kept_skeleton, names_of
from ds_rvqvae.data.formats.bvh.skeletons import rest_skeleton
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.text import counted

_FEWEST_FILES, _SMALLEST_SHARE = 2, 0.05
"""A skeleton counts as one of several if it has at least this many files and this fraction of all; the rule `layout`
leaves out the files of rarer ones."""
_FEWEST_COMMON = 3
_BENT = 5.0
"""Degrees: the difference between two rest poses that is said."""
_SHOWN, _TRIED = 12, 5

Kind = tuple[tuple[str, ...], tuple[int, ...]]
"""A skeleton: the names of the joints that become columns, and for each the nearest such joint above it, or -1."""


@dataclass
class _Found:
    """The files of one skeleton, in order."""

    joints: tuple[Joint, ...]
    """Of the first file."""
    files: list[Path] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of joints that turn."""
        return sum(bool(joint.axes) for joint in self.joints)


class Skeletons:
    """The skeletons of a folder's files.

    Args:
        path: the folder.
        config: its `joint_names` and `joints` say which joints become columns, and how these are called.
    """

    def __init__(self, path: Path, config: DataConfig) -> None:
        self._path, self._config = path, config
        self._kinds: dict[Kind, _Found] = {}
        self._refused: dict[str, list[Path]] = {}
        """Files that the settings do not fit, by the reason."""
        self._known: dict[tuple[Any, ...], Kind | str] = {}
        self._names: set[str] = set()

    def add(self, file: Path, joints: tuple[Joint, ...]) -> None:
        """Adds a file with its joints."""
        key = tuple((joint.name, joint.parent, bool(joint.axes)) for joint in joints)
        if key not in self._known:
            self._names.update(unique_names(joints))
            try:
                kept = kept_joints(joints, 0, self._config)
            except ClipError as error:
                self._known[key] = str(error)
            else:
                rows = {joint: row for row, joint in enumerate(kept.joints)}
                above = tuple(rows.get(over, -1) for over in kept.above)
                self._known[key] = tuple(kept.names[joint] for joint in kept.joints), above
        kind = self._known[key]
        if isinstance(kind, str):
            self._refused.setdefault(kind, []).append(file)
        else:
            self._kinds.setdefault(kind, _Found(joints)).files.append(file)

    def check_names(self) -> None:
        """Raises UserError if `rvqvae.data.joint_names` does not fit these files."""
        ours = self._config.joint_names
        if not isinstance(ours, Mapping):
            return
        unknown = [name for name in ours if name not in self._names]
        if unknown and self._names:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(f"rvqvae.data.joint_names: no file in {self._path} has a joint {unknown[0]}{more}")
        for reason, files in self._refused.items():
            if "rvqvae.data.joint_names" in reason and (len(files) >= _FEWEST_FILES or not self._kinds):
                raise UserError(f"{files[0]}: {reason}")

    def counting(self) -> list[tuple[Kind, _Found]]:
        """Returns the skeletons that are not rare, the most common first."""
        found = sorted(self._kinds.items(), key=lambda kind: -len(kind[1].files))
        total = sum(len(kind.files) for kind in self._kinds.values())
        fewest = max(_FEWEST_FILES, _SMALLEST_SHARE * total)
        return found[:1] + [kind for kind in found[1:] if len(kind[1].files) >= fewest]

    def words(self) -> str:
        """Returns how many skeletons there are and the files of each, with a folder or file of each."""
        kinds = [found for _, found in self.counting()]
        folders = [Counter(file.parent for file in kind.files) for kind in kinds]
        counts: list[str] = []
        for kind, own in zip(kinds, folders, strict=True):
            folder = own.most_common(1)[0][0]
            is_alone = not any(folder in other for other in folders if other is not own)
            place = os.path.relpath(folder if is_alone else kind.files[0], self._path)
            files = counted(len(kind.files), "file") if not counts else f"{len(kind.files):,}"
            counts.append(f"{files} with {kind.size}{'' if counts else ' joints'} (such as {place})")
        rest = sum(len(kind.files) for kind in self._kinds.values()) - sum(len(kind.files) for kind in kinds)
        rare = f", and {counted(rest, 'file')} with others" if rest else ""
        return f"{counted(len(kinds), 'skeleton')}: {', '.join(counts)}{rare}"

    def rare_notes(self) -> tuple[str, ...]:
        """Returns notes on files of rare skeletons that are read all the same: their joints are those of the most
        common one, in its order, but below other joints."""
        kinds = [kind for kind, _ in self.counting()]
        alike = [(kind, found) for kind, found in self._kinds.items() if kind not in kinds and kind[0] == kinds[0][0]]
        return tuple(
            f"{_files(found)}: the joints of the other files in another hierarchy: {_moved(kinds[0], [kind])}"
            for kind, found in alike
        )

    def refuse_several(self) -> None:
        """Raises UserError if there are several skeletons, with what can be done."""
        kinds = self.counting()
        if len(kinds) < 2:
            return
        names = [set(kind[0]) for kind, _ in kinds]
        first, *others = (kind for kind, _ in kinds)
        if all(set(other[0]) == set(first[0]) for other in others):
            what = _moved(first, others) or "the same joints in another order"
            raise UserError(f"{self._path}: {self.words()}, {what}; {_one(kinds)}, or prepare a store of each folder")
        shared = len(set.intersection(*names))
        both = "both" if len(kinds) == 2 else "all"
        more = f"{shared} have the same name now, {to_say('joint_names', 'FILE.json')} gives others one: theirs to ours"
        raise UserError(
            f"{self._path}: {self.words()}; a store has one: {_one(kinds)}, {to_say('joints', 'common')} trains on the "
            f"joints that {both} have ({more}), or prepare a store of each folder"
        )


def _files(found: _Found) -> str:
    return found.files[0].name + (f" and {len(found.files) - 1} more" if len(found.files) > 1 else "")


def _one(kinds: Sequence[tuple[Kind, _Found]]) -> str:
    return f"{to_say('skeleton_of', str(kinds[0][1].files[0]))} takes the files with the skeleton of that file"


def _moved(first: Kind, others: Iterable[Kind]) -> str:
    """Returns in words which joint has another joint above it in another skeleton with the same joints, or ""."""
    own = _above_by_name(first)
    for other in map(_above_by_name, others):
        for name, above in own.items():
            if name in other and other[name] != above:
                return f"{name} is below {above or 'none'} in one and below {other[name] or 'none'} in the other"
    return ""


def _above_by_name(kind: Kind) -> dict[str, str]:
    names, above = kind
    return {name: names[over] if over >= 0 else "" for name, over in zip(names, above, strict=True)}


def skeletons_in(path: Path, files: Iterable[Path], config: DataConfig) -> Skeletons:
    """Returns the skeletons of files, by their hierarchies; files that cannot be read are skipped."""
    found = Skeletons(path, config)
    for file in files:
        try:
            joints = read_joints(file)
        except ClipError:
            continue  # the packing reports it
        found.add(file, joints)
    return found


class Common(NamedTuple):
    """The joints that several skeletons have, in the order of the most common one."""

    names: list[str]
    notes: tuple[str, ...]


def common_joints(path: Path, files: Iterable[Path], config: DataConfig) -> Common | None:
    """Returns the joints that all skeletons of a folder have, by their names after `rvqvae.data.joint_names`.

    They are those that turn, from the joint that carries the body down. Skeletons of few files do not count.

    Returns:
        None if no file can be read.

    Raises:
        UserError: fewer than three joints are common, or the body is carried by joints with different names, or a
            joint is below different common joints.
    """
    found = skeletons_in(path, files, config.with_values({"joints": None}))
    found.check_names()
    bodies = [body for _, kind in found.counting() if (body := _body_of(kind, config)) is not None]
    if not bodies:
        return None
    common = [name for name in bodies[0].turning if all(name in body.turning for body in bodies[1:])]
    carriers = list(dict.fromkeys(body.carrier for body in bodies))
    if len(common) < _FEWEST_COMMON or (len(carriers) > 1):
        raise UserError(f"{path}: {found.words()}; {_too_little(bodies, common, carriers)}")
    chosen = config.with_values({"joints": common})
    kinds = []
    for body in bodies:
        kept = kept_joints(body.joints, body.carrier_joint, chosen)
        rows = {joint: row for row, joint in enumerate(kept.joints)}
        kinds.append((tuple(common), tuple(rows.get(over, -1) for over in kept.above)))
    moved = _moved(kinds[0], kinds[1:])
    if moved:
        raise UserError(
            f"{path}: {found.words()}: {moved}; name the joints to use without it: {to_say('joints', 'NAME,NAME,…')}"
        )
    return Common(common, _notes(bodies, common, chosen) if len(bodies) > 1 else ())


class _Body(NamedTuple):
    """A skeleton's body, from one of its files."""

    file: Path
    joints: tuple[Joint, ...]
    bones: NDArray[np.float64]
    carrier_joint: int
    carrier: str
    turning: list[str]
    """The joints that turn, from the carrier down."""


def _body_of(kind: _Found, config: DataConfig) -> _Body | None:
    """Returns the body of a skeleton, from the first of its files that can be read."""
    for file in kind.files[:_TRIED]:
        try:
            bvh = read_bvh(file, first_only=True)
            tree = Tree(bvh.joints, bones_of(bvh.joints, bvh.values[0] if is_motion(bvh.values).any() else None))
            carrier, names = tree.carrier(), names_of(bvh.joints, config)
        except ClipError:
            continue
        turning = [names[joint] for joint in tree.below(carrier) if bvh.joints[joint].axes]
        return _Body(file, bvh.joints, tree.bones, carrier, names[carrier], turning)
    return None


def _too_little(bodies: Sequence[_Body], common: Sequence[str], carriers: Sequence[str]) -> str:
    """Returns why the joints that the skeletons have in common are too few, and all names that only one has."""
    if len(carriers) > 1:
        why = f"the body is carried by joints with different names: {', '.join(carriers)}"
    else:
        why = f"{counted(len(common), 'joint')} in common{': ' if common else ''}{', '.join(common)}"
    lonely = "; ".join(
        f"only in {body.file.name}: {', '.join(name for name in body.turning if name not in common) or 'none'}"
        for body in bodies
    )
    return f"{why}; {to_say('joint_names', 'FILE.json')} gives joints the same names, theirs to ours; {lonely}"


def _notes(bodies: Sequence[_Body], common: Sequence[str], config: DataConfig) -> tuple[str, ...]:
    """Returns notes on the dropped joints, the store's figure and the rest poses."""
    dropped = [
        f"{_shown([name for name in body.turning if name not in common])} of {body.file.name}" for body in bodies
    ]
    notes = [
        f"the {len(common)} joints that {len(bodies)} skeletons have are used; dropped are {' and '.join(dropped)}; "
        "the rotation of a dropped joint is part of those of the joints below it",
        "the store's figure has the bones of its first file; distances in metres are of that figure, for all clips",
    ]
    skeletons = []
    for body in bodies:
        kept = kept_joints(body.joints, body.carrier_joint, config)
        skeletons.append(kept_skeleton(rest_skeleton(body.joints, body.bones, body.carrier_joint), body.joints, kept))
    for body, skeleton in zip(bodies[1:], skeletons[1:], strict=True):
        bent = sorted(_angles(skeletons[0], skeleton).items(), key=lambda angle: -angle[1])
        bent = [(name, degrees) for name, degrees in bent if degrees > _BENT]
        if bent:
            words = _shown([f"{name} {degrees:.0f}" for name, degrees in bent])
            notes.append(
                f"the rest poses of {bodies[0].file.name} and {body.file.name} differ, so equal rotations are other "
                f"poses; they are not aligned; degrees between the bones that lead to {words}"
            )
    return tuple(notes)


def _angles(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, float]:
    """Returns the angle in degrees between the rest bones of two skeletons that lead to each joint of both."""
    bones = [
        {
            name: np.array(offset)
            for name, parent, offset in zip(own["joint_names"], own["parents"], own["offsets"], strict=True)
            if parent >= 0 and any(offset)
        }
        for own in (first, second)
    ]
    found = {}
    for name in (name for name in bones[0] if name in bones[1]):
        one, two = bones[0][name], bones[1][name]
        cosine = one @ two / (np.linalg.norm(one) * np.linalg.norm(two))
        found[name] = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return found


def _shown(words: Sequence[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return (", ".join(words[:_SHOWN]) or "none") + more
