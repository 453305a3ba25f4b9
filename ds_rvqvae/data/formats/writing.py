"""Single motion files: reads one of any format, and writes features back as motion."""

import io
import warnings
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import Reader, load_npz, missing_key, npz_keys
from ds_rvqvae.data.formats.beat2 import MOTION_KEYS, rotations_and_positions
from ds_rvqvae.data.formats.bodies import unique_names
from ds_rvqvae.data.formats.bvh import Bvh, Joint, read_bvh
from ds_rvqvae.data.formats.bvh_motion import (
    Figure,
    channels_of,
    columns_of,
    figure_of,
    path_to,
    places_of,
    turned_by,
    world_of,
)
from ds_rvqvae.data.formats.features import FeatureFolderReader
from ds_rvqvae.data.formats.finding import check_regular
from ds_rvqvae.data.formats.npz import FPS_KEYS, rate_of, write_npz
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.formats.skeletons import Z_UP_TO_Y_UP, outermost
from ds_rvqvae.data.formats.smpl import load_motion, turns_z
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import ClipError, UnfitError, check_finite
from ds_rvqvae.motion.layout import (
    EXPRESSIONS,
    NUM_EXPRESSIONS,
    SMPLX_JOINTS,
    TRANSLATION,
    Channels,
    Layout,
    joint_layout,
    missing_channels,
    rotation_columns,
    smplx_layout,
)
from ds_rvqvae.motion.rotations import (
    matrix_to_axis_angle,
    resample,
    rotation_6d_to_matrix,
    same_rate,
    translation_positions,
)

BEAT2, BVH, PACKED = "beat2", "bvh", "packed"
"""Two formats that are written as they are read, and the one that holds several clips."""
_Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""A rotation of 90 degrees about x, which reverses the reader's."""


def open_motion_file(file: Path, config: DataConfig) -> Reader:
    """Returns a reader of one file, whose clips are at `rvqvae.data.fps`.

    Raises:
        ClipError: it is not a regular file, or its frame rate is another one and features are never resampled.
        UserError: the format is unknown, or the file cannot be read.
    """
    check_regular(file)
    # The reader of matrices gives the exact reason if it cannot read one.
    is_npy = file.suffix.lower() == ".npy"
    reader = FeatureFolderReader(file, config) if is_npy else open_reader(file, config)
    if not same_rate(reader.fps, config.fps):
        raise ClipError(f"{reader.fps:g} fps, but {config.fps:g} fps is needed; features are never resampled")
    return reader


def write_matrix(file: Path, motion: NDArray[Any]) -> None:
    """Writes a `.npy` feature matrix `[frames, features]`, float32."""
    with whole_file(file) as content:
        np.save(content, np.asarray(motion, np.float32), allow_pickle=False)


class Beat2Source(NamedTuple):
    """A BEAT2 file; a written clip takes from it everything that the features do not have."""

    arrays: dict[str, NDArray[Any]]
    """Its arrays by key, in its order."""
    left_out: list[str]
    """Keys that hold Python objects, which are never loaded."""
    fps: float
    """Its frame rate, in frames per second."""
    has_z_up: bool = False
    """Whether z points up in it; in features, y does."""


def read_beat2_source(file: Path, config: DataConfig | None = None) -> Beat2Source:
    """Reads all plain arrays of a BEAT2 npz, and its frame rate according to `config`; raises ClipError."""
    config = config or DataConfig()
    check_regular(file)
    arrays: dict[str, NDArray[Any]] = {}
    left_out = []
    for key in npz_keys(file):
        try:
            values = load_npz(file, (key,))[key]
        except ClipError as error:
            if "pickled" not in str(error):
                raise
            left_out.append(key)
        else:
            arrays[key] = values
    for key in MOTION_KEYS:
        if key not in arrays:
            raise ClipError(missing_key(list(arrays), key))
    return Beat2Source(arrays, left_out, load_motion(file, (), config).fps, turns_z(config))


def rest_source(frames: int, fps: float) -> Beat2Source:
    """Returns a source for clips without a source file: all joints at rest, neutral shape."""
    return Beat2Source(
        {
            "betas": np.zeros(300, np.float32),
            "poses": np.zeros((frames, 3 * len(SMPLX_JOINTS)), np.float32),
            "expressions": np.zeros((frames, NUM_EXPRESSIONS)),
            "trans": np.zeros((frames, 3)),
            "model": np.array("smplx2020"),
            "gender": np.array("neutral"),
            FPS_KEYS[0]: _rate_like(np.zeros((), np.int32), fps),
        },
        [],
        fps,
    )


def write_beat2(file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Beat2Source) -> None:
    """Writes features as a BEAT2 npz with the keys, dtypes and order of `source`.

    Args:
        motion: `[frames, features]`: 6D rotations of SMPL-X joints, translation features, expressions.
        layout: of its columns.
        fps: frames per second of `motion`. The source's joints, translation and expressions that `layout` does not
            name are resampled to it; its other keys are copied.

    Raises:
        ClipError: the source's motion has another length or is not finite, or a column is not one of SMPL-X.
    """
    arrays = _at_rate(source, fps)
    if len(arrays["poses"]) != len(motion):
        raise UnfitError(
            f"the source has {len(arrays['poses'])} frames at {fps:g} fps, but the codes have {len(motion)}"
        )
    motion = motion.astype(np.float64)
    for channels in layout:
        columns = motion[:, channels.start : channels.stop]
        if channels.kind == "rotation_6d" and channels.name in SMPLX_JOINTS:
            joint = SMPLX_JOINTS.index(channels.name)
            matrices = rotation_6d_to_matrix(columns)
            if joint == 0 and source.has_z_up:
                matrices = _Y_UP_TO_Z_UP @ matrices
            arrays["poses"][:, 3 * joint : 3 * joint + 3] = matrix_to_axis_angle(matrices)
        elif channels.name == TRANSLATION:
            arrays["trans"][:] = _places(columns, channels, arrays["trans"][0], source.has_z_up)
        elif channels.name == EXPRESSIONS:
            arrays["expressions"][:] = columns
        else:
            raise UnfitError(f"{channels.name} ({channels.kind}) cannot be stored in a BEAT2 file")
    with whole_file(file) as content:
        write_npz(content, arrays)


def _places(
    columns: NDArray[np.float64], channels: Channels, first: NDArray[Any], has_z_up: bool
) -> NDArray[np.float64]:
    """Returns the root's positions `[frames, 3]` from its columns, with the source's up axis.

    A path made from velocities starts at the horizontal position of `first`, the source's first position.
    """
    if channels.kind != "position":
        x, _, z = _Y_UP_TO_Z_UP.T @ first if has_z_up else first
        columns = translation_positions(columns, (x, z))
    places: NDArray[np.float64] = columns @ _Y_UP_TO_Z_UP.T if has_z_up else columns
    return places


def _at_rate(source: Beat2Source, fps: float) -> dict[str, NDArray[Any]]:
    """Returns a source's arrays at another frame rate, with copies of the motion; not resampled if the rates agree."""
    motion = rotations_and_positions(source.arrays)
    check_finite(motion)
    arrays, source_fps = dict(source.arrays), source.fps
    for key in FPS_KEYS:
        if key in arrays and not _says(arrays[key], key, fps):
            arrays[key] = _rate_like(arrays[key], fps)
    dtypes = {key: np.promote_types(arrays[key].dtype, np.float16) for key in MOTION_KEYS}
    if same_rate(source_fps, fps):
        return arrays | {key: arrays[key].astype(dtypes[key]) for key in MOTION_KEYS}
    layout = smplx_layout()
    try:
        motion = resample(motion, rotation_columns(layout), source_fps, fps)
    except ValueError as error:
        raise ClipError(f"the source cannot be resampled: {error}") from None
    rotations = motion[:, rotation_columns(layout)]
    poses = matrix_to_axis_angle(rotation_6d_to_matrix(rotations)).reshape(len(motion), -1)
    first = 6 * len(SMPLX_JOINTS)
    parts: dict[str, NDArray[Any]] = {
        "poses": poses,
        "trans": motion[:, first : first + 3],
        "expressions": motion[:, first + 3 :],
    }
    for key, values in parts.items():
        arrays[key] = values.astype(dtypes[key])
    if not any(key in arrays for key in FPS_KEYS):
        arrays[FPS_KEYS[0]] = _rate_like(np.zeros((), np.int32), fps)
    return arrays


def _says(values: NDArray[Any], key: str, fps: float) -> bool:
    """Returns whether a key of a source gives a frame rate, or one that is read as the same."""
    try:
        said = rate_of({key: values})
    except ClipError:
        return False
    return said is not None and same_rate(said, fps)


def _rate_like(values: NDArray[Any], fps: float) -> NDArray[Any]:
    """Returns a frame rate in the shape of `values` and, if it can hold the rate, in their dtype."""
    is_number = values.dtype.kind == "f" or (values.dtype.kind in "iu" and fps == int(fps))
    dtype = values.dtype if is_number else np.float64
    return np.full(values.shape, fps, dtype)


def write_bvh(file: Path, motion: NDArray[Any], layout: Layout, source: Path, config: DataConfig) -> float:
    """Writes motion as a BVH file with the hierarchy, names and order of channels of `source`.

    Args:
        motion: `[frames, columns]`, as a reader of `source` returns them.
        layout: the columns to write; the source's other joints are kept as in the source, and so are those above the
            body's carrier.
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
    there = joint_layout([name for name, joint in zip(names, bvh.joints, strict=True) if joint.axes], "position")
    whole = columns_of(bvh, figure, turn)
    try:
        whole = resample(whole, rotation_columns(there), fps, config.fps).copy()
        values = resample(bvh.values, np.empty((0, 6), np.int64), fps, config.fps).copy()
    except ValueError as error:
        raise ClipError(f"cannot be resampled: {error}") from None
    if len(whole) != len(motion):
        raise UnfitError(f"has {len(whole)} frames at {config.fps:g} fps, but the motion has {len(motion)}")
    missing = missing_channels(there, layout)
    if missing is not None:
        raise UnfitError(f"has no {missing.name} ({missing.kind})")
    places = {channels.name: channels for channels in there}
    above = {names[joint] for joint in path_to(bvh.joints, figure.carrier)[:-1]}
    for channels in (channels for channels in layout if channels.name not in above):
        own = places[channels.name]
        whole[:, own.start : own.stop] = motion[:, channels.start : channels.stop]
    matrices = rotation_6d_to_matrix(whole[:, rotation_columns(there)])
    _fill(Bvh(bvh.joints, values, fps), figure, matrices, whole[:, -3:] / figure.unit.metres, turn)
    with whole_file(file) as content:
        content.write(_header(source))
        content.write(f"MOTION\nFrames: {len(values)}\nFrame Time: {1 / config.fps:.9g}\n".encode())
        np.savetxt(content, values, fmt="%.6f")
    return fps


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
