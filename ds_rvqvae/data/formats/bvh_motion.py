"""Motion from BVH files, and back into them."""

import io
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import FilesReader, files_below
from ds_rvqvae.data.formats.bvh import Bvh, Joint, read_bvh
from ds_rvqvae.data.formats.skeletons import Z_UP_TO_Y_UP, guess_unit, outermost, rest_skeleton, unique_names
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import Layout, joint_layout, missing_channels, rotation_columns
from ds_rvqvae.motion.rotations import resample, rotation_6d_to_matrix

SUFFIX = ".bvh"
_STILL = 1e-3
"""Metres that a joint's position channels may change without being mentioned."""
_FRAMES_AT_ONCE = 1024
"""Small enough for the processor's cache."""


class BvhReader(FilesReader):
    """One BVH file, or a folder with BVH files in it and in the folders below.

    Each joint with rotation channels is its local rotation as 6D, in the file's order of joints; then comes the root's
    place in metres.
    """

    format = "BVH"
    key = "bvh"
    suffix = SUFFIX
    has_up_axis = True

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.suffix.lower() == SUFFIX if path.is_file() else bool(cls.files_of(path))

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        return files_below(folder, (SUFFIX,))

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        bvh = read_bvh(file)
        turn = Z_UP_TO_Y_UP if self.config.up_axis == "z" else None
        unit, notes = self.config.metres_per_unit, []
        if unit is None:
            unit, note = guess_unit(bvh.joints)
            notes.append(note)
        names = unique_names(bvh.joints)
        turning = [index for index, joint in enumerate(bvh.joints) if joint.axes]
        if not turning:
            raise ClipError("no joint has rotation channels")
        empty = np.asarray(~bvh.values.any(axis=1))
        notes += _notes(bvh, names, unit, empty)
        motion = np.concatenate([rotations(bvh, turn), unit * root_places(bvh, turn)], axis=1)
        layout = joint_layout([names[index] for index in turning], "position")
        skeleton = rest_skeleton(bvh.joints, unit, turn)
        return Take(name, motion, bvh.fps, layout, split, empty, skeleton=skeleton, notes=tuple(notes))


def rotations(bvh: Bvh, turn: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The local rotation of each joint with rotation channels, in order, as 6D, float64 `[frames, 6 * joints]`.

    Args:
        turn: `[3, 3]`, turns the world.
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
    """`first` times the rotations about `axes`, multiplied from left to right, for column vectors.

    Args:
        angles: radians `[frames, joints, rotations]`.
        axes: of each rotation; 0 is x.
        first: `[2, 3]`; the identity's first two rows give those of the product.

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


def root_places(bvh: Bvh, turn: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The root's place in the file's unit, float64 `[frames, 3]`: its position channels, its OFFSET where it has none.

    Args:
        turn: `[3, 3]`, turns the world.
    """
    root = bvh.joints[0]
    places = np.tile(np.array(root.offset), (len(bvh.values), 1))
    for column, channel in enumerate(root.channels):
        if channel.endswith("position"):
            places[:, "XYZ".index(channel[0])] = bvh.values[:, column]
    return places if turn is None else places @ turn.T


def _notes(bvh: Bvh, names: Sequence[str], unit: float, empty: NDArray[np.bool_]) -> list[str]:
    """What of a file's skeleton and channels is not read as it stands."""
    notes = []
    renamed = [f"{joint.name} {name}" for joint, name in zip(bvh.joints, names, strict=True) if joint.name != name]
    if renamed:
        old, new = renamed[0].rsplit(" ", 1)
        more = f" (and {len(renamed) - 1} more)" if len(renamed) > 1 else ""
        notes.append(f"joint names stand twice or are reserved: a second {old} is called {new}{more}")
    moving = []
    column = 0
    for index, (joint, name) in enumerate(zip(bvh.joints, names, strict=True)):
        columns = [column + at for at, channel in enumerate(joint.channels) if channel.endswith("position")]
        column += len(joint.channels)
        if index and columns:
            values = bvh.values[~empty][:, columns]
            if len(values) and unit * np.ptp(values, axis=0).max() > _STILL:
                moving.append(name)
    if moving:
        more = f" and {len(moving) - 1} more joints" if len(moving) > 1 else ""
        notes.append(f"position channels of {moving[0]}{more} change and are read past; only the root's count")
    return notes


def write_bvh(file: Path, motion: NDArray[Any], layout: Layout, source: Path, config: DataConfig) -> None:
    """Writes motion as a BVH file with the hierarchy, names and order of channels of `source`.

    Args:
        motion: `[frames, columns]`: 6D rotations of joints by name, and the root's place in metres.
        layout: the columns to write; what of the source it does not name stays as it is there.
        source: the BVH file that was read.
        config: how: `fps`, which the file gets, `metres_per_unit` and `up_axis`.

    Raises:
        ClipError: the source cannot be read, is of another length, or has no such joint.
    """
    bvh = read_bvh(source)
    turn = Z_UP_TO_Y_UP if config.up_axis == "z" else None
    unit = config.metres_per_unit or guess_unit(bvh.joints).metres
    names = unique_names(bvh.joints)
    there = joint_layout([name for name, joint in zip(names, bvh.joints, strict=True) if joint.axes], "position")
    whole = np.concatenate([rotations(bvh, turn), unit * root_places(bvh, turn)], axis=1)
    try:
        whole = resample(whole, rotation_columns(there), bvh.fps, config.fps).copy()
        values = resample(bvh.values, np.empty((0, 6), np.int64), bvh.fps, config.fps).copy()
    except ValueError as error:
        raise ClipError(f"cannot be resampled: {error}") from None
    if len(whole) != len(motion):
        raise ClipError(f"has {len(whole)} frames at {config.fps:g} frames a second, the motion {len(motion)}")
    missing = missing_channels(there, layout)
    if missing is not None:
        raise ClipError(f"has no {missing.name} ({missing.kind})")
    places = {channels.name: channels for channels in there}
    for channels in layout:
        own = places[channels.name]
        whole[:, own.start : own.stop] = motion[:, channels.start : channels.stop]
    _fill(values, bvh, rotation_6d_to_matrix(whole[:, rotation_columns(there)]), whole[:, -3:] / unit, turn)
    with whole_file(file) as content:
        content.write(_header(source))
        content.write(f"MOTION\nFrames: {len(values)}\nFrame Time: {1 / config.fps:.9g}\n".encode())
        np.savetxt(content, values, fmt="%.6f")


def _fill(
    values: NDArray[np.float64],
    bvh: Bvh,
    matrices: NDArray[np.float64],
    root: NDArray[np.float64],
    turn: NDArray[np.float64] | None,
) -> None:
    """Writes rotations `[frames, turning joints, 3, 3]` and the root's place `[frames, 3]` into their channels."""
    back = np.eye(3) if turn is None else turn.T
    column = row = 0
    for joint, is_free in zip(bvh.joints, outermost(bvh.joints), strict=True):
        if joint.axes:
            columns = [column + at for at, channel in enumerate(joint.channels) if channel.endswith("rotation")]
            values[:, columns] = _angles(back @ matrices[:, row] if is_free else matrices[:, row], joint)
            row += 1
        column += len(joint.channels)
    root = root @ back.T
    for column, channel in enumerate(bvh.joints[0].channels):
        if channel.endswith("position"):
            values[:, column] = root[:, "XYZ".index(channel[0])]


def _angles(matrices: NDArray[np.float64], joint: Joint) -> NDArray[np.float64]:
    """A joint's rotations `[frames, 3, 3]` in the order of its channels, degrees `[frames, axes]`, without jumps.

    A joint with fewer than three rotation channels cannot turn in all ways; what its channels cannot say is left out.
    """
    from scipy.spatial.transform import Rotation

    axes: Sequence[int] = joint.axes + tuple(axis for axis in range(3) if axis not in joint.axes)
    axes = axes[: max(3, len(joint.axes))]
    if any(first == second for first, second in pairwise(axes)):
        raise ClipError(f"{joint.name} turns about one axis twice in a row, which angles cannot be found for")
    with warnings.catch_warnings():
        # Where two axes fall together only their sum is known, and any two angles of that sum are right.
        warnings.filterwarnings("ignore", message="Gimbal lock")
        angles = Rotation.from_matrix(matrices).as_euler("".join("XYZ"[axis] for axis in axes), degrees=True)
    return np.unwrap(angles, period=360, axis=0)[:, : len(joint.axes)]


def _header(source: Path) -> bytes:
    """All lines before MOTION, as they are."""
    with source.open("rb") as content:
        lines = io.BytesIO()
        for line in content:
            if line.strip().upper() == b"MOTION":
                break
            lines.write(line)
    return lines.getvalue()
