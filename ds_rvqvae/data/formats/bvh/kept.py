"""The joints of a BVH file that become columns: all that turn, or those that `rvqvae.data.joints` names.

A kept joint's rotation is relative to the nearest kept joint above it. It is the product of its own rotation and of
those of the dropped joints between the two.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.bodies import unique_names
from ds_rvqvae.data.formats.bvh.file import Joint
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import TRANSLATION, Layout, joint_layout


class Kept(NamedTuple):
    """The joints of a file that become columns, in the order of the columns."""

    names: list[str]
    """The name of each joint of the file after `rvqvae.data.joint_names`; End Sites have ""."""
    chains: list[list[int]]
    """For each kept joint: itself, and the turning joints above it whose rotations its columns include."""
    above: list[int]
    """For each kept joint: the nearest kept joint above it, or -1 if its rotation is relative to the world."""

    @property
    def joints(self) -> list[int]:
        """The kept joints."""
        return [chain[0] for chain in self.chains]

    @property
    def layout(self) -> Layout:
        """The layout of the columns: a rotation per kept joint, then the position of the body's carrier."""
        return joint_layout([self.names[joint] for joint in self.joints], "position")


def names_of(joints: Sequence[Joint], config: DataConfig) -> list[str]:
    """Returns a unique name for each joint, by `rvqvae.data.joint_names`; raises ClipError if two get the same."""
    names = unique_names(joints)
    ours = config.joint_names
    if not isinstance(ours, Mapping):
        return names
    renamed = [ours.get(name, name) for name in names]
    first: dict[str, int] = {TRANSLATION: -1}
    for index, name in enumerate(renamed):
        other = first.setdefault(name, index) if name else index
        if other != index:
            both = f"{names[other]} and {names[index]} both get the name" if other >= 0 else f"{names[index]} gets"
            raise ClipError(f"rvqvae.data.joint_names: {both} {name}{'' if other >= 0 else ', which is reserved'}")
    return renamed


def kept_joints(joints: Sequence[Joint], carrier: int, config: DataConfig) -> Kept:
    """Returns the joints of a file that become columns.

    Args:
        carrier: the joint that carries the body; its rotation is relative to the world.

    Raises:
        ClipError: `rvqvae.data.joints` names a joint that the file does not have or that does not turn, or
            `rvqvae.data.joint_names` gives one name to two joints.
    """
    names = names_of(joints, config)
    turning = [index for index, joint in enumerate(joints) if joint.axes]
    chosen = turning
    if isinstance(config.joints, list):
        rows = {names[index]: index for index in turning}
        missing = [name for name in config.joints if name not in rows]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ClipError(f"has no turning joint {missing[0]}{more}, which rvqvae.data.joints names")
        chosen = [rows[name] for name in config.joints]
    is_kept = set(chosen)
    chains, above = [], []
    for joint in chosen:
        chain, over = [joint], -1
        while chain[-1] != carrier and over < 0:
            parent = joints[chain[-1]].parent
            while parent >= 0 and not joints[parent].axes:
                parent = joints[parent].parent
            if parent in is_kept:
                over = parent
            elif parent >= 0:
                chain.append(parent)
            else:
                break
        chains.append(chain)
        above.append(over)
    return Kept(names, chains, above)


def kept_columns(motion: NDArray[np.float64], joints: Sequence[Joint], kept: Kept) -> NDArray[np.float64]:
    """Returns the columns of the kept joints, and the position, from those of all turning joints, float64
    `[frames, columns]`.

    Args:
        motion: from `columns_of`: 6D of all turning joints in the file's order, then the position, `[frames, columns]`.
    """
    rows = _rows_of(joints)
    if kept.chains == [[joint] for joint in rows]:
        return motion
    found = np.empty((len(motion), 6 * len(kept.chains) + 3))
    found[:, -3:] = motion[:, -3:]
    for at, chain in enumerate(kept.chains):
        first, *below = reversed(chain)
        two_rows: NDArray[np.float64] = motion[:, 6 * rows[first] : 6 * rows[first] + 6].reshape(-1, 2, 3)
        with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite stay so
            for joint in below:
                two_rows = two_rows @ _matrices(motion, rows[joint])
        found[:, 6 * at : 6 * at + 6] = two_rows.reshape(-1, 6)
    return found


def local_columns(
    wanted: NDArray[np.float64], layout: Layout, whole: NDArray[np.float64], joints: Sequence[Joint], kept: Kept
) -> None:
    """Writes rotations of kept joints into `whole`, as `columns_of` returns them; inverts `kept_columns`.

    The dropped joints keep their rotations in `whole`, which those of the kept joints below them make up for.

    Args:
        wanted: `[frames, columns]`: 6D of joints of `kept`, orthonormal, and maybe the position.
        layout: of these columns; kept joints that it does not name stay as they are.
        whole: `[frames, columns]` of all turning joints and the position; changed in place.
    """
    rows = _rows_of(joints)
    columns = {part.name: part for part in layout}
    position = columns.get(TRANSLATION)
    if position is not None:
        whole[:, -3:] = wanted[:, position.start : position.stop]
    for joint, *dropped in kept.chains:
        part = columns.get(kept.names[joint])
        if part is None:
            continue
        own = wanted[:, part.start : part.stop]
        if dropped:
            product = _matrices(whole, rows[dropped[-1]])
            for between in reversed(dropped[:-1]):
                product = product @ _matrices(whole, rows[between])
            full = np.concatenate([own.reshape(-1, 2, 3), np.cross(own[:, :3], own[:, 3:])[:, None]], axis=1)
            own = (product.transpose(0, 2, 1) @ full)[:, :2].reshape(-1, 6)
        whole[:, 6 * rows[joint] : 6 * rows[joint] + 6] = own


def kept_skeleton(skeleton: dict[str, Any], joints: Sequence[Joint], kept: Kept) -> dict[str, Any]:
    """Returns `rest_skeleton`'s entries with the kept joints only, under their names, and with the root.

    A dropped joint's offset is added to those of the joints below it, so it is straight in this skeleton.
    """
    own = unique_names(joints)
    ours = dict(zip(own, kept.names, strict=True))
    stay = {own[joint] for joint in kept.joints}
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    rows: list[tuple[int, NDArray[np.float64]]] = []
    """For each joint: its row in the result, or that of the joint above it that stays, and its place relative to it."""
    for name, parent, offset in zip(skeleton["joint_names"], skeleton["parents"], skeleton["offsets"], strict=True):
        row, place = rows[parent] if parent >= 0 else (-1, np.zeros(3))
        place = place + offset
        if parent < 0 or name in stay:
            names.append(ours[name])
            parents.append(row)
            offsets.append(place.tolist())
            row, place = len(names) - 1, np.zeros(3)
        rows.append((row, place))
    return {"joint_names": names, "parents": parents, "offsets": offsets}


def turning_tree(joints: Sequence[Joint]) -> dict[str, Any]:
    """Returns `joint_names` and `parents` of the joints that turn; a parent of -1 has no such joint above it."""
    names, rows = unique_names(joints), {-1: -1}
    kept: list[tuple[str, int]] = []
    for index, joint in enumerate(joints):
        rows[index] = rows[joint.parent]
        if joint.axes:
            kept.append((names[index], rows[joint.parent]))
            rows[index] = len(kept) - 1
    return {"joint_names": [name for name, _ in kept], "parents": [parent for _, parent in kept]}


def _rows_of(joints: Sequence[Joint]) -> dict[int, int]:
    """Returns the row of each turning joint among them."""
    return {joint: row for row, joint in enumerate(index for index, own in enumerate(joints) if own.axes)}


def _matrices(motion: NDArray[np.float64], row: int) -> NDArray[np.float64]:
    """Returns the rotations of a turning joint, `[frames, 3, 3]`, whose 6D columns are orthonormal."""
    first, second = motion[:, 6 * row : 6 * row + 3], motion[:, 6 * row + 3 : 6 * row + 6]
    return np.stack([first, second, np.cross(first, second)], axis=1)
