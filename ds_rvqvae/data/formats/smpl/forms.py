"""Conversion between the forms of rotations in SMPL files and 6D."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.smpl.fields import Field, Fields, Form
from ds_rvqvae.motion.layout import EXPRESSIONS, Channels, Layout, joint_layout
from ds_rvqvae.motion.rotations import matrix_to_axis_angle, matrix_to_rotation_6d

_BLOCK = 512
"""Frames converted at a time: the temporary arrays of 55 joints stay in the processor's cache. With 4,096 frames they
do not, and it takes twice as long."""


def layout_of(fields: Fields, expressions: int = 0) -> Layout:
    """Returns the layout of a file's joints as 6D, then the root's translation, then so many expressions, if any."""
    body = joint_layout(fields.joints, "translation")
    end = body[-1].stop
    return (*body, Channels(EXPRESSIONS, "expression", end, end + expressions)) if expressions else body


def motion_of(arrays: Mapping[str, NDArray[Any]], fields: Fields) -> NDArray[np.float64]:
    """Returns the motion in a file's arrays in `layout_of`, with positions in metres, float64 `[frames, columns]`.

    Frames with a NaN keep it. In frames in which all is zero, joints are at rest.
    """
    width = arrays[fields.expressions].shape[1] if fields.expressions else 0
    end = 6 * len(fields.joints)
    motion = np.empty((len(arrays[fields.trans]), end + 3 + width))
    for field in fields.rotations:
        out = motion[:, 6 * field.first : 6 * (field.first + field.joints)]
        write_field(arrays[field.key], field, out)
    motion[:, end : end + 3] = arrays[fields.trans]
    if fields.scaling != 1:
        motion[:, end : end + 3] /= fields.scaling
    if fields.expressions:
        motion[:, end + 3 :] = arrays[fields.expressions]
    return motion


def write_field(values: NDArray[Any], field: Field, out: NDArray[np.floating[Any]]) -> None:
    """Converts a field's rotations `[frames, …]` to 6D, and writes them to `out` `[frames, 6 * joints]`."""
    if field.form == "axis_angle":
        write_rotation_6d(values.reshape(len(values), -1), out)
        return
    each = values.reshape(len(values), field.joints, -1)
    if field.form == "matrix":
        rows = each[..., :6]
    elif field.form == "rows_6d":
        rows = each
    else:
        rows = _rows_of_columns(each.astype(np.float64))
    out[:] = rows.reshape(len(values), -1)
    out.reshape(len(values), -1, 6)[~each.any(axis=2)] = (1, 0, 0, 0, 1, 0)


def _rows_of_columns(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts two columns of matrices, `[..., 6]` as 3 x 2, to their first two rows, `[..., 6]`."""
    pairs = each.reshape(*each.shape[:-1], 3, 2)
    with np.errstate(invalid="ignore"):  # NaN and infinite values are found by the rules
        third = np.cross(pairs[..., 0], pairs[..., 1])
    matrices = np.concatenate([pairs, third[..., None]], axis=-1)
    return matrix_to_rotation_6d(matrices)


def in_form(matrices: NDArray[np.float64], form: Form) -> NDArray[np.float64]:
    """Converts rotation matrices `[frames, 3, 3]` to a form, `[frames, columns of one joint]`."""
    if form == "axis_angle":
        return matrix_to_axis_angle(matrices)
    if form == "rows_6d":
        return matrix_to_rotation_6d(matrices)
    return (matrices if form == "matrix" else matrices[..., :2]).reshape(len(matrices), -1)


def write_rotation_6d(axis_angle: NDArray[Any], out: NDArray[np.floating[Any]]) -> None:
    """Converts rotations from axis times angle in radians to 6D, and writes them to `out`.

    With the Gibbs vector `g = axis * tan(angle / 2)`, the rotation is `I + 2 / (1 + g·g) * ([g] + [g][g])`. Only its
    first two rows are computed. This takes one tangent, which NumPy has vectorised, instead of a sine and a cosine. At
    pi the tangent of the nearest float64 is large but finite.

    Args:
        axis_angle: real `[frames, 3 * joints]`; a joint with NaN or infinite values becomes NaN.
        out: float `[frames, 6 * joints]`.
    """
    for start in range(0, len(axis_angle), _BLOCK):
        block = axis_angle[start : start + _BLOCK]
        _write_block(block.reshape(len(block), -1, 3), out[start : start + _BLOCK].reshape(len(block), -1, 6))


def _write_block(axis_angle: NDArray[np.floating[Any]], out: NDArray[np.floating[Any]]) -> None:
    """Converts `[frames, joints, 3]` to `[frames, joints, 6]`."""
    gibbs = np.empty((3, *axis_angle.shape[:2]))
    gibbs[:] = np.moveaxis(axis_angle, 2, 0)
    x, y, z = gibbs
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinite values are found by the rules
        angle = np.maximum(np.sqrt(x * x + y * y + z * z), 1e-150)  # gives the limit 1 / 2 instead of 0 / 0
        gibbs *= np.tan(angle / 2) / angle
        xx, yy, zz = gibbs * gibbs
        scale = 2 / (1 + (xx + yy + zz))
        out[..., 0] = 1 - scale * (yy + zz)
        out[..., 4] = 1 - scale * (xx + zz)
        scaled_x, scaled_y, scaled_z = gibbs * scale
        xy = scaled_x * y
        out[..., 1] = xy - scaled_z
        out[..., 3] = xy + scaled_z
        out[..., 2] = scaled_x * z + scaled_y
        out[..., 5] = scaled_y * z - scaled_x
