"""SMPL-X, SMPL-H and SMPL motion, one npz per clip, as in AMASS, AIST++ and similar data sets.

Sources: N. Mahmood et al., "AMASS: Archive of Motion Capture as Surface Shapes", ICCV 2019; G. Pavlakos et al.,
"Expressive Body Capture: 3D Hands, Face, and Body from a Single Image", CVPR 2019 (SMPL-X); J. Romero et al.,
"Embodied Hands", SIGGRAPH Asia 2017 (SMPL-H).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.base import (
    FilesReader,
    files_below,
    load_npz,
    load_npz_and_keys,
    missing_key,
    npz_keys,
    npz_samples,
    said_rate,
)
from ds_rvqvae.data.formats.npz import FPS_KEYS, frame_rate, other_rate, rate_of
from ds_rvqvae.data.formats.smpl.fields import (
    AIST_POSES,
    AIST_SCALING,
    AIST_TRANS,
    EXPRESSIONS,
    FORM_WORDS,
    MOTION_KEYS,
    POSES,
    TRANS,
    TRANS_KEYS,
    USE_PCA,
    Fields,
    Form,
    empty_frames,
    find_fields,
    is_motion,
)
from ds_rvqvae.data.formats.smpl.forms import layout_of, motion_of
from ds_rvqvae.data.formats.split_lists import SplitLists
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import SMPL_JOINTS, SMPLH_JOINTS, SMPLX_JOINTS, SMPLX_PARENTS
from ds_rvqvae.motion.skeleton import skeleton_from_json

_FPS_KEYS_BEFORE = FPS_KEYS[:2]
"""The keys that versions up to 0.2 knew."""
BEAT2_FPS = 30.0
"""Assumed for a file with facial expressions that gives no frame rate."""
AIST_FPS = 60.0
"""Assumed for a file with AIST++'s keys that gives no frame rate."""
_WIDTHS_BEFORE = (3 * len(SMPLX_JOINTS), 3 * len(SMPLH_JOINTS))
"""The widths of `poses` that versions up to 0.2 knew."""
_SHAPE_FILES = ("shape.npz", "stagei.npz")
"""Ends of the names of AMASS's files with a subject's shape, which hold no motion."""


class SmplReader(FilesReader):
    """Reader of npz files with the rotations and the translation of SMPL's joints: a folder, or one file.

    Units are metres and radians. `poses` has 165 columns of axis-angle rotations (SMPL-X, 55 joints), 156 (SMPL-H, 52),
    72 (SMPL, 24) or 66 (the body, 22); or the joints have keys of their own, such as `global_orient` and `body_pose`
    (`ds_rvqvae.data.formats.smpl.fields`). Matrices and 6D are told apart by their width. Of AIST++, `smpl_trans` is
    divided by `smpl_scaling`, and 60 frames per second are assumed (`ds_rvqvae.data.formats.smpl.aist`). Facial
    expressions are not read.
    """

    format = "SMPL-X, SMPL-H or SMPL npz"
    key = "smpl"
    suffix = ".npz"
    has_body_parts = True
    has_up_axis = True

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.skeleton = given_skeleton(config)
        super().__init__(path, config)

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() == ".npz" and is_motion(npz_keys(path))
        return any(is_motion(keys) for keys in npz_samples(cls.files_of(path).values()))

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        files = files_below(folder, (".npz",))
        return {name: file for name, file in files.items() if not _holds_no_motion(file)}

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() == ".npz" and POSES in npz_keys(path)
        return any(POSES in keys for keys in npz_samples(cls._files_before(path).values()))

    @classmethod
    def _files_before(cls, folder: Path) -> dict[str, Path]:
        files = files_below(folder, (".npz",))
        return {name: file for name, file in files.items() if not file.name.endswith(_SHAPE_FILES)}

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        if self.config.reading_version > 1:
            return super()._find()
        files = self._files_before(self.path)
        return files, self._lists_of(files, [self.path], self.path.parent)

    def why_passed_over(self, file: Path) -> str:
        return "without poses, so without motion" if file.name.endswith(_SHAPE_FILES) else super().why_passed_over(file)

    def check(self, names: Sequence[str]) -> None:
        self.readings += said_figure(self.skeleton)
        file = next((self._files[name] for name in names if name in self._files), None)
        if file is not None and self.config.reading_version > 1:
            with suppress(ClipError):
                self.readings += _said_keys(npz_keys(file))

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        arrays, keys, fps, fields, notes = load_fields(file, self.config)
        motion = motion_of(arrays, fields)
        if self.config.up_axis == "z":
            turn_upright(motion)
        if self.config.format is None and self.config.reading_version > 1 and EXPRESSIONS in keys:
            notes += ("its facial expressions are not read; set rvqvae.data.format to beat2 to read them",)
        empty = empty_frames(arrays, fields)
        layout = layout_of(fields)
        return Take(name, motion, fps, layout, split, empty, has_positions=True, skeleton=self.skeleton, notes=notes)


def given_skeleton(config: DataConfig) -> dict[str, Any] | None:
    """Returns `rvqvae.data.skeleton` if it has SMPL's joints of the body with SMPL's parents, and None without one.

    Raises:
        UserError: it is another skeleton.
    """
    if config.skeleton is None:
        return None
    content = config.skeleton
    assert isinstance(content, dict), "`open_reader` puts the content in place of the file's name"
    try:
        skeleton = skeleton_from_json(content, "rvqvae.data.skeleton")
    except ClipError as error:
        raise UserError(f"rvqvae.data.skeleton: {error}") from None
    names = skeleton.joint_names
    for joint, parent in zip(SMPLX_JOINTS[:22], SMPLX_PARENTS[:22], strict=True):
        if joint not in names:
            raise UserError(f"rvqvae.data.skeleton: no joint is called {joint}; SMPL's are {', '.join(SMPL_JOINTS)}")
        above = skeleton.parents[names.index(joint)]
        if (names[above] if above >= 0 else None) != (SMPLX_JOINTS[parent] if parent >= 0 else None):
            raise UserError(f"rvqvae.data.skeleton: {joint} has another parent than SMPL's {SMPLX_JOINTS[parent]}")
    return content


def said_figure(skeleton: dict[str, Any] | None) -> tuple[str, ...]:
    """Returns which bone lengths the joints' positions are computed with, for a report."""
    if skeleton is not None:
        return ("joints' positions: by the bone lengths of rvqvae.data.skeleton",)
    return ("joints' positions: by the built-in figure of 1.75 m; rvqvae.data.skeleton gives other bone lengths",)


def _said_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Returns how files with these keys are read, beside files of AMASS's kind."""
    there = ", ".join(key for key in keys if key in MOTION_KEYS and key not in (POSES, *TRANS_KEYS))
    if POSES in keys:
        return (f"{POSES} is read; {there} hold its joints again",) if there else ()
    if AIST_POSES in keys:
        return (f"{AIST_TRANS} is divided by {AIST_SCALING}, as AIST++'s own code does",)
    return (f"{there} are read, each in the form that its width tells",)


def _holds_no_motion(file: Path) -> bool:
    """Returns whether a file is one of a subject's shape, by its name and its keys."""
    if file.name.endswith(_SHAPE_FILES):
        with suppress(ClipError):
            return not is_motion(npz_keys(file))
    return False


class Loaded(NamedTuple):
    """Some arrays of a clip."""

    arrays: dict[str, NDArray[Any]]
    keys: list[str]
    """All keys of the file."""
    fps: float
    """Frames per second."""
    notes: tuple[str, ...]


def load_motion(file: Path, required: Sequence[str], config: DataConfig) -> Loaded:
    """Reads the required arrays of a clip and its frame rate.

    The rate is `rvqvae.data.source_fps`, else the one in the file, else BEAT2's if the file has facial expressions.

    Raises:
        ClipError: the file cannot be read, lacks one of the keys, or has no frame rate.
    """
    if config.source_fps is not None:
        return Loaded(
            *load_npz_and_keys(file, required), config.source_fps, other_rate(said_rate(file), config.source_fps)
        )
    before = config.reading_version == 1
    known = _FPS_KEYS_BEFORE if before else FPS_KEYS
    arrays, keys = load_npz_and_keys(file, required, known)
    assumed = None if before else _assumed(keys)
    if not any(key in arrays for key in known) and EXPRESSIONS not in keys and assumed is None:
        missing = missing_key(keys, f"{', '.join(known[:-1])} or {known[-1]}")
        raise ClipError(missing if before else f"{missing}; give {to_say('source_fps', 'N')}")
    if not before:
        said = rate_of(arrays)
        if said is not None or assumed is None:
            return Loaded(arrays, keys, fps_of(arrays), ())
        fps, whose = assumed
        another = to_say("source_fps", "N")
        note = f"the file gives no frame rate: {whose} {fps:g} fps is assumed; {another} sets another"
        return Loaded(arrays, keys, fps, (note,))
    fps = next((frame_rate(arrays[key], key) for key in known if key in arrays), BEAT2_FPS)
    return Loaded(arrays, keys, fps, _differs_now(file, fps))


def _assumed(keys: Sequence[str]) -> tuple[float, str] | None:
    """Returns the frame rate of a published data set with these keys, and its name; None for other keys."""
    if EXPRESSIONS in keys:
        return BEAT2_FPS, "BEAT2's"
    return (AIST_FPS, "AIST++'s") if AIST_POSES in keys and POSES not in keys else None


class LoadedFields(NamedTuple):
    """The motion of a clip as it is in its file."""

    arrays: dict[str, NDArray[Any]]
    keys: list[str]
    fps: float
    fields: Fields
    notes: tuple[str, ...]


def load_fields(file: Path, config: DataConfig) -> LoadedFields:
    """Reads the motion of a clip, its frame rate, and where and how the file has it; raises ClipError."""
    keys = npz_keys(file)
    if config.reading_version == 1 or not is_motion(keys):
        wanted: Sequence[str] = (POSES, TRANS)
    else:
        wanted = [key for key in (*MOTION_KEYS, USE_PCA) if key in keys]
    arrays, keys, fps, notes = load_motion(file, wanted, config)
    fields = find_fields(arrays)
    if config.reading_version == 1 and arrays[POSES].shape[1:] not in [(width,) for width in _WIDTHS_BEFORE]:
        raise ClipError(f"poses has shape {list(arrays[POSES].shape)}, not [frames, 165 or 156]")
    return LoadedFields(arrays, keys, fps, fields, (*notes, *_said_forms(fields), *_differing(arrays, fields)))


def _said_forms(fields: Fields) -> tuple[str, ...]:
    """Returns a note per form other than axis times angle."""
    forms: dict[Form, list[str]] = {}
    for field in fields.rotations:
        forms.setdefault(field.form, []).append(field.key)
    return tuple(
        f"{', '.join(keys)}: {FORM_WORDS[form]}, by the width" for form, keys in forms.items() if form != "axis_angle"
    )


def _differing(arrays: Mapping[str, NDArray[Any]], fields: Fields) -> tuple[str, ...]:
    """Returns a note if keys beside `poses` hold other rotations of the same joints."""
    whole = fields.rotations[0]
    differing = []
    for copy in fields.copies:
        every = arrays[whole.key].reshape(len(arrays[whole.key]), whole.joints, -1)
        there = every[:, copy.first : copy.first + copy.joints].reshape(len(every), -1)
        own = arrays[copy.key].reshape(len(arrays[copy.key]), -1)
        if there.shape != own.shape or not np.allclose(there, own, atol=1e-4, equal_nan=True):
            differing.append(copy.key)
    return (f"{whole.key} is read, and {', '.join(differing)} beside it differ",) if differing else ()


def _differs_now(file: Path, fps: float) -> tuple[str, ...]:
    """Returns a note if the file's frame rate is another one by today's rules."""
    try:
        now = rate_of(load_npz(file, (), FPS_KEYS)) or fps
        words = f"{now:g}"
    except ClipError:
        now, words = 0.0, "two rates or none"
    if now == fps:
        return ()
    return (
        f"read as versions up to 0.2 did: {fps:g} fps, but its keys say {words}; prepare again with "
        "reading_version 2 to use them",
    )


def fps_of(arrays: Mapping[str, NDArray[Any]]) -> float:
    """Returns the frame rate in a clip's arrays, or BEAT2's if they have none; raises ClipError."""
    return rate_of(arrays) or BEAT2_FPS


def turns_z(config: DataConfig) -> bool:
    """Returns whether BEAT2 files are turned so that y points up; versions up to 0.2 turned only other SMPL files."""
    return config.up_axis == "z" and config.reading_version > 1


def turn_upright(motion: NDArray[np.floating[Any]]) -> None:
    """Turns the root, in the first six and the last three columns, by -90 degrees about x: z up becomes y up."""
    motion[:, 3:6] = np.cross(motion[:, :3], motion[:, 3:6])
    y = motion[:, -2].copy()
    motion[:, -2], motion[:, -1] = motion[:, -1], -y


def turn_root(motion: NDArray[np.floating[Any]], fields: Fields) -> None:
    """Works like `turn_upright` on motion that has other columns after the translation."""
    turn_upright(motion[:, : 6 * len(fields.joints) + 3])
