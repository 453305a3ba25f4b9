"""Writes motion as BEAT2 npz files."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import load_npz, missing_key, npz_keys
from ds_rvqvae.data.formats.finding import check_regular
from ds_rvqvae.data.formats.npz import FPS_KEYS, rate_of, write_npz
from ds_rvqvae.data.formats.smpl.beat2 import MOTION_KEYS, rotations_and_positions
from ds_rvqvae.data.formats.smpl.poses import load_motion, turns_z
from ds_rvqvae.data.formats.written import Written, at_rest
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import ClipError, UnfitError, check_finite
from ds_rvqvae.motion.layout import (
    EXPRESSIONS,
    NUM_EXPRESSIONS,
    SMPLX_JOINTS,
    TRANSLATION,
    Channels,
    Layout,
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

_Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""A rotation of 90 degrees about x, which reverses the reader's."""


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


def write_beat2_file(
    file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Path | None, config: DataConfig
) -> Written:
    """Writes features as a BEAT2 npz (`ds_rvqvae.data.formats.written.Write`)."""
    content = rest_source(len(motion), fps) if source is None else read_beat2_source(source, config)
    write_beat2(file, motion, layout, fps, content)
    if source is None:
        return Written(0.0, at_rest(False))
    details = tuple(f"{key} holds Python objects and was left out" for key in content.left_out)
    notes = ("arrays of Python objects in the source were left out",) if details else ()
    return Written(content.fps, notes, details)


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
