"""Curves of a clip and its reconstruction over time: joints in degrees, other columns in their own units."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ds_rvqvae.motion.kinematics import angle_between
from ds_rvqvae.motion.layout import Channels, Layout, rotation_columns
from ds_rvqvae.motion.rotations import rotation_6d_to_matrix
from ds_rvqvae.viz.names import name_words

_UNITS = {
    "translation": ("x velocity, m per frame", "height, m", "z velocity, m per frame"),
    "position": ("x, m", "y, m", "z, m"),
    "relative_position": ("x from the root, m", "y from the root, m", "z from the root, m"),
    "angle": ("angle, radians, or slide, metres",),
}


class Curve(NamedTuple):
    """One value of a clip over time, in the original and in the reconstruction."""

    title: str
    truth: NDArray[np.floating]
    """`[T]`."""
    found: NDArray[np.floating]


def joint_errors(
    truth: NDArray[np.float32], found: NDArray[np.float32], layout: Layout, slides: Collection[str] = ()
) -> dict[str, NDArray[np.float32]]:
    """Returns each joint's angle between original and reconstruction `[T, C]`, degrees `[T]`; {} without angles.

    Args:
        slides: names of joints whose angle is a length, which are left out.
    """
    columns, errors = rotation_columns(layout), {}
    if len(columns):
        angles = angle_between(*(torch.from_numpy(motion[:, columns].astype(np.float32)) for motion in (truth, found)))
        names = [part.name for part in layout if part.kind == "rotation_6d"]
        errors = dict(zip(names, angles.T.numpy(), strict=True))
    for part in (part for part in layout if part.kind == "angle" and part.width == 1 and part.name not in slides):
        errors[part.name] = np.degrees(np.abs(found[:, part.start] - truth[:, part.start]), dtype=np.float32)
    return errors


def liveliest(truth: NDArray[np.float32], found: NDArray[np.float32], layout: Layout, count: int) -> list[Curve]:
    """Returns curves of the `count` joints and other columns of `[T, C]` that vary most, joints first.

    A joint's curve is its angle from its mean, about the axis that it turns about most. Of the other columns, the
    liveliest one of each layout entry comes before the rest.
    """
    joints = [part for part in layout if part.kind == "rotation_6d"]
    others = _liveliest_columns(truth, [part for part in layout if part.kind != "rotation_6d"])
    curves = sorted((_of_joint(truth, found, part) for part in joints), key=lambda curve: -float(curve.truth.std()))
    curves = curves[: count - bool(others)]
    curves += [_of_column(truth, found, part, column) for part, column in others[: count - len(curves)]]
    return curves


def _liveliest_columns(truth: NDArray[np.float32], parts: list[Channels]) -> list[tuple[Channels, int]]:
    """Returns the columns of layout entries: first the one of each entry that varies most, then the others."""
    spread = truth.std(axis=0)
    ranked = []
    for part in parts:
        order = (part.start + np.argsort(-spread[part.start : part.stop])).tolist()
        ranked += [(place > 0, -float(spread[column]), part, column) for place, column in enumerate(order)]
    ranked.sort(key=lambda entry: entry[:2])
    return [(part, column) for *_, part, column in ranked]


def _of_column(truth: NDArray[np.float32], found: NDArray[np.float32], part: Channels, column: int) -> Curve:
    index, name = column - part.start, name_words(part.name, 30)
    units = _UNITS.get(part.kind)
    title = f"{name}: {units[index]}" if units and part.width == len(units) else f"{name}[{index}]"
    return Curve(title, truth[:, column], found[:, column])


def _of_joint(truth: NDArray[np.float32], found: NDArray[np.float32], part: Channels) -> Curve:
    turns, others = (_rotations(motion[:, part.start : part.stop]) for motion in (truth, found))
    mean = turns.mean().inv()
    vectors, found_vectors = (np.degrees((mean * own).as_rotvec()) for own in (turns, others))
    axis = np.linalg.eigh(vectors.T @ vectors)[1][:, -1]
    axis = axis if axis[np.abs(axis).argmax()] > 0 else -axis
    # Angles that differ by 360 degrees are the same rotation: take the one nearest to the original's.
    angle, other = np.unwrap(vectors @ axis, period=360), found_vectors @ axis
    other += 360 * np.round((angle - other) / 360)
    error = angle_between(*(torch.from_numpy(motion[:, part.start : part.stop]) for motion in (truth, found))).mean()
    title = f"{name_words(part.name, 20)}, degrees from its mean; {float(error):.1f}° mean error"
    return Curve(title, angle, other)


def _rotations(rotation_6d: NDArray[np.float32]) -> Rotation:
    """Returns the rotations of 6D `[T, 6]`; the identity where the columns are not a rotation."""
    matrices = rotation_6d_to_matrix(rotation_6d.astype(np.float64))
    matrices[~(np.linalg.det(matrices) > 0.5)] = np.eye(3)
    return Rotation.from_matrix(matrices)
