"""The unit of length from the height of a body."""

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.bodies import Tree, bones_of
from ds_rvqvae.data.formats.bvh.file import Joint, read_bvh
from ds_rvqvae.data.formats.bvh.reader import BvhReader
from ds_rvqvae.data.formats.bvh.skeletons import UNITS, recognise_unit
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from tests.data.formats.bvh_files import Part, body, limb, write_body


def recognised(parts, height, metres, units=169.0):
    """Returns the unit found for a body, in metres, and whether a note says so; or None if the body is refused."""
    scale = height / metres / units
    rows: dict[str, int] = {}
    joints = []
    for part in parts:
        rows[part.name] = len(joints)
        offset = tuple(scale * value for value in part.offset)
        axes = ("Zrotation", "Xrotation", "Yrotation") if part.name and part.channels else ()
        joints.append(Joint(part.name, rows[part.parent] if joints else -1, offset, axes))
    try:
        unit = recognise_unit(Tree(joints, bones_of(joints)))
    except ClipError as error:
        assert "its unit of length is not known" in str(error) and "tall); set the metres per unit" in str(error)
        assert "--metres_per_unit N (rvqvae.data.metres_per_unit)" in str(error)
        return None
    assert unit.height == pytest.approx(height * unit.metres / metres)
    return unit.metres, unit.note is not None


def waist() -> list[Part]:
    """A body with legs and chest both attached to the waist."""
    new = {"Hips": {"parent": "Waist", "offset": (0, -6, 0)}, "Spine": {"parent": "Waist"}}
    return [Part("Waist", "", (0, 100, 0), 6), *(part._replace(**new.get(part.name, {})) for part in body())]


def torso() -> list[Part]:
    """A body with arms, legs and head attached to one joint; the path to a hand is the longest."""
    parts = [part for part in body("Torso") if part.name not in ("Spine", "Chest")]
    return [
        part._replace(parent="Torso", offset=(part.offset[0], part.offset[1] + 37, part.offset[2]))
        if part.parent == "Chest"
        else part
        for part in parts
    ]


@pytest.mark.parametrize(("parts", "units"), [(waist(), 175.0), (torso(), 169.0)], ids=["waist", "torso"])
def test_bodies_of_other_builds_are_measured(parts, units):
    assert recognised(parts, 1.7, 0.01, units) == (0.01, False)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("height", np.linspace(1.4, 2.0, 7))
def test_a_grown_body_is_recognised_in_every_unit(unit, height):
    found = recognised(body(), height, UNITS[unit])
    assert found is not None and found[0] == UNITS[unit]
    if unit == "millimetres" or (unit == "centimetres" and height > 1.44):
        assert not found[1]  # nothing else has these numbers


@pytest.mark.parametrize("unit", UNITS)
def test_a_body_of_any_size_is_read_rightly_or_refused_or_its_unit_is_said(unit):
    metres = UNITS[unit]
    outcomes = set()
    for height in np.arange(0.3, 3.4001, 0.02):
        found = recognised(body(), height, metres)
        if found is None or found[0] == metres:
            outcomes.add("refused" if found is None else "right")
            continue
        others = [height / metres * other for other in UNITS.values() if other != metres]
        assert any(1.3999 <= other <= 2.0001 for other in others) and found[1], height
        outcomes.add("said")
    assert outcomes >= {"refused", "right"}


def test_a_size_that_is_measured_small_is_still_said():
    """A head without a top is measured up to its joint: a figure of 0.3 m as one of 0.27 m, which in feet is 1.46 m."""
    parts = [part for part in body() if part.name or part.parent != "Head"]
    found = recognised(parts, 0.27, UNITS["CMU's unit"], units=151.0)
    assert found == (UNITS["feet"], True)
    assert recognised(body(), 3.6, UNITS["inches"]) == (UNITS["centimetres"], True)


def test_a_head_ends_at_its_top_whatever_end_site_hangs_on_that(tmp_path):
    """Mixamo's HeadTop_End has channels, and its own End Site: at the same place, or as long as a bone."""
    for end in ((0, 0, 0), (0, 18, 0)):
        parts = [part for part in body() if part.name or part.parent != "Head"]
        parts += limb(["HeadTop_End"], "Head", (0, 18, 0), end)
        assert recognised(parts, 1.4, 0.0254) == (0.0254, True)
        file = write_body(tmp_path / "one.bvh", parts)
        assert recognise_unit(Tree(read_bvh(file).joints, bones_of(read_bvh(file).joints))).height == pytest.approx(
            1.69
        )


def test_props_and_what_lies_far_away_do_not_count():
    more = [
        *limb(["Sword", "Blade"], "RightForeArm", (0, 100, 0), (0, 400, 0)),
        *limb(["Hat"], "Head", (0, 60, 0)),
        Part("", "LeftFoot", (0, -900, 0)),
    ]
    for parts in (body(), [*body(), *more], [Part("Root", "", (0, -500, 40), 6), *body("Hips", "Root")]):
        assert recognised(parts, 1.7, 0.01) == (0.01, False)


def test_a_rest_pose_in_which_bones_point_anywhere_is_measured_by_its_bones():
    axes = {"Left": (1, 0, 0), "Right": (-1, 0, 0)}
    parts = []
    for part in body():
        length = float(np.linalg.norm(part.offset))
        side = next((way for side, way in axes.items() if part.name.startswith(side)), (1, 0, 0))
        parts.append(part._replace(offset=tuple(length * value for value in side)))
    scale = 0.01
    joints, rows = [], {}
    for part in parts:
        rows[part.name] = len(joints)
        axes_of = ("Zrotation", "Xrotation", "Yrotation") if part.name else ()
        joints.append(Joint(part.name, rows[part.parent] if joints else -1, part.offset, axes_of))
    unit = recognise_unit(Tree(joints, bones_of(joints)))
    assert unit.metres == scale and unit.height == pytest.approx(1.69, rel=0.05)


@pytest.mark.parametrize(
    "parts",
    [
        [Part("Wrist", "", (0, 0, 0), 6), *limb(["Index1", "Index2"], "Wrist", (90, 0, 20), (40, 0, 0), (30, 0, 0))],
        [part for part in body() if "Leg" not in part.name and "Foot" not in part.name],
        [part for part in body() if "Leg" not in part.parent and "Foot" not in part.parent and "Leg" not in part.name],
    ],
    ids=["hand", "no legs", "upper body"],
)
def test_what_is_no_whole_body_has_no_unit(parts):
    parts = [part for part in parts if part.parent == "" or any(own.name == part.parent for own in parts)]
    for height in (0.17, 1.0, 1.7):
        for metres in UNITS.values():
            assert recognised(parts, height, metres) is None


@pytest.mark.parametrize(("height", "usual"), [(0.7, 3), (0.7, 1)])
def test_one_skeleton_has_one_unit(tmp_path, height, usual):
    """A child of 0.7 m in centimetres is an adult in inches by itself, not beside its parents."""
    for index in range(usual):
        write_body(tmp_path / f"grown{index}.bvh", body(), seed=index)
    write_body(tmp_path / "child.bvh", body(), scale=height / 1.69)
    reader = BvhReader(tmp_path, DataConfig())
    wanted = r"child.bvh: its unit .* 2.54 cm \(1.78 m tall\), but 1 unit = 1 cm .*grown0.bvh \(0.70 m tall then\); set"
    with pytest.raises(UserError, match=wanted):
        reader.check(reader.clip_names())
    reader = BvhReader(tmp_path, DataConfig(metres_per_unit=0.01))
    reader.check(reader.clip_names())
    for metres in (1.0, 0.3048, 0.001):  # none of these can be centimetres
        write_body(tmp_path / "child.bvh", body(), scale=0.01 / metres)
        reader = BvhReader(tmp_path, DataConfig())
        reader.check(reader.clip_names())
        assert len(reader.readings) == 2


def test_names_of_the_cmu_database_say_nothing_of_bodies_that_it_does_not_have():
    theirs = ("LHipJoint", "RHipJoint", "LowerBack", "LeftFingerBase", "RightFingerBase", "LThumb", "RThumb")
    ours = ("LeftUpLeg", "RightUpLeg", "Spine", "LeftLeg", "RightLeg", "LeftFoot", "RightFoot")
    new = dict(zip(ours, theirs, strict=True))
    parts = [
        part._replace(name=new.get(part.name, part.name), parent=new.get(part.parent, part.parent)) for part in body()
    ]
    cmu = UNITS["CMU's unit"]
    assert recognised(parts, 1.45, cmu) == (cmu, False)
    assert recognised(parts, 1.8, cmu) == (cmu, True)
    assert recognised(parts, 0.6, 0.0254) is None
    assert recognised(parts, 0.8, 0.0254) == (cmu, True)
