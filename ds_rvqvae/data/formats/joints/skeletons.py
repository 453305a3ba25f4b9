"""The joints of position files: published skeletons, and the settings that data without names need."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.bvh.skeletons import UNITS
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion import recovery
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.skeleton import Skeleton, checked_skeleton, skeleton_from_json

_BODY = (1.0, 2.2)
"""Metres: the largest extent of a body that stands, between its joints. No two units of `UNITS` give it both."""


class Published(NamedTuple):
    """A published set of joint positions."""

    name: str
    joint_names: Sequence[str]
    parents: Sequence[int]
    fps: float
    metres: float


PUBLISHED = {
    recovery.JOINTS[width]: Published(
        name, recovery.JOINT_NAMES[width], recovery.parents_of(width), fps, recovery.METRES[width]
    )
    for name, width, fps in (("HumanML3D", recovery.HUMANML3D, 20.0), ("KIT", recovery.KIT, 12.5))
}
"""The published sets by their number of joints; their files lie in a folder `new_joints`."""


def skeleton_of(config: DataConfig) -> Skeleton | None:
    """Returns the skeleton that `rvqvae.data.skeleton` describes; without `offsets` they are zeros.

    Raises:
        UserError: it is not a tree of joints.
    """
    entries = config.skeleton
    if entries is None:
        return None
    assert isinstance(entries, Mapping)  # a file's name was replaced by its content
    try:
        if entries.get("offsets") is not None:
            return skeleton_from_json(entries, "skeleton")
        for key in ("joint_names", "parents"):
            if key not in entries:
                raise ClipError(f"no key {key}; it needs joint_names and parents")
        names = entries["joint_names"]
        offsets = np.zeros((len(names) if isinstance(names, list) else 0, 3))
        return checked_skeleton(names, entries["parents"], offsets, "skeleton")
    except ClipError as error:
        raise UserError(f"rvqvae.data.skeleton: {error}") from None


def no_skeleton(path: Path, joints: int) -> UserError:
    """Returns the error for positions of joints without names."""
    example = '{"joint_names": ["hips", "spine", …], "parents": [-1, 0, …]}'
    return UserError(
        f"{path}: positions of {joints} joints, which have no names: {to_say('skeleton', 'FILE')} gives names and "
        f"parents in the order of the joints, as JSON ({example}) or as a BVH file"
    )


def extent_of(places: NDArray[np.float64]) -> float:
    """Returns a body's largest extent along an axis, in the unit of `places` `[T, J, 3]`; 0 if there is none.

    It is that of the nine tenths of the frames in which it is smallest, so that a few odd frames do not count.
    """
    good = places[np.isfinite(places).all(axis=(1, 2))]
    extents = np.ptp(good, axis=1).max(axis=1) if len(good) else np.zeros(1)
    return float(np.quantile(extents, 0.9))


def unit_of(path: Path, extents: Mapping[str, float]) -> float:
    """Returns the unit of length, in metres, with which most bodies are as tall as people.

    Args:
        extents: by file, from `extent_of`.

    Raises:
        UserError: no unit or several units fit.
    """
    say = f"set the metres per unit: {to_say('metres_per_unit', 'N')}"
    found: dict[str, list[str]] = {}
    for file, extent in extents.items():
        unit = next((unit for unit, metres in UNITS.items() if _BODY[0] <= extent * metres <= _BODY[1]), None)
        if unit is not None:
            found.setdefault(unit, []).append(file)
    ordered = sorted(found, key=lambda unit: -len(found[unit]))
    if not ordered or 2 * len(found[ordered[0]]) < len(extents):
        file, extent = next(iter(extents.items()))
        heights = ", ".join(f"{extent * metres:.2g} m in {unit}" for unit, metres in UNITS.items())
        raise UserError(f"{path}: the unit of length is not known: the body in {file} is {heights} tall; {say}")
    if len(ordered) > 1 and len(found[ordered[1]]) > max(1, 0.05 * len(extents)):
        one, other = (f"{unit} as in {found[unit][0]}" for unit in ordered[:2])
        raise UserError(
            f"{path}: files with different units of length: {one}, {other}; prepare each by itself, or {say}"
        )
    return UNITS[ordered[0]]


def bones_of(skeleton: Skeleton, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns each joint's bone in a frame of a clip, with the length that it has in most frames, `[J, 3]`.

    The frame is the one in which the body is tallest. The root is at x = z = 0.

    Args:
        places: `[T, J, 3]` metres, y up, without NaN.
    """
    tall = places[int(np.ptp(places[:, :, 1], axis=1).argmax())]
    bones: NDArray[np.float64] = tall.copy()
    parents = list(skeleton.parents[1:])
    bones[1:] -= tall[parents]
    lengths = np.median(np.linalg.norm(places[:, 1:] - places[:, parents], axis=-1), axis=0)
    now = np.linalg.norm(bones[1:], axis=1)
    bones[1:] *= (lengths / np.maximum(now, 1e-9))[:, None]
    bones[0, [0, 2]] = 0
    return bones


def described_again(skeleton: Skeleton, offsets: NDArray[np.float64]) -> dict[str, Any]:
    """Returns a skeleton's entries for `rvqvae.data.skeleton`, in JSON's types; offsets to a tenth of a millimetre."""
    return {
        "joint_names": list(skeleton.joint_names),
        "parents": list(skeleton.parents),
        "offsets": np.round(offsets, 4).tolist(),
    }
