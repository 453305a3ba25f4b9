"""Writes joint positions, `[T, J, 3]`, as HumanML3D's tools read them (`np.load`, float32)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.skeletons import Z_UP_TO_Y_UP
from ds_rvqvae.data.formats.joints.reader import columns_of, joints_layout, read_positions
from ds_rvqvae.data.formats.joints.skeletons import skeleton_of
from ds_rvqvae.data.formats.written import Written, at_rest
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import ClipError, UnfitError, check_finite
from ds_rvqvae.motion.layout import Layout, missing_channels
from ds_rvqvae.motion.rotations import resample, translation_positions
from ds_rvqvae.motion.skeleton import Skeleton

_NO_ROTATIONS = np.empty((0, 6), np.int64)


def write_joints(
    file: Path, motion: NDArray[Any], layout: Layout, fps: float, source: Path | None, config: DataConfig
) -> Written:
    """Writes positions of all joints of `rvqvae.data.skeleton` (`ds_rvqvae.data.formats.written.Write`).

    The file has the unit of length and the up axis of the files that were read. The root's path starts where that of
    the source starts, or at x = z = 0.
    """
    try:
        skeleton = skeleton_of(config)
    except UserError as error:
        raise UnfitError(str(error)) from None
    if skeleton is None:
        raise UnfitError("the tokenizer does not name the joints of its motion (rvqvae.data.skeleton)")
    own = joints_layout(skeleton)
    missing = missing_channels(own, layout)
    if missing is not None:
        raise UnfitError(f"{missing.name} ({missing.kind}) cannot be stored as a joint's position")
    metres = 1.0 if config.metres_per_unit is None else config.metres_per_unit
    turn = Z_UP_TO_Y_UP if config.up_axis == "z" else np.eye(3)
    if source is None:
        columns, source_fps = _rest_columns(len(motion), skeleton), 0.0
    else:
        columns, source_fps = _source_columns(source, skeleton, metres, turn, fps, config)
        if len(columns) != len(motion):
            raise UnfitError(f"the source has {len(columns)} frames at {fps:g} fps, but the motion has {len(motion)}")
    start = (float(columns[0, 0]), float(columns[0, 2]))
    places = {part.name: part for part in own}
    for part in layout:
        values = motion[:, part.start : part.stop].astype(np.float64)
        if part.kind == "translation":
            values = translation_positions(values, start)
        columns[:, places[part.name].start : places[part.name].stop] = values
    found = columns.reshape(len(columns), -1, 3)
    found[:, 1:] += found[:, :1]
    with whole_file(file) as content:
        np.save(content, ((found @ turn) / metres).astype(np.float32), allow_pickle=False)
    is_whole = len(layout) == len(own)
    return Written(source_fps, () if is_whole else at_rest(source is not None))


def _rest_columns(frames: int, skeleton: Skeleton) -> NDArray[np.float64]:
    """Returns the columns of a skeleton at rest, `[T, 3 J]`."""
    places = skeleton.offsets.copy()
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0:
            places[joint] += places[parent]
    places[:, [0, 2]] -= places[0, [0, 2]]
    return columns_of(np.broadcast_to(places, (frames, *places.shape)).copy())


def _source_columns(
    source: Path, skeleton: Skeleton, metres: float, turn: NDArray[np.float64], fps: float, config: DataConfig
) -> tuple[NDArray[np.float64], float]:
    """Returns the columns of a source at a frame rate, metres, y up, and its own rate; raises ClipError."""
    values, said = read_positions(source, skeleton)
    source_fps = config.source_fps or said or config.fps
    columns = columns_of(metres * values @ turn.T)
    check_finite(columns)
    try:
        return resample(columns, _NO_ROTATIONS, source_fps, fps).copy(), source_fps
    except ValueError as error:
        raise ClipError(f"cannot be resampled from {source_fps:g} to {fps:g} fps: {error}") from None
