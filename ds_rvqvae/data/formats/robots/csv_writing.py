"""Writes robots' motion as csv: with a source, in its columns, header, units and number format."""

import re
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.npz import open_regular
from ds_rvqvae.data.formats.robots.columns import (
    are_slides,
    motion_of,
    moving_joints,
    named_joints,
    robot_layout,
    robot_of,
)
from ds_rvqvae.data.formats.robots.csv import in_metres, read_motion, units_of
from ds_rvqvae.data.formats.robots.forms import BONES_ROOT, NAMED_ROOT, Form, Units
from ds_rvqvae.data.formats.robots.table import read_head
from ds_rvqvae.data.formats.written import Written, at_rest
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import ClipError, UnfitError, check_finite
from ds_rvqvae.motion.layout import Layout, missing_channels, rotation_columns
from ds_rvqvae.motion.rotations import (
    decimation,
    resample,
    rotation_6d_to_matrix,
    same_rate,
    translation_positions,
)
from ds_rvqvae.motion.skeleton import Skeleton

_DECIMALS = (6, 9)
"""The fewest and the most digits that are written behind the point."""
_BY_NUMBER = re.compile(r"joint_\d+")


class _Table(NamedTuple):
    """A csv file to be written."""

    values: NDArray[np.float64]
    """`[frames, columns]`, in its own units."""
    form: Form
    joints: tuple[str, ...]
    units: Units
    columns: NDArray[np.float64]
    """The same motion in the columns of `robot_layout`, positions in metres."""
    header: str | None
    decimals: int
    end: str
    source_fps: float = 0.0


def write_robot_csv(
    file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Path | None, config: DataConfig
) -> Written:
    """Writes a robot's motion as csv (`ds_rvqvae.data.formats.written.Write`).

    With a source, numbers of columns that `layout` does not name are its own. Without one, the file has LAFAN1's form
    (no header; metres and radians) or BONES-SEED's (centimetres and degrees), by `rvqvae.data.csv_units`; joints whose
    names come from a header get one. The root's path starts where that of the source starts, or at 0.
    """
    try:
        robot = robot_of(config)
    except UserError as error:
        raise UnfitError(str(error)) from None
    table = _new(layout, len(motion), robot, config) if source is None else _of_source(source, fps, robot, config)
    own = robot_layout(robot, table.joints)
    missing = missing_channels(own, layout)
    if missing is not None:
        raise UnfitError(f"{missing.name} ({missing.kind}) is no column of this csv file")
    if len(table.values) != len(motion):
        raise UnfitError(f"the source has {len(table.values)} frames at {fps:g} fps, but the motion has {len(motion)}")
    _put(table, motion.astype(np.float64), layout, are_slides(robot, table.joints))
    with whole_file(file) as content:
        _write(content, table)
    notes = at_rest(source is not None)
    if table.form.fps is None or not same_rate(table.form.fps, fps):
        notes = (f"a csv file does not give its frame rate: read it with {to_say('source_fps', f'{fps:g}')}", *notes)
    return Written(table.source_fps, notes)


def _of_source(source: Path, fps: float, robot: Skeleton | None, config: DataConfig) -> _Table:
    """Returns the table of a source, at another frame rate; raises ClipError."""
    values, form = read_motion(source, config)
    units, _ = units_of(form, values, config)
    joints = named_joints(robot, len(form.joints), form.names)
    slides = are_slides(robot, joints)
    columns = motion_of(*in_metres(values, form, units, slides)[:3])
    check_finite(columns)
    own = config.source_fps or form.fps
    if own is None:
        raise ClipError(f"a csv file gives no frame rate; give {to_say('source_fps', 'N')}")
    try:
        columns = resample(columns, rotation_columns(robot_layout(robot, joints)), own, fps).copy()
        step = decimation(own, fps)
    except ValueError as error:
        raise ClipError(f"cannot be resampled from {own:g} to {fps:g} fps: {error}") from None
    header, (decimals, end) = read_head(source), _number_form(source, form)
    first = header.first if header.names is not None else None
    table = _Table(values[:: step or 1].copy(), form, joints, units, columns, first, decimals, end, own)
    if step is not None:
        return table
    table = table._replace(values=np.empty((len(columns), values.shape[1])))
    if form.turns and len(form.turns) == 4:
        table.values[0, form.turns] = values[0, form.turns]
    _put_root(table, columns[:, :6])
    _put_places(table, columns[:, -3:])
    _put_angles(table, columns[:, 6:-3], slides, range(len(joints)))
    if form.counter is not None:
        table.values[:, form.counter] = values[0, form.counter]
    return table


def _new(layout: Layout, frames: int, robot: Skeleton | None, config: DataConfig) -> _Table:
    """Returns the table of a robot at rest; raises UnfitError if its joints are not known."""
    named = tuple(part.name for part in layout if part.kind == "angle")
    joints = named if robot is None else moving_joints(robot)
    numbered = [name for name in joints if _BY_NUMBER.fullmatch(name)]
    if robot is None and numbered and list(joints) != [f"joint_{joint}" for joint in range(len(joints))]:
        raise UnfitError("the tokenizer covers some of the robot's joints, by number; name a source by --source")
    units: Units = config.csv_units or "metres_radians"
    count = len(joints)
    header = None
    if units == "centimetres_degrees":
        form = Form((1, 2, 3), (4, 5, 6), tuple(range(7, 7 + count)), joints, 0)
        header = ",".join(("Frame", *BONES_ROOT, *(f"{name}_dof" for name in joints)))
    else:
        is_bare = robot is not None or bool(numbered) or not joints
        form = Form((0, 1, 2), (3, 4, 5, 6), tuple(range(7, 7 + count)), None if is_bare else joints)
        header = None if is_bare else ",".join((*NAMED_ROOT, *joints))
    values = np.zeros((frames, 7 + count))
    if len(form.turns) == 4:
        values[:, 6] = 1
    columns = motion_of(np.zeros((frames, 3)), np.broadcast_to(np.eye(3), (frames, 3, 3)), np.zeros((frames, count)))
    return _Table(values, form, joints, units, columns, header, _DECIMALS[0], "\n")


def _put(table: _Table, motion: NDArray[np.float64], layout: Layout, slides: NDArray[np.bool_]) -> None:
    """Writes the columns of motion in a layout, y up, into a table."""
    for part in layout:
        values = motion[:, part.start : part.stop]
        if part.kind == "translation":
            _put_places(table, translation_positions(values, (table.columns[0, -3], table.columns[0, -1])))
        elif part.kind == "rotation_6d":
            _put_root(table, values)
        else:
            _put_angles(table, values, slides, [table.joints.index(part.name)])
    if table.form.counter is not None:
        column = table.values[:, table.form.counter]
        column[:] = column[0] + np.arange(len(column))


def _scales(units: Units) -> tuple[float, float]:
    return (1.0, 1.0) if units == "metres_radians" else (100.0, 180 / np.pi)


def _put_places(table: _Table, places: NDArray[np.float64]) -> None:
    x, y, z = places.T
    table.values[:, table.form.places] = _scales(table.units)[0] * np.stack([x, -z, y], axis=1)


def _put_angles(table: _Table, angles: NDArray[np.float64], slides: NDArray[np.bool_], joints: Any) -> None:
    metre, radian = _scales(table.units)
    for column, joint in enumerate(joints):
        table.values[:, table.form.joints[joint]] = angles[:, column] * (metre if slides[joint] else radian)


def _put_root(table: _Table, rotation_6d: NDArray[np.float64]) -> None:
    from scipy.spatial.transform import Rotation

    upright = rotation_6d_to_matrix(rotation_6d)
    matrices = np.stack([upright[:, 0], -upright[:, 2], upright[:, 1]], axis=1)
    turns, columns = Rotation.from_matrix(matrices), list(table.form.turns)
    if len(columns) == 4:
        quaternions = turns.as_quat()
        # A rotation has two quaternions: the first frame's is that nearer to the source's, each next the one nearer by.
        signs = np.sign(np.sum(quaternions[1:] * quaternions[:-1], axis=1))
        first = -1.0 if float(quaternions[0] @ table.values[0, columns]) < 0 else 1.0
        quaternions *= np.cumprod(np.concatenate([[first], np.where(signs < 0, -1.0, 1.0)]))[:, None]
        table.values[:, columns] = quaternions
    else:
        angles = np.unwrap(turns.as_euler("xyz"), axis=0)
        table.values[:, columns] = _scales(table.units)[1] * angles


def _number_form(source: Path, form: Form) -> tuple[int, str]:
    """Returns how many digits a source has behind the point, and its ends of lines."""
    with open_regular(source) as stream:
        lines = [stream.readline(2**20) for _ in range(2)]
    cells = (lines[1] or lines[0]).decode("utf-8", "replace").strip().split(",")
    digits = [len(cell.partition(".")[2].partition("e")[0]) for cell in cells]
    return min(max(max(digits), _DECIMALS[0]), _DECIMALS[1]), "\r\n" if lines[0].endswith(b"\r\n") else "\n"


def _write(content: BinaryIO, table: _Table) -> None:
    formats = [f"%.{table.decimals}f"] * table.values.shape[1]
    if table.form.counter is not None:
        formats[table.form.counter] = "%d"
    text = TextIOWrapper(content, "utf-8", newline="")
    if table.header is not None:
        text.write(table.header + table.end)
    values = np.round(table.values, table.decimals) + 0.0  # no -0.000000
    np.savetxt(text, values, formats, ",", table.end)
    text.flush()
    text.detach()
