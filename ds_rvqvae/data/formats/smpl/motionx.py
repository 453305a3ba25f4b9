"""Motion-X: SMPL-X motion with facial expressions, 322 columns in `.npy` files.

Source: J. Lin et al., "Motion-X: A Large-scale 3D Expressive Whole-body Human Motion Dataset", NeurIPS 2023;
https://github.com/IDEA-Research/Motion-X (`README.md`): `motion[:, :3]` is `root_orient`, `3:3+63` `pose_body`,
`66:66+90` `pose_hand`, `66+90:66+93` `pose_jaw`, `159:159+50` `face_expr`, `209:209+100` `face_shape`, `309:309+3`
`trans`, `312:` `betas`; "All motions have been unified in 30 fps". The clips are in `motion_data/smplx_322/`, the lists
of the splits are `datasets/train.txt`, `val.txt` and `test.txt` with lines such as `humanml/M007482`. The files in
`face_motion_data/` have 153 columns of the face, which its `mocap-dataset-process/face_motion_augmentation.py` puts
into the clips; they are not clips themselves.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import FilesReader, files_below, load_npy, matrix, npy_header
from ds_rvqvae.data.formats.finding import is_statistics
from ds_rvqvae.data.formats.smpl.fields import Field, Fields, empty_frames
from ds_rvqvae.data.formats.smpl.forms import layout_of, motion_of
from ds_rvqvae.data.formats.smpl.poses import given_skeleton, said_figure, turn_root
from ds_rvqvae.data.formats.split_lists import SplitLists
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import SMPLX_JOINTS
from ds_rvqvae.motion.rotations import same_rate

COLUMNS = {
    "root_orient": 3,
    "pose_body": 63,
    "pose_hand": 90,
    "pose_jaw": 3,
    "face_expr": 50,
    "face_shape": 100,
    "trans": 3,
    "betas": 10,
}
"""Names and widths of the columns, in order."""
WIDTH = sum(COLUMNS.values())
FPS = 30.0
JOINTS = tuple(name for name in SMPLX_JOINTS if name not in ("left_eye", "right_eye"))
FIELDS = Fields(
    JOINTS,
    (
        Field("root_orient", 0, 1, "axis_angle"),
        Field("pose_body", 1, 21, "axis_angle"),
        Field("pose_jaw", 22, 1, "axis_angle"),
        Field("pose_hand", 23, 30, "axis_angle"),
    ),
    "trans",
    expressions="face_expr",
)
_CLIPS, _FACES = "motion_data/smplx_322", "face_motion_data"
_LOOKED_AT = 16


class MotionXReader(FilesReader):
    """Motion-X: its folder, the one above it, any folder of `.npy` files of 322 columns, or one such file.

    53 joints (SMPL-X's without the eyes) as 6D, the root's translation, and 50 expressions. The shapes of face and body
    do not move, and are not read; `ds_rvqvae.data.formats.smpl.writing` takes them from the source.
    """

    format = "Motion-X"
    key = "motionx"
    suffix = ".npy"
    has_body_parts = True
    has_up_axis = True
    certainty = 1

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.skeleton = given_skeleton(config)
        super().__init__(path, config)

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() == ".npy" and _is_motion(path)
        found = list(islice((_is_motion(file) for file in cls.files_of(_folders(path)[0]).values()), _LOOKED_AT))
        return 2 * sum(found) > len(found)

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        return False

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        files = files_below(folder, (".npy",))
        return {
            name: file for name, file in files.items() if _FACES not in name.split("/")[:-1] and not is_statistics(file)
        }

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        folders = _folders(self.path)
        self._folder = folders[0]
        files = self.files_of(self._folder)
        return files, self._lists_of(files, folders, self.path.parent if len(folders) == 1 else None)

    def why_passed_over(self, file: Path) -> str:
        if file.suffix.lower() == ".npy":
            return "of the face alone" if _FACES in file.parts else "not in the folder of clips"
        return super().why_passed_over(file)

    def check(self, names: Sequence[str]) -> None:
        self.readings += (f"{WIDTH} columns are Motion-X's, {FPS:g} fps; rvqvae.data.format features reads them raw",)
        self.readings += said_figure(self.skeleton)

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        arrays = split_columns(matrix(load_npy(file), "the matrix", WIDTH))
        motion = motion_of(arrays, FIELDS)
        if self.config.up_axis == "z":
            turn_root(motion, FIELDS)
        fps, notes = rate_of_file(self.config)
        expressions = COLUMNS["face_expr"]
        return Take(
            name,
            motion,
            fps,
            layout_of(FIELDS, expressions),
            split,
            empty_frames(arrays, FIELDS),
            has_positions=True,
            skeleton=self.skeleton,
            notes=notes,
        )


def rate_of_file(config: DataConfig) -> tuple[float, tuple[str, ...]]:
    """Returns the frame rate of Motion-X files, and a note if it is not Motion-X's own."""
    if config.source_fps is None or same_rate(config.source_fps, FPS):
        return config.source_fps or FPS, ()
    words = f"rvqvae.data.source_fps {config.source_fps:g} is used"
    return config.source_fps, (f"Motion-X's {WIDTH} columns have {FPS:g} fps, but {words}",)


def split_columns(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Returns the named parts of a matrix `[frames, 322]`, in order, as views."""
    stops = np.cumsum(list(COLUMNS.values()))
    return dict(zip(COLUMNS, np.split(values, stops[:-1], axis=1), strict=True))


def _folders(path: Path) -> list[Path]:
    """Returns the folders of the clips and of the data set, either of which may be `path`; else `path` alone."""
    whole = path.absolute()
    for root in (whole, *list(whole.parents)[:2]):
        clips = root / _CLIPS
        if whole in (root, clips.parent, clips) and clips.is_dir():
            return [clips, root]
    return [path]


def _is_motion(file: Path) -> bool:
    try:
        header = npy_header(file)
    except ClipError:
        return False
    return header.is_matrix and header.shape[1] == WIDTH
