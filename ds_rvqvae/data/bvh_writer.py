"""Motion written as BVH: a source file's hierarchy and channels, and other numbers in them."""

import io
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ds_rvqvae.data.bvh import Bvh, Joint, read_bvh
from ds_rvqvae.data.bvh_reader import root_places, rotations
from ds_rvqvae.data.bvh_skeleton import Z_UP_TO_Y_UP, guess_unit, outermost, unique_names
from ds_rvqvae.data.clips import ClipError
from ds_rvqvae.data.files import whole_file
from ds_rvqvae.data.layout import Layout, joint_layout, missing_channels, rotation_columns
from ds_rvqvae.data.rotations import resample, rotation_6d_to_matrix
from ds_rvqvae.profile import DataConfig


def write_bvh(file: Path, motion: np.ndarray, layout: Layout, source: Path, config: DataConfig) -> None:
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


def _fill(values: np.ndarray, bvh: Bvh, matrices: np.ndarray, root: np.ndarray, turn: np.ndarray | None) -> None:
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


def _angles(matrices: np.ndarray, joint: Joint) -> np.ndarray:
    """A joint's rotations `[frames, 3, 3]` in the order of its channels, degrees `[frames, axes]`, without jumps.

    A joint with fewer than three rotation channels cannot turn in all ways; what its channels cannot say is left out.
    """
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
