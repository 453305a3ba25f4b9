"""Single motion files: opens one of any format, and names the writer of each format."""

from pathlib import Path

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.bvh import writing as bvh
from ds_rvqvae.data.formats.features import FeatureFolderReader
from ds_rvqvae.data.formats.finding import check_regular
from ds_rvqvae.data.formats.joints import writing as joints
from ds_rvqvae.data.formats.readers import READERS, open_reader
from ds_rvqvae.data.formats.robots import csv_writing, npz_writing
from ds_rvqvae.data.formats.smpl import writing as smpl
from ds_rvqvae.data.formats.written import Writer
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import Layout, feature_layout
from ds_rvqvae.motion.rotations import same_rate

BEAT2, BVH, PACKED = "beat2", "bvh", "packed"
"""Keys of two formats, and of the one that holds several clips."""
WRITERS = {
    BEAT2: Writer("a BEAT2 npz", ".npz", False, smpl.write_beat2_file),
    "smpl": Writer("an npz of SMPL's joints", ".npz", False, smpl.write_smpl_file),
    "aist": Writer("an npz of SMPL's joints", ".npz", False, smpl.write_smpl_file),
    "motionx": Writer("a Motion-X file", ".npy", False, smpl.write_motionx_file),
    BVH: Writer("a BVH file", ".bvh", True, bvh.write_bvh_file),
    "robot_csv": Writer("a robot's csv file", ".csv", False, csv_writing.write_robot_csv),
    "robot_npz": Writer("a robot's npz", ".npz", True, npz_writing.write_robot_npz),
    "joints": Writer("a file of joint positions", ".npy", False, joints.write_joints),
}
"""The writers by the keys of their readers; motion of other formats is written as a `.npy` matrix of its columns."""


def open_motion_file(file: Path, config: DataConfig, wanted: Layout | None = None) -> Reader:
    """Returns a reader of one file, whose clips are at `rvqvae.data.fps`.

    Args:
        wanted: the layout that is needed; for columns without a meaning, a `.npy` file is read as a plain matrix.

    Raises:
        ClipError: it is not a regular file, or its frame rate is another one and features are never resampled.
        UserError: the format is unknown, or the file cannot be read.
    """
    check_regular(file)
    if config.format is None and wanted is not None and any(part.kind == "relative_position" for part in wanted):
        config = config.with_values({"format": "joints"})  # flattened positions look like any matrix
    is_bare = wanted is not None and wanted == feature_layout(wanted[-1].stop)
    is_npy = file.suffix.lower() == ".npy"
    is_matrix = is_npy and (is_bare or (config.format is None and not _is_certain(file)))
    # The reader of matrices gives the exact reason if it cannot read one.
    reader = FeatureFolderReader(file, config) if is_matrix else open_reader(file, config)
    if not same_rate(reader.fps, config.fps):
        raise ClipError(f"{reader.fps:g} fps, but {config.fps:g} fps is needed; features are never resampled")
    return reader


def _is_certain(file: Path) -> bool:
    """Returns whether a reader is certain that a file is of its format."""
    return any(reader.certainty and reader.matches(file) for reader in READERS)
