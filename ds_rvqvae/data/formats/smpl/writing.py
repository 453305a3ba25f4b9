"""Writes motion as files of BEAT2, of SMPL's joints, and of Motion-X, in the form of the source."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.base import load_npy, load_npz, matrix, missing_key, npz_keys
from ds_rvqvae.data.formats.finding import check_regular
from ds_rvqvae.data.formats.npz import FPS_KEYS, rate_of, write_npz
from ds_rvqvae.data.formats.smpl import beat2, motionx
from ds_rvqvae.data.formats.smpl.fields import Field, Fields
from ds_rvqvae.data.formats.smpl.forms import in_form, layout_of, motion_of
from ds_rvqvae.data.formats.smpl.poses import load_fields, load_motion, turns_z
from ds_rvqvae.data.formats.written import Written, at_rest
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import ClipError, UnfitError, check_finite
from ds_rvqvae.motion.layout import (
    EXPRESSIONS,
    NUM_EXPRESSIONS,
    SMPL_JOINTS,
    SMPLH_JOINTS,
    SMPLX_JOINTS,
    TRANSLATION,
    Channels,
    Layout,
    rotation_columns,
)
from ds_rvqvae.motion.rotations import resample, rotation_6d_to_matrix, same_rate, translation_positions

_Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""A rotation of 90 degrees about x, which reverses the reader's."""


_UPRIGHT = (np.pi / 2, 0.0, 0.0)
"""The same rotation as axis times angle: that of a root at rest in a file with z up."""


class Source(NamedTuple):
    """A motion file; a written clip takes from it its form and everything that the features do not have."""

    arrays: dict[str, NDArray[Any]]
    """Its arrays by key, in its order."""
    left_out: list[str]
    """Keys that hold Python objects, which are never loaded."""
    fps: float
    """Its frame rate, in frames per second."""
    has_z_up: bool = False
    """Whether z points up in it; in features, y does."""
    fields: Fields = beat2.FIELDS
    """Where it has its motion."""
    kind: str = "a BEAT2 file"


def read_beat2_source(file: Path, config: DataConfig | None = None) -> Source:
    """Reads all plain arrays of a BEAT2 npz, and its frame rate according to `config`; raises ClipError."""
    config = config or DataConfig()
    arrays, left_out = _plain_arrays(file)
    for key in beat2.MOTION_KEYS:
        if key not in arrays:
            raise ClipError(missing_key(list(arrays), key))
    beat2.checked_arrays(arrays)
    return Source(arrays, left_out, load_motion(file, (), config).fps, turns_z(config))


def read_smpl_source(file: Path, config: DataConfig) -> Source:
    """Reads all plain arrays of an npz of SMPL's joints, its frame rate and its form; raises ClipError."""
    arrays, left_out = _plain_arrays(file)
    loaded = load_fields(file, config)
    return Source(arrays, left_out, loaded.fps, config.up_axis == "z", loaded.fields, "an npz of SMPL's joints")


def _plain_arrays(file: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Returns all arrays of an npz, and the keys of those that hold Python objects; raises ClipError."""
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
    return arrays, left_out


def rest_source(frames: int, fps: float) -> Source:
    """Returns a BEAT2 source for clips without a source file: all joints at rest, neutral shape."""
    return Source(
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


def smpl_at_rest(layout: Layout, frames: int, fps: float, has_z_up: bool = False) -> tuple[Source, str]:
    """Returns a source at rest with AMASS's keys and the joints of the first model that has those of `layout`.

    The models are SMPL-H, SMPL and SMPL-X, in this order; the second value is the model's name.
    """
    names = {part.name for part in layout if part.kind == "rotation_6d"}
    models = {"SMPL-H": SMPLH_JOINTS, "SMPL": SMPL_JOINTS, "SMPL-X": SMPLX_JOINTS}
    model = next((model for model, joints in models.items() if names <= set(joints)), "SMPL-X")
    joints = models[model]
    arrays = {
        "trans": np.zeros((frames, 3)),
        "gender": np.array("neutral"),
        FPS_KEYS[0]: np.array(float(fps)),
        "betas": np.zeros(16),
        "poses": np.zeros((frames, 3 * len(joints))),
    }
    if has_z_up:
        arrays["poses"][:, :3] = _UPRIGHT
    fields = Fields(joints, (Field("poses", 0, len(joints), "axis_angle"),), "trans")
    return Source(arrays, [], fps, has_z_up, fields, "an npz of SMPL's joints"), model


def write_beat2_file(
    file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Path | None, config: DataConfig
) -> Written:
    """Writes features as a BEAT2 npz (`ds_rvqvae.data.formats.written.Write`)."""
    content = rest_source(len(motion), fps) if source is None else read_beat2_source(source, config)
    write_beat2(file, motion, layout, fps, content)
    return Written(0.0, at_rest(False)) if source is None else _written(content, fps)


def write_beat2(file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Source) -> None:
    """Writes features as an npz with the keys, dtypes, forms of rotations and order of `source`.

    Args:
        motion: `[frames, features]`: 6D rotations of joints, translation features, expressions.
        layout: of its columns.
        fps: frames per second of `motion`. The source's joints, translation and expressions that `layout` does not
            name are resampled to it; its other keys are copied.

    Raises:
        ClipError: the source's motion has another length or is not finite, or a column is not one of the source's.
    """
    arrays = with_motion(motion, layout, fps, source)
    with whole_file(file) as content:
        write_npz(content, arrays)


def write_smpl_file(
    file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Path | None, config: DataConfig
) -> Written:
    """Writes features as an npz of SMPL's joints (`ds_rvqvae.data.formats.written.Write`)."""
    if source is not None:
        content = read_smpl_source(source, config)
        write_beat2(file, motion, layout, fps, content)
        return _written(content, fps)
    content, model = smpl_at_rest(layout, len(motion), fps, config.up_axis == "z")
    write_beat2(file, motion, layout, fps, content)
    up = "z" if content.has_z_up else "y"
    return Written(0.0, (f"written with {model}'s {len(content.fields.joints)} joints and {up} up", *at_rest(False)))


def write_motionx_file(
    file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Path | None, config: DataConfig
) -> Written:
    """Writes features as Motion-X's 322 columns (`ds_rvqvae.data.formats.written.Write`)."""
    has_z_up = config.up_axis == "z"
    if source is None:
        values, own = matrix(np.zeros((len(motion), motionx.WIDTH), np.float32), "the matrix"), fps
        values[:, :3] = _UPRIGHT if has_z_up else 0
    else:
        check_regular(source)
        values = matrix(load_npy(source), "the matrix", motionx.WIDTH)
        own, _ = motionx.rate_of_file(config)
    content = Source(motionx.split_columns(values), [], own, has_z_up, motionx.FIELDS, "a Motion-X file")
    arrays = with_motion(motion, layout, fps, content)
    dtype = np.promote_types(values.dtype, np.float16)
    with whole_file(file) as stream:
        np.save(stream, np.concatenate([arrays[key] for key in motionx.COLUMNS], axis=1).astype(dtype))
    notes: tuple[str, ...] = ()
    if not same_rate(fps, motionx.FPS):
        notes = (
            f"a Motion-X file does not give its frame rate: read it with {to_say('source_fps', f'{fps:g}')}, or write "
            f"it at Motion-X's {motionx.FPS:g} fps",
        )
    return Written(0.0 if source is None else own, (*notes, *at_rest(source is not None)))


def _written(content: Source, fps: float) -> Written:
    """Returns the result of writing with a source, with notes on what of it is not as it was."""
    notes, details = _other_arrays(content, fps)
    if content.left_out:
        details = (*details, *(f"{key} holds Python objects and was left out" for key in content.left_out))
        notes = (*notes, "arrays of Python objects in the source were left out")
    return Written(content.fps, notes, details)


def _other_arrays(content: Source, fps: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns notes on other arrays of each frame if the rate changes, without and with their keys."""
    others = [] if same_rate(content.fps, fps) else _per_frame(content)
    if not others:
        return (), ()
    words = "at the new rate they are those of the nearest frames"
    return (f"the source has other arrays of each frame; {words}",), (f"{', '.join(others)}: {words}",)


def _per_frame(source: Source) -> list[str]:
    """Returns the keys of matrices, beside the motion, that have a row per frame."""
    frames, own = len(source.arrays[source.fields.trans]), _motion_keys(source.fields)
    return [
        key for key, values in source.arrays.items() if key not in own and values.ndim > 1 and len(values) == frames
    ]


def _motion_keys(fields: Fields) -> list[str]:
    keys = [*(field.key for field in (*fields.rotations, *fields.copies)), fields.trans]
    return [*keys, fields.expressions] if fields.expressions else keys


def with_motion(motion: NDArray[Any], layout: Layout, fps: float, source: Source) -> dict[str, NDArray[Any]]:
    """Returns a source's arrays at `fps` with the columns of `motion` in place of its own; see `write_beat2`."""
    arrays, fields = _at_rate(source, fps), source.fields
    if len(arrays[fields.trans]) != len(motion):
        raise UnfitError(
            f"the source has {len(arrays[fields.trans])} frames at {fps:g} fps, but the codes have {len(motion)}"
        )
    motion = motion.astype(np.float64)
    for channels in layout:
        columns = motion[:, channels.start : channels.stop]
        if channels.kind == "rotation_6d" and channels.name in fields.joints:
            joint = fields.joints.index(channels.name)
            matrices = rotation_6d_to_matrix(columns)
            if joint == 0 and source.has_z_up:
                matrices = _Y_UP_TO_Z_UP @ matrices
            _put_joint(arrays, fields, joint, matrices)
        elif channels.name == TRANSLATION:
            first = arrays[fields.trans][0] / fields.scaling
            arrays[fields.trans][:] = fields.scaling * _places(columns, channels, first, source.has_z_up)
        elif (
            channels.name == EXPRESSIONS
            and fields.expressions
            and arrays[fields.expressions].shape[1] == channels.width
        ):
            arrays[fields.expressions][:] = columns
        else:
            raise UnfitError(f"{channels.name} ({channels.kind}) cannot be stored in {source.kind}")
    return arrays


def _put_joint(arrays: dict[str, NDArray[Any]], fields: Fields, joint: int, matrices: NDArray[np.float64]) -> None:
    """Writes one joint's rotations `[frames, 3, 3]` under each key that has the joint."""
    for field in (*fields.rotations, *fields.copies):
        if field.first <= joint < field.first + field.joints:
            each = arrays[field.key].reshape(len(matrices), field.joints, -1)
            each[:, joint - field.first] = in_form(matrices, field.form)


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


def _at_rate(source: Source, fps: float) -> dict[str, NDArray[Any]]:
    """Returns a source's arrays at another frame rate, with copies of the motion; not resampled if the rates agree."""
    fields = source.fields
    motion = motion_of(source.arrays, fields)
    check_finite(motion)
    arrays, source_fps = dict(source.arrays), source.fps
    for key in FPS_KEYS:
        if key in arrays and not _says(arrays[key], key, fps):
            arrays[key] = _rate_like(arrays[key], fps)
    dtypes = {key: np.promote_types(arrays[key].dtype, np.float16) for key in _motion_keys(fields)}
    if same_rate(source_fps, fps):
        return arrays | {key: arrays[key].astype(dtype, order="C") for key, dtype in dtypes.items()}
    width = arrays[fields.expressions].shape[1] if fields.expressions else 0
    layout = layout_of(fields, width)
    try:
        motion = resample(motion, rotation_columns(layout), source_fps, fps)
    except ValueError as error:
        raise ClipError(f"the source cannot be resampled: {error}") from None
    nearest = np.round(np.arange(len(motion)) * (source_fps / fps)).astype(np.int64)
    for key in _per_frame(source):
        arrays[key] = arrays[key][nearest.clip(0, len(arrays[key]) - 1)]
    for key, values in _resampled_parts(motion, source).items():
        arrays[key] = values.astype(dtypes[key], order="C")
    if not any(key in arrays for key in FPS_KEYS):
        arrays[FPS_KEYS[0]] = _rate_like(np.zeros((), np.int32), fps)
    return arrays


def _resampled_parts(motion: NDArray[np.float64], source: Source) -> dict[str, NDArray[Any]]:
    """Returns motion in `layout_of` under the source's keys and in its forms."""
    fields, arrays = source.fields, source.arrays
    end = 6 * len(fields.joints)
    matrices = rotation_6d_to_matrix(motion[:, :end].reshape(len(motion), -1, 6))
    parts: dict[str, NDArray[Any]] = {fields.trans: fields.scaling * motion[:, end : end + 3]}
    for field in (*fields.rotations, *fields.copies):
        own = matrices[:, field.first : field.first + field.joints].reshape(-1, 3, 3)
        parts[field.key] = in_form(own, field.form).reshape(len(motion), *arrays[field.key].shape[1:])
    if fields.expressions:
        parts[fields.expressions] = motion[:, end + 3 :]
    return parts


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
