"""The reader of humanoid robots' motion as csv, one clip per file (`ds_rvqvae.data.formats.robots.forms`)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.base import FilesReader, files_below
from ds_rvqvae.data.formats.robots.columns import (
    are_slides,
    limit_notes,
    motion_of,
    named_joints,
    robot_layout,
    robot_of,
)
from ds_rvqvae.data.formats.robots.forms import (
    BONES_FPS,
    LAFAN1_FPS,
    NAMED_ROOT,
    Form,
    Units,
    form_of_header,
    form_of_numbers,
    has_w_first,
    said_form,
    units_by_numbers,
)
from ds_rvqvae.data.formats.robots.table import read_head, read_numbers
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.skeleton import matrices_of_quaternions

_LOOKED_AT = 20
"""Files, spread over all, that decide on units."""
_LOOKED_AT_FRAMES = 2000
_UNIT_WORDS = {"metres_radians": "metres and radians", "centimetres_degrees": "centimetres and degrees"}


class CsvMotion(NamedTuple):
    """The numbers of a csv file and what they mean."""

    values: NDArray[np.float64]
    """float64 `[frames, columns]`, as in the file."""
    form: Form


class RobotCsvReader(FilesReader):
    """Reader of a folder of csv files at any depth, or of one such file.

    Columns: the base link's rotation as 6D, one angle per joint (radians, or metres of a slide), and the root's
    position. z is up in the files; the root is turned by -90 degrees about x, so that y is up as in all motion here.
    Joints have the names of the header, else those of `rvqvae.data.robot` in its order, else `joint_0`, `joint_1`, …
    Units that are recognised from all files become `csv_units` of `config`, so that a store and a tokenizer have them.
    """

    format = "robot csv"
    key = "robot_csv"
    suffix = ".csv"

    def __init__(self, path: Path, config: DataConfig) -> None:
        super().__init__(path, config)
        self._robot = robot_of(config)
        self._refused: UserError | None = None
        """Why the files cannot be read; kept until they are, because another reader may be chosen."""
        try:
            self._look()
        except UserError as error:
            self._refused = error

    @classmethod
    def matches(cls, path: Path) -> bool:
        files = [path] if path.is_file() else list(cls.files_of(path).values())
        return any(True for _ in _motions(_spread(files), None))

    @classmethod
    def matches_if_asked(cls, path: Path) -> bool:
        return path.suffix.lower() == ".csv" if path.is_file() else bool(cls.files_of(path))

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        return False

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        return files_below(folder, (".csv",))

    def check(self, names: Sequence[str]) -> None:
        if self._refused is not None:
            raise self._refused

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        if self._refused is not None:
            raise ClipError(str(self._refused).removeprefix(f"{self.path}: "))
        values, form = read_motion(file, self.config)
        units, notes = units_of(form, values, self.config)
        fps = self.config.source_fps or form.fps
        if fps is None:
            raise ClipError(f"a csv file gives no frame rate; give {to_say('source_fps', 'N')}")
        if has_w_first(values, form):
            notes = (*notes, "the robot is not upright in most frames: do its quaternions have w first?")
        joints = named_joints(self._robot, len(form.joints), form.names)
        places, matrices, angles, bad = in_metres(values, form, units, are_slides(self._robot, joints))
        if bad:
            notes = (*notes, f"the root's quaternion has not the length 1 in {bad} frames, which are left out")
        motion, layout = motion_of(places, matrices, angles), robot_layout(self._robot, joints)
        notes = (*notes, *limit_notes(self._robot, joints, angles))
        own = values if form.counter is None else values[:, form.counter + 1 :]
        empty = np.asarray(~own.any(axis=1))
        skeleton = self.config.robot if isinstance(self.config.robot, dict) else None
        return Take(name, motion, fps, layout, split, empty, has_positions=True, skeleton=skeleton, notes=notes)

    def _look(self) -> None:
        """Finds the units, and says how the files are read; raises UserError if that is not known."""
        found = list(_motions(_spread(list(self._files.values())), self.config))
        if not found:
            return  # no file can be read, which the packing reports
        self.readings += (said_form(found[0][1].form, found[0][0]),)
        if self._robot is None:
            self.readings += ("no kinematics, as rvqvae.data.robot names no MJCF or URDF",)
        self._refuse_w_first(found)
        self._take_units(found)
        self._say_rate([motion.form for _, motion in found])

    def _refuse_w_first(self, found: list[tuple[Path, CsvMotion]]) -> None:
        turned = [file for file, (values, form) in found if has_w_first(values, form)]
        if 3 * len(turned) > len(found):
            root = [*NAMED_ROOT[:3], NAMED_ROOT[6], *NAMED_ROOT[3:6]]
            raise UserError(
                f"{self.path}: the root's quaternions seem to have w first, as in {turned[0].name} and {len(turned)} "
                f"of {len(found)} files: x, y, z, w, which is read without a header, would not hold the robot upright; "
                f"add a header {','.join(root)},… with a name per joint (or {','.join(NAMED_ROOT)},… if it is right)"
            )

    def _take_units(self, found: list[tuple[Path, CsvMotion]]) -> None:
        if self.config.csv_units is not None:
            return
        told: dict[Units | None, list[Path]] = {}
        for file, (values, form) in found:
            told.setdefault(form.units or units_by_numbers(values, form), []).append(file)
        flags = " or ".join(to_say("csv_units", units) for units in _UNIT_WORDS)
        known = [units for units in told if units is not None]
        if len(known) > 1:
            where = ", ".join(f"{_UNIT_WORDS[units]} as in {told[units][0].name}" for units in known)
            raise UserError(f"{self.path}: the files have different units: {where}; read each kind from its own folder")
        if not known:
            file, (values, form) = next(one for one in found if one[0] == told[None][0])
            height = np.nanmedian(values[:, form.places[2]])
            largest = np.nanmax(np.abs(values[:, form.joints]))
            raise UserError(
                f"{self.path}: the units are not known: in {file.name} the root is at the height {height:.4g} and the "
                f"largest angle is {largest:.4g}; give {flags}"
            )
        units = known[0]
        self.config = self.config.with_values({"csv_units": units})
        by = "header" if found[0][1].form.units else "root's height and the size of the angles"
        self.readings += (f"{_UNIT_WORDS[units]}, by the {by} ({len(told[units])} files)",)

    def _say_rate(self, forms: Sequence[Form]) -> None:
        if self.config.source_fps is not None:
            return
        rates = sorted({form.fps for form in forms if form.fps is not None})
        if not rates:
            raise UserError(
                f"{self.path}: csv files give no frame rate, and this header is that of no known data set; give "
                f"{to_say('source_fps', 'N')}"
            )
        whose = {LAFAN1_FPS: "LAFAN1's robots have without a header", BONES_FPS: "BONES-SEED has with this header"}
        said = ", ".join(f"{rate:g} fps, as {whose[rate]}" for rate in rates)
        self.notes += (
            f"no csv file gives its frame rate: {said}, is assumed; {to_say('source_fps', 'N')} sets another",
        )


def read_motion(file: Path, config: DataConfig | None, most: int | None = None) -> CsvMotion:
    """Reads a csv file, or its first `most` frames; raises ClipError if it is not a robot's motion."""
    head = read_head(file)
    form = None if head.names is None else form_of_header(head)
    values = read_numbers(file, head, most)
    return CsvMotion(values, form or form_of_numbers(values, None if config is None else config.csv_units))


def in_metres(
    values: NDArray[np.float64], form: Form, units: Units, slides: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    """Converts the numbers of a file.

    Args:
        slides: bool `[joints]`, whether each joint slides.

    Returns:
        The root's positions `[frames, 3]` in metres and its rotations `[frames, 3, 3]`, z up as in the file, the
        joints' angles `[frames, joints]` in radians or metres, and in how many frames the quaternion has not the length
        1; the rotation of these frames is NaN.
    """
    metres, radians = (1.0, 1.0) if units == "metres_radians" else (0.01, np.pi / 180)
    bad = 0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if len(form.turns) == 4:
            x, y, z, w = values[:, form.turns].T
            lengths = np.sqrt(x * x + y * y + z * z + w * w)
            wrong = np.abs(lengths - 1) > 0.01
            bad = int(wrong.sum())
            lengths[wrong] = np.nan
            matrices = matrices_of_quaternions(np.stack([w, x, y, z], axis=1) / lengths[:, None])
        else:
            matrices = _fixed_axes(values[:, form.turns] * radians)
        angles = np.where(slides, metres, radians) * values[:, form.joints]
        return metres * values[:, form.places], matrices, angles, bad


def _fixed_axes(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns rotations `[frames, 3, 3]` about the fixed axes x, y, z, one after the other, by angles in radians."""
    result = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    for axis in range(3):
        turn = np.zeros((len(angles), 3, 3))
        one, two = (axis + 1) % 3, (axis + 2) % 3
        cosine, sine = np.cos(angles[:, axis]), np.sin(angles[:, axis])
        turn[:, axis, axis] = 1
        turn[:, one, one] = turn[:, two, two] = cosine
        turn[:, two, one], turn[:, one, two] = sine, -sine
        result = turn @ result
    return result


def units_of(form: Form, values: NDArray[np.float64], config: DataConfig) -> tuple[Units, tuple[str, ...]]:
    """Returns the units of a file, and notes; raises ClipError if its header gives others than the settings."""
    told = units_by_numbers(values, form)
    asked = config.csv_units or form.units or told
    if asked is None:
        raise ClipError(f"its units are not known; give {to_say('csv_units', 'UNITS')}")
    if form.units not in (None, asked):
        assert form.units is not None
        raise ClipError(f"its header gives {_UNIT_WORDS[form.units]}, but rvqvae.data.csv_units is {asked}")
    if told in (None, asked):
        return asked, ()
    assert told is not None
    return asked, (f"its numbers look like {_UNIT_WORDS[told]}, but rvqvae.data.csv_units is {asked}",)


def _spread(files: list[Path]) -> list[Path]:
    return files[:: -(-len(files) // _LOOKED_AT) or 1]


def _motions(files: Iterable[Path], config: DataConfig | None) -> Iterator[tuple[Path, CsvMotion]]:
    """Yields the beginnings of those files that can be read."""
    for file in files:
        with suppress(ClipError):
            yield file, read_motion(file, config, _LOOKED_AT_FRAMES)
