"""The numbers of a BVH file as rotations and positions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.bodies import Tree, bones_of
from ds_rvqvae.data.formats.bvh.file import Bvh, Joint, is_motion
from ds_rvqvae.data.formats.bvh.skeletons import Unit, guess_unit, in_words, outermost, recognise_unit
from ds_rvqvae.motion.clip import ClipError

_STILL = 1e-3
"""Metres: position channels that are not read are mentioned if they change by more than this."""
_FRAMES_AT_ONCE = 1024
"""Small enough for the processor's cache."""


class Figure(NamedTuple):
    """How the numbers of a file are read."""

    carrier: int
    """The joint that carries the body: `translation` is its position, and its rotation is relative to the world."""
    bones: NDArray[np.float64]
    """float64 `[joints, 3]`: each joint's position relative to its parent at rest, in the file's unit."""
    unit: Unit
    notes: tuple[str, ...]


@np.errstate(over="ignore", invalid="ignore")  # a damaged file may hold any number
def figure_of(bvh: Bvh, config: DataConfig) -> Figure:
    """Decides how a file is read; raises ClipError if its unit is not known or it holds two figures."""
    is_old = config.reading_version == 1
    given = config.metres_per_unit
    good = np.flatnonzero(is_motion(bvh.values))
    try:
        tree = Tree(bvh.joints, bones_of(bvh.joints, bvh.values[good[0]] if len(good) else None))
        carrier = tree.carrier()
        _check_bones(tree, carrier)
        unit = recognise_unit(tree) if given is None else Unit(given, 0.0, "as it was given", None)
    except ClipError:
        if not is_old:
            raise
        carrier, unit = 0, None
    if is_old or unit is None:
        return _figure_of_before(bvh, given, carrier, unit)
    if len(good) > 1:
        good = good[np.unique(np.linspace(0, len(good) - 1, _FRAMES_AT_ONCE).astype(np.int64))]
        bones = bones_of(bvh.joints, np.median(bvh.values[good], axis=0))
    else:
        bones = tree.bones
    return Figure(carrier, bones, unit, () if unit.note is None else (unit.note,))


def _check_bones(tree: Tree, carrier: int) -> None:
    """Raises ClipError if the position channels, read as bones, have no length, but the OFFSETs have."""
    below = [joint for joint in tree.below(carrier)[1:] if tree.joints[joint].axes]
    if not tree.lengths[below].any() and any(any(tree.joints[joint].offset) for joint in below):
        raise ClipError(
            "position channels, which replace OFFSET, are 0 on all joints and so put them in one place; export "
            "rotations only, or each joint's complete offset"
        )


def _figure_of_before(bvh: Bvh, given: float | None, carrier: int, unit: Unit | None) -> Figure:
    """Reads as versions up to 0.2 did: the root's position, and a guessed unit; notes what is read differently now."""
    metres, note = guess_unit(bvh.joints) if given is None else (given, "")
    notes = [note] if note else []
    differs = []
    if carrier:
        differs.append(f"position and rotation are those of {bvh.joints[0].name}, not of {bvh.joints[carrier].name}")
    if given is None and (unit is None or unit.metres != metres):
        differs.append("the unit is " + ("not known" if unit is None else in_words(unit.metres)))
    if differs:
        notes.append(
            f"read as versions up to 0.2 did: {' and '.join(differs)} by today's rules; prepare again with "
            "rvqvae.data.reading_version 2 to use them"
        )
    return Figure(0, bones_of(bvh.joints), Unit(metres, 0.0, "guessed", None), tuple(notes))


def columns_of(bvh: Bvh, figure: Figure, turn: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Returns rotations and the carrier's position in metres, float64 `[frames, columns]`.

    The rotations are those of `rotations`, but the carrier's includes the rotations of the joints above it.

    Args:
        turn: `[3, 3]`, a rotation of the world.
    """
    *above, carrier = path_to(bvh.joints, figure.carrier)
    motion = rotations(bvh, turn)
    place = _local_places(bvh, carrier)
    with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite stay so, and the rules cut them out
        if above:
            turned, origin = world_of(bvh.joints, above, _matrices_of(bvh, above), places_of(bvh, above))
            place = origin + turned_by(turned, place)
            if turned is not None and bvh.joints[carrier].axes:
                turned = turned if turn is None else turn @ turned
                first = 6 * sum(bool(joint.axes) for joint in bvh.joints[:carrier])
                local = motion[:, first : first + 6].reshape(-1, 2, 3)
                whole = np.concatenate([local, np.cross(local[:, :1], local[:, 1:])], axis=1)
                motion[:, first : first + 6] = (turned @ whole)[:, :2].reshape(-1, 6)
        if turn is not None:
            place = place @ turn.T
        return np.concatenate([motion, figure.unit.metres * place], axis=1)


def path_to(joints: Sequence[Joint], joint: int) -> list[int]:
    """Returns the joints from the root down to a joint."""
    path = [joint]
    while joints[path[-1]].parent >= 0:
        path.append(joints[path[-1]].parent)
    return path[::-1]


def world_of(
    joints: Sequence[Joint],
    path: Sequence[int],
    matrices: Mapping[int, NDArray[np.float64]],
    places: Mapping[int, NDArray[np.float64]],
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Computes forward kinematics along a path of joints, each the child of the one before.

    Args:
        matrices: rotations of the joints that have rotation channels, `[frames, 3, 3]` each.
        places: positions of all joints relative to the one before, `[frames, 3]` each.

    Returns:
        the last joint's rotation in the world, which is None if no joint turns, and its position, `[frames, 3]`.
    """
    turned: NDArray[np.float64] | None = None
    origin: NDArray[np.float64] = np.zeros(3)
    for joint in path:
        origin = origin + turned_by(turned, places[joint])
        if joints[joint].axes:
            turned = matrices[joint] if turned is None else turned @ matrices[joint]
    return turned, origin


def turned_by(matrices: NDArray[np.float64] | None, places: NDArray[np.float64]) -> NDArray[np.float64]:
    return places if matrices is None else (matrices @ places[..., None])[..., 0]


def places_of(bvh: Bvh, joints: Sequence[int]) -> dict[int, NDArray[np.float64]]:
    return {joint: _local_places(bvh, joint) for joint in joints}


def _matrices_of(bvh: Bvh, joints: Sequence[int]) -> dict[int, NDArray[np.float64]]:
    """Returns the local rotations of those of `joints` that turn, float64 `[frames, 3, 3]` each."""
    found = {}
    for joint in joints:
        axes = bvh.joints[joint].axes
        if axes:
            angles = np.deg2rad(bvh.values[:, channels_of(bvh.joints, joint, "rotation")])
            rows = euler_rows(angles[:, None], axes, np.eye(3)[:2]).reshape(-1, 2, 3)
            found[joint] = np.concatenate([rows, np.cross(rows[:, :1], rows[:, 1:])], axis=1)
    return found


def channels_of(joints: Sequence[Joint], joint: int, kind: str) -> list[int]:
    """Returns the columns of a joint's channels of a kind, `position` or `rotation`, in the file's order."""
    first = sum(len(other.channels) for other in joints[:joint])
    return [first + at for at, channel in enumerate(joints[joint].channels) if channel.endswith(kind)]


def _local_places(bvh: Bvh, joint: int) -> NDArray[np.float64]:
    """Returns a joint's position relative to its parent in the file's unit, float64 `[frames, 3]`.

    It comes from the position channels, and for each axis without one from OFFSET.
    """
    places = np.tile(np.array(bvh.joints[joint].offset), (len(bvh.values), 1))
    axes = [channel[0] for channel in bvh.joints[joint].channels if channel.endswith("position")]
    for axis, column in zip(axes, channels_of(bvh.joints, joint, "position"), strict=True):
        places[:, "XYZ".index(axis)] = bvh.values[:, column]
    return places


def rotations(bvh: Bvh, turn: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Returns the local rotation in 6D of each joint with rotation channels, in order, float64 `[frames, 6 * joints]`.

    Args:
        turn: `[3, 3]`, a rotation of the world.
    """
    free = outermost(bvh.joints)
    groups: dict[tuple[tuple[int, ...], bool], list[tuple[int, list[int]]]] = {}
    column = row = 0
    for joint, is_free in zip(bvh.joints, free, strict=True):
        if joint.axes:
            columns = [column + at for at, channel in enumerate(joint.channels) if channel.endswith("rotation")]
            groups.setdefault((joint.axes, is_free and turn is not None), []).append((row, columns))
            row += 1
        column += len(joint.channels)
    motion = np.empty((len(bvh.values), row, 6))
    for (axes, turned), members in groups.items():
        rows, places = [row for row, _ in members], np.array([columns for _, columns in members])
        first = (np.eye(3) if turn is None or not turned else turn)[:2]
        for start in range(0, len(motion), _FRAMES_AT_ONCE):
            angles = np.deg2rad(bvh.values[start : start + _FRAMES_AT_ONCE, places])
            motion[start : start + _FRAMES_AT_ONCE, rows] = euler_rows(angles, axes, first)
    return motion.reshape(len(motion), -1)


def euler_rows(angles: NDArray[np.float64], axes: Sequence[int], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns `first` times the rotations about `axes`, multiplied from left to right, for column vectors.

    Args:
        angles: radians `[frames, joints, rotations]`.
        axes: the axis of each rotation; 0 is x.
        first: `[2, 3]`; the identity's first two rows give the first two rows of the product.

    Returns:
        `[frames, joints, 6]`.
    """
    rows = np.broadcast_to(first[:, :, None, None], (2, 3, *angles.shape[:2])).copy()
    for at, axis in enumerate(axes):
        with np.errstate(invalid="ignore"):  # NaN and infinite angles give NaN, which the rules cut out
            sin, cos = np.sin(angles[..., at]), np.cos(angles[..., at])
        # From the right, a rotation about one axis mixes the columns of the next two.
        one, two = rows[:, (axis + 1) % 3], rows[:, (axis + 2) % 3]
        rows[:, (axis + 1) % 3], rows[:, (axis + 2) % 3] = one * cos + two * sin, two * cos - one * sin
    return rows.transpose(2, 3, 0, 1).reshape(*angles.shape[:2], 6)


@np.errstate(over="ignore")
def notes_on(bvh: Bvh, names: Sequence[str], figure: Figure, empty: NDArray[np.bool_]) -> list[str]:
    """Returns notes on names and channels of a file that are not read as they are."""
    notes = []
    renamed = [f"{joint.name} {name}" for joint, name in zip(bvh.joints, names, strict=True) if joint.name != name]
    if renamed:
        old, new = renamed[0].rsplit(" ", 1)
        more = f" (and {len(renamed) - 1} more)" if len(renamed) > 1 else ""
        notes.append(f"joint names occur twice or are reserved: a second {old} is called {new}{more}")
    moving = []
    counts = path_to(bvh.joints, figure.carrier)
    good = bvh.values[~empty & is_motion(bvh.values)]
    for index, name in enumerate(names):
        columns = channels_of(bvh.joints, index, "position") if index not in counts else []
        if columns and len(good) and figure.unit.metres * np.ptp(good[:, columns], axis=0).max() > _STILL:
            moving.append(name)
    if moving:
        more = f" and {len(moving) - 1} more joints" if len(moving) > 1 else ""
        only = "the root's" if len(counts) == 1 else f"those of {names[figure.carrier]} and above it"
        notes.append(f"position channels of {moving[0]}{more} change but are not read; only {only} count")
    return notes
