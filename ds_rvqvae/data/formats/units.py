"""The unit of length of a BVH file, by how tall its body is."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ds_rvqvae.config.data import to_say
from ds_rvqvae.data.formats.bodies import Tree
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError

UNITS = {
    "metres": 1.0,
    "feet": 0.3048,
    "CMU's unit": 0.0254 / 0.45,
    "inches": 0.0254,
    "centimetres": 0.01,
    "millimetres": 0.001,
}
"""Metres of each; CMU's is that of its ASF files."""
_GROWN, _ABOUT_GROWN, _PERHAPS_GROWN = (1.3997, 2.0005), (1.38, 2.0005), (1.2, 2.3)
"""Metres of a grown person; with room for soles, where one other unit makes a figure of `_ANY_SIZE` at most; and where
none does."""
_ANY_SIZE = (0.255, 3.65)
"""Metres, from a doll of 0.3 whose head has no top in the file to a giant of 3.4."""
_OF_CMU = frozenset({"LHipJoint", "RHipJoint", "LowerBack", "LeftFingerBase", "RightFingerBase", "LThumb", "RThumb"})
"""Joints that only the CMU database's skeletons have together."""
_CMU_HEIGHTS = (1.38, 1.6)
"""Metres: of the bodies in that database, 1.40 to 1.53 m at rest, with room."""

_WAY_ON = f"say how many metres a unit is: {to_say('metres_per_unit', 'N')}"


class Unit(NamedTuple):
    """A file's unit of length, and how it was found."""

    metres: float
    height: float
    """Of the body, in metres."""
    how: str
    """In words, the same for all files of a kind."""
    note: str | None
    """What the user should know: other units are possible."""


def recognise_unit(tree: Tree, way_on: str = _WAY_ON) -> Unit:
    """The unit of a file by how tall its body is; the same for all files of a skeleton.

    Args:
        way_on: what a refusal asks for.

    Raises:
        ClipError: no body, or none that is a grown person's in one unit alone; with the heights.
    """
    size, is_person = tree.size()
    if not is_person:
        raise ClipError(_refusal("it has no body with two arms and two legs", size, way_on))
    heights = {unit: size * metres for unit, metres in UNITS.items()}
    if {joint.name for joint in tree.joints} >= _OF_CMU and _within(heights["CMU's unit"], _CMU_HEIGHTS):
        return Unit(UNITS["CMU's unit"], heights["CMU's unit"], "by the CMU database's joints", None)
    others = {unit: sum(_within(other, _ANY_SIZE) for own, other in heights.items() if own != unit) for unit in UNITS}
    limits = (_PERHAPS_GROWN, _ABOUT_GROWN, _GROWN)
    grown = [unit for unit, height in heights.items() if _within(height, limits[min(others[unit], 2)])]
    if len(grown) != 1:
        raise ClipError(_refusal("its body is no grown person's in any unit", size, way_on))
    unit = grown[0]
    note = None
    if others[unit]:
        note = (
            f"{in_words(UNITS[unit])} is assumed, as bodies are grown persons' then; one of another size has the same "
            f"numbers in another unit: {to_say('metres_per_unit', 'N')} says otherwise"
        )
    return Unit(UNITS[unit], heights[unit], "by the body's height", note)


def check_one_unit(units: Mapping[Path, Unit]) -> None:
    """Compares the units of one skeleton's files.

    Raises:
        UserError: half of them and more have one, in which another may be a body of another size.
    """
    counts = Counter(unit.metres for unit in units.values())
    for usual in (metres for metres, count in counts.items() if 2 * count >= len(units)):
        for file, unit in units.items():
            height = unit.height / unit.metres * usual
            if unit.metres != usual and _within(height, _ANY_SIZE):
                other = next(other for other, own in units.items() if own.metres == usual)
                raise UserError(
                    f"{file}: its unit of length is not known: by its body's height, {in_words(unit.metres)} "
                    f"({unit.height:.2f} m tall), but {in_words(usual)} in other files of its skeleton, such as "
                    f"{other} ({height:.2f} m tall then); {_WAY_ON}, or prepare it by itself"
                )


def in_words(metres: float) -> str:
    """A unit in words, as `1 unit = 1 cm`."""
    return f"1 unit = {metres:.4g} m" if metres >= 1 else f"1 unit = {100 * metres:.4g} cm"


def _within(height: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= height <= limits[1]


def _refusal(reason: str, size: float, way_on: str) -> str:
    heights = ", ".join(f"{size * metres:.2g} m in {unit}" for unit, metres in UNITS.items())
    return f"its unit of length is not known: {reason} (it is {heights} tall); {way_on}"
