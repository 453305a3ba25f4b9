"""The meaning of the columns of a robot's csv: where the root is, how it is turned, joints, units.

Published forms:

- LAFAN1 retargeted to Unitree's robots (https://huggingface.co/datasets/unitreerobotics/LAFAN1_Retargeting_Dataset,
  README.md): no header, `root_joint(XYZQXQYQZQW)` and then the joints' angles, 36 columns for the 29 joints of G1, in
  metres and radians, 30 frames per second. The same columns are read by whole_body_tracking's `csv_to_npz.py`
  (https://github.com/HybridRobotics/whole_body_tracking): `motion[:, :3]`, `motion[:, 3:7]` ("convert to wxyz"),
  `motion[:, 7:]`, `--input_fps` 30.
- BONES-SEED (https://nvlabs.github.io/ProtoMotions/getting_started/seed_g1_csv_preparation.html, "CSV Format"): a
  header with `Frame`, `root_translateX/Y/Z` in centimetres, `root_rotateX/Y/Z`, "extrinsic XYZ Euler angles in
  degrees", and `<joint>_dof` in degrees; 120 frames per second.
- Others have a header in which the root's columns end in x, y, z and w, such as `root_pos_x(m)` and `root_rot_w`.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.robots.table import Head
from ds_rvqvae.motion.clip import ClipError

Units = Literal["metres_radians", "centimetres_degrees"]
LAFAN1_FPS, BONES_FPS = 30.0, 120.0
BONES_ROOT = (
    *("root_translateX", "root_translateY", "root_translateZ"),
    *("root_rotateX", "root_rotateY", "root_rotateZ"),
)
NAMED_ROOT = ("root_x", "root_y", "root_z", "root_qx", "root_qy", "root_qz", "root_qw")
"""The header's names of the root that are written where a source has none."""
_COUNTERS = ("frame", "frames", "frame_id", "index", "")
_UNIT = re.compile(r"\s*[(\[](m|cm|rad|deg)[)\]]$", re.IGNORECASE)
_NO_ANGLE = ("vel", "velocity", "acc", "torque", "effort", "tau", "time", "timestamp", "contact")
"""Last words of names of columns that are not joints' angles."""
_FULL_TURN = 2 * np.pi + 0.1
"""Radians: hinges of humanoids turn less, and a motion in degrees has larger numbers."""
_HIGHEST = 5.0
"""Metres: the pelvis of a humanoid is lower, and that of a motion in centimetres has larger numbers."""
_UPRIGHT, _STANDS = 0.5, 0.9
"""Cosines between the robot's own z axis and the world's: below the first it is not upright, above the second it
stands."""


class Form(NamedTuple):
    """The columns of a csv file, by their numbers."""

    places: tuple[int, int, int]
    """x, y and z of the root."""
    turns: tuple[int, ...]
    """x, y, z and w of the root's quaternion, or its Euler angles x, y and z, which turn about fixed axes in turn."""
    joints: tuple[int, ...]
    names: tuple[str, ...] | None
    """The joints' names in the header; None without one."""
    counter: int | None = None
    """The column that counts frames."""
    units: Units | None = None
    """The units that the header gives."""
    has_bones_root: bool = False
    """Whether the root's columns have BONES-SEED's names."""

    @property
    def is_bones(self) -> bool:
        """Whether the header is BONES-SEED's."""
        return self.has_bones_root and self.counter == 0

    @property
    def fps(self) -> float | None:
        """The frame rate of the published data in this form, which no csv file gives itself; None if unknown."""
        if self.names is None:
            return LAFAN1_FPS if len(self.turns) == 4 else None
        return BONES_FPS if self.is_bones else None


def form_of_header(head: Head) -> Form:
    """Returns the form that a header tells; raises ClipError if it is not that of a robot's motion."""
    assert head.names is not None
    plain = [_UNIT.sub("", name) for name in head.names]
    counter = 0 if plain[0].lower() in _COUNTERS else None
    first = 0 if counter is None else 1
    places = _letters(plain, first, 3)
    turns = _letters(plain, first + 3, 4) or _letters(plain, first + 3, 3)
    if places is None or turns is None:
        there = ", ".join(name[:24] for name in plain[first : first + 7])
        raise ClipError(f"its header should begin with the root ({', '.join(NAMED_ROOT)}); it begins with {there}")
    start = first + 3 + len(turns)
    names = tuple(_joint_name(name) for name in plain[start:])
    if not names:
        raise ClipError("its header names no joint after the root")
    if other := next((name for name in names if name.lower().rpartition("_")[2] in _NO_ANGLE), None):
        raise ClipError(f"column {other[:40]} is no joint's angle; leave such columns out")
    twice = next((name for name in names if not name or names.count(name) > 1), None)
    if twice is not None:
        raise ClipError(f"its header has two joints called {twice[:40]}" if twice else "its header has an empty name")
    joints = tuple(range(start, len(plain)))
    units = _units_of(head.names, (*(turns if len(turns) == 3 else ()), *joints), places)
    is_bones = plain[first : first + 6] == list(BONES_ROOT)
    return Form((places[0], places[1], places[2]), turns, joints, names, counter, units, is_bones)


def _letters(names: list[str], first: int, count: int) -> tuple[int, ...] | None:
    """Returns the columns of x, y, z (and w), if `count` names from `first` on end in them and begin alike."""
    some = names[first : first + count]
    if len({name[:-1].lower() for name in some}) != 1 or sorted(name[-1:].lower() for name in some) != sorted(
        "xyzw"[:count]
    ):
        return None
    order = [name[-1].lower() for name in some]
    return tuple(first + order.index(letter) for letter in "xyzw"[:count])


def _joint_name(name: str) -> str:
    return name.removeprefix("dof_").removesuffix("_dof")


def _units_of(names: tuple[str, ...], angles: tuple[int, ...], places: tuple[int, ...]) -> Units | None:
    """Returns the units that stand in brackets behind names of the header; raises ClipError if they are mixed."""
    found = [
        {match[1].lower() if (match := _UNIT.search(names[column])) else "" for column in columns}
        for columns in (places, angles)
    ]
    if found == [{"m"}, {"rad"}]:
        return "metres_radians"
    if found == [{"cm"}, {"deg"}]:
        return "centimetres_degrees"
    if found == [{""}, {""}]:
        return None
    there = ", ".join(sorted(unit for units in found for unit in units if unit)) or "none"
    raise ClipError(f"its header gives the units {there}; metres and radians, or centimetres and degrees are read")


def form_of_numbers(values: NDArray[np.float64], units: Units | None) -> Form:
    """Returns the form of a file without a header.

    Args:
        values: its numbers, `[frames, columns]`.
        units: `rvqvae.data.csv_units`.

    Raises:
        ClipError: the columns are not those of a robot's motion.
    """
    width = values.shape[1]
    if width >= 8 and _are_quaternions(values[:, 3:7]):
        return Form((0, 1, 2), (3, 4, 5, 6), tuple(range(7, width)), None)
    if units == "centimetres_degrees":
        first = 1 if np.array_equal(values[:, 0], values[0, 0] + np.arange(len(values))) and len(values) > 1 else 0
        if width > first + 6:
            places, turns = (first, first + 1, first + 2), (first + 3, first + 4, first + 5)
            return Form(places, turns, tuple(range(first + 6, width)), None, 0 if first else None)
    if width < 8:
        raise ClipError(f"has {width} columns, fewer than the 7 of the root and one of a joint")
    raise ClipError(
        "columns 4 to 7 are not the root's quaternion x, y, z, w (their length is not 1), and no header names others; "
        "--format robot_csv --csv_units centimetres_degrees reads angles about x, y, z there"
    )


def _are_quaternions(values: NDArray[np.float64]) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.square(values).sum(axis=1))
    finite = np.isfinite(lengths)
    return bool(finite.any()) and bool((np.abs(lengths[finite] - 1) < 0.01).mean() > 0.9)


def units_by_numbers(values: NDArray[np.float64], form: Form) -> Units | None:
    """Returns the units that a motion's numbers tell: the root's height and the largest angle; None if they do not.

    They must agree: angles beyond a full turn in radians and a root higher than 5 m mean degrees and centimetres,
    neither means radians and metres.
    """
    heights, angles = values[:, form.places[2]], values[:, form.joints]
    heights, angles = heights[np.isfinite(heights)], angles[np.isfinite(angles)]
    if not heights.size or not angles.size:
        return None
    is_high, is_far = abs(float(np.median(heights))) > _HIGHEST, float(np.quantile(np.abs(angles), 0.999)) > _FULL_TURN
    if is_high != is_far:
        return None
    return "centimetres_degrees" if is_high else "metres_radians"


def has_w_first(values: NDArray[np.float64], form: Form) -> bool:
    """Returns whether the quaternions of a file without a header seem to be w, x, y, z.

    As x, y, z, w they would not hold the robot upright in most frames, and as w, x, y, z they do. If the robot faces
    backwards (over 120 degrees from +x), both hold it upright, and nothing can be told.
    """
    if form.names is not None or len(form.turns) != 4:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        a, b, c, _ = values[:, form.turns].T
        as_published, as_w_first = 1 - 2 * (a * a + b * b), 1 - 2 * (b * b + c * c)
        return bool(np.nanmedian(as_published) < _UPRIGHT and np.nanmedian(as_w_first) > _STANDS)


def said_form(form: Form, file: Path) -> str:
    """Returns how a file's columns are read, for a report."""
    joints = f"{len(form.joints)} joints"
    if form.names is None:
        root = "x, y, z, qx, qy, qz, qw" if len(form.turns) == 4 else "x, y, z and angles about x, y, z"
        return f"no header: the root ({root}), then {joints}, as in {file.name}"
    root = "a quaternion" if len(form.turns) == 4 else "angles about the fixed axes x, y, z in turn"
    return f"a header: the root, turned by {root}, then {joints}, as in {file.name}"
