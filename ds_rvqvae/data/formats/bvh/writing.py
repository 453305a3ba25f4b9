"""Writes motion as BVH files."""

import io
import warnings
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.bodies import unique_names
from ds_rvqvae.data.formats.bvh.file import Bvh, Joint, read_bvh, read_joints
from ds_rvqvae.data.formats.bvh.kept import kept_joints, local_columns, names_of
from ds_rvqvae.data.formats.bvh.motion import (
    Figure,
    channels_of,
    columns_of,
    figure_of,
    path_to,
    places_of,
    turned_by,
    world_of,
)
from ds_rvqvae.data.formats.bvh.skeletons import Z_UP_TO_Y_UP, outermost
from ds_rvqvae.data.formats.written import Written
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import ClipError, UnfitError
from ds_rvqvae.motion.layout import Layout, joint_layout, missing_channels, rotation_columns
from ds_rvqvae.motion.rotations import matrix_to_rotation_6d, resample, rotation_6d_to_matrix


def write_bvh_file(
    file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Path | None, config: DataConfig
) -> Written:
    """Writes motion as a BVH file (`ds_rvqvae.data.formats.written.Write`)."""
    assert source is not None  # its writer needs one
    source_fps = write_bvh(file, motion, layout, source, config.model_copy(update={"fps": fps}))
    return Written(source_fps, () if config.joints is None else _notes_on_axes(source, layout, config))


def _notes_on_axes(source: Path, layout: Layout, config: DataConfig) -> tuple[str, ...]:
    """Returns a note on joints of a selection that cannot hold every rotation, so that they are not as decoded."""
    joints, written = read_joints(source), {channels.name for channels in layout}
    few = [
        name
        for name, joint in zip(names_of(joints, config), joints, strict=True)
        if name in written and len(set(joint.axes)) < 3
    ]
    if not few:
        return ()
    more = f" and {len(few) - 1} more" if len(few) > 1 else ""
    return (f"joints of the source that turn about fewer than three axes are not quite as decoded: {few[0]}{more}",)


def write_bvh(file: Path, motion: NDArray[Any], layout: Layout, source: Path, config: DataConfig) -> float:
    """Writes motion as a BVH file with the hierarchy, names and order of channels of `source`.

    Args:
        motion: `[frames, columns]`, as a reader of `source` returns them.
        layout: the columns to write; the source's other joints are kept as in the source, and so are those above the
            body's carrier. With `rvqvae.data.joints`, a joint makes up for the rotations of the joints between it and
            the next one above it that is named, so that it is turned as in `motion`.
        source: the BVH file that was read.
        config: the settings with which `source` was read; its `fps` becomes the frame rate of the new file.

    Returns:
        the frame rate of `source`.

    Raises:
        ClipError: the source cannot be read, has another length, or lacks a joint of the layout.
    """
    bvh = read_bvh(source)
    turn = Z_UP_TO_Y_UP if config.up_axis == "z" else None
    figure = figure_of(bvh, config)
    fps = config.source_fps or bvh.fps
    names = unique_names(bvh.joints)
    every = joint_layout([name for name, joint in zip(names, bvh.joints, strict=True) if joint.axes], "position")
    kept = kept_joints(bvh.joints, figure.carrier, config)
    whole = columns_of(bvh, figure, turn)
    try:
        whole = resample(whole, rotation_columns(every), fps, config.fps).copy()
        values = resample(bvh.values, np.empty((0, 6), np.int64), fps, config.fps).copy()
    except ValueError as error:
        raise ClipError(f"cannot be resampled: {error}") from None
    if len(whole) != len(motion):
        raise UnfitError(f"has {len(whole)} frames at {config.fps:g} fps, but the motion has {len(motion)}")
    missing = missing_channels(kept.layout, layout)
    if missing is not None:
        raise UnfitError(f"has no {missing.name} ({missing.kind})")
    above = {kept.names[joint] for joint in path_to(bvh.joints, figure.carrier)[:-1]}
    written = tuple(channels for channels in layout if channels.name not in above)
    local_columns(_orthonormal(motion, written), written, whole, bvh.joints, kept)
    matrices = rotation_6d_to_matrix(whole[:, rotation_columns(every)])
    _fill(Bvh(bvh.joints, values, fps), figure, matrices, whole[:, -3:] / figure.unit.metres, turn)
    with whole_file(file) as content:
        content.write(_header(source))
        content.write(f"MOTION\nFrames: {len(values)}\nFrame Time: {1 / config.fps:.9g}\n".encode())
        np.savetxt(content, values, fmt="%.6f")
    return fps


def _orthonormal(motion: NDArray[Any], layout: Layout) -> NDArray[np.float64]:
    """Returns motion `[frames, columns]`, float64, whose 6D columns are the first two rows of rotation matrices."""
    columns, found = rotation_columns(layout), motion.astype(np.float64)
    found[:, columns] = matrix_to_rotation_6d(rotation_6d_to_matrix(found[:, columns]))
    return found


def _fill(
    bvh: Bvh,
    figure: Figure,
    matrices: NDArray[np.float64],
    place: NDArray[np.float64],
    turn: NDArray[np.float64] | None,
) -> None:
    """Writes rotations and the carrier's position, both as from `columns_of`, into their channels of `bvh.values`.

    If the carrier has no position channels, the position goes into the nearest ones above it.

    Args:
        matrices: `[frames, turning joints, 3, 3]`.
        place: the carrier's position, `[frames, 3]`.
    """
    back = np.eye(3) if turn is None else turn.T
    *above, carrier = path = path_to(bvh.joints, figure.carrier)
    rows = list(accumulate((bool(joint.axes) for joint in bvh.joints), initial=0))
    local = {index: matrices[:, rows[index]] for index, joint in enumerate(bvh.joints) if joint.axes}
    free = outermost(bvh.joints)
    local |= {index: back @ own for index, own in local.items() if free[index]}
    turned = world_of(bvh.joints, above, local, places_of(bvh, above))[0]
    if turned is not None and carrier in local:
        local[carrier] = turned.transpose(0, 2, 1) @ (back @ local[carrier])
    for index, own in local.items():
        bvh.values[:, channels_of(bvh.joints, index, "rotation")] = _angles(own, bvh.joints[index])
    placed = [joint for joint in path if channels_of(bvh.joints, joint, "position")]
    if not placed:
        return
    at = path.index(placed[-1])
    places = places_of(bvh, path)
    turned, origin = world_of(bvh.joints, path[:at], local, places)
    place = place @ back.T - origin
    place = place if turned is None else turned_by(turned.transpose(0, 2, 1), place)
    places[path[at]] = np.zeros_like(place)
    place = place - world_of(bvh.joints, path[at:], local, places)[1]
    axes = [channel[0] for channel in bvh.joints[path[at]].channels if channel.endswith("position")]
    for axis, column in zip(axes, channels_of(bvh.joints, path[at], "position"), strict=True):
        bvh.values[:, column] = place[:, "XYZ".index(axis)]


def _angles(matrices: NDArray[np.float64], joint: Joint) -> NDArray[np.float64]:
    """Converts a joint's rotations `[frames, 3, 3]` to the angles of its channels, degrees `[frames, axes]`, unwrapped.

    A joint with fewer than three rotation channels cannot hold every rotation; the rest of the rotation is dropped.
    """
    from scipy.spatial.transform import Rotation

    axes: Sequence[int] = joint.axes + tuple(axis for axis in range(3) if axis not in joint.axes)
    axes = axes[: max(3, len(joint.axes))]
    if any(first == second for first, second in pairwise(axes)):
        raise ClipError(f"{joint.name} turns about one axis twice in a row, so its angles cannot be found")
    with warnings.catch_warnings():
        # Where two axes coincide, only the sum of their angles is known, and any two angles with that sum are right.
        warnings.filterwarnings("ignore", message="Gimbal lock")
        angles = Rotation.from_matrix(matrices).as_euler("".join("XYZ"[axis] for axis in axes), degrees=True)
    return np.unwrap(angles, period=360, axis=0)[:, : len(joint.axes)]


def _header(source: Path) -> bytes:
    """Returns all lines before MOTION, unchanged."""
    with source.open("rb") as content:
        lines = io.BytesIO()
        for line in content:
            if line.strip().upper() == b"MOTION":
                break
            lines.write(line)
    return lines.getvalue()
