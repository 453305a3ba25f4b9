"""Skeletons from JSON, npz and BVH files, and the unit and names of a file's joints."""

import json

import numpy as np
import pytest

from ds_rvqvae.data.formats.bvh.bodies import bones_of, unique_names
from ds_rvqvae.data.formats.bvh.file import Joint
from ds_rvqvae.data.formats.bvh.skeletons import Z_UP_TO_Y_UP, guess_unit, load_skeleton, outermost, rest_skeleton
from ds_rvqvae.errors import UserError
from tests.data.formats.bvh_files import HIERARCHY
from tests.motion.arm import ARM, load_arm


@pytest.fixture
def arm(tmp_path):
    return load_arm(tmp_path)


def test_a_skeleton_is_read_from_json_and_from_npz(tmp_path, arm):
    assert arm.name == "arm" and arm.joint_names == ("shoulder", "elbow", "wrist") and arm.parents == (-1, 0, 1)
    (tmp_path / "named.json").write_text(json.dumps({**ARM, "name": "Left arm"}))
    assert load_skeleton(tmp_path / "named.json").name == "Left arm"
    offsets = np.asarray(ARM["offsets"], np.float32)
    for file, values in (("one.npz", offsets), ("clips.npz", np.stack([offsets, 2 * offsets]))):
        arrays = {"joint_names": np.array(ARM["joint_names"]), "parents": np.array(ARM["parents"]), "offsets_m": values}
        np.savez(tmp_path / file, **arrays)
        read = load_skeleton(tmp_path / file)
        assert read.joint_names == arm.joint_names and read.parents == arm.parents
        np.testing.assert_array_equal(read.offsets, arm.offsets)


def test_a_skeleton_is_read_from_a_bvh_file_whatever_its_motion(tmp_path):
    file = tmp_path / "Figure.BVH"
    header = HIERARCHY.replace("Hips", "Pelvis")
    file.write_text(f"{header}MOTION\nFrames: 9\n")
    read = load_skeleton(file)
    assert read.name == "Figure" and read.joint_names == ("Pelvis", "LeftArm", "LeftHand", "LeftLeg")
    assert read.parents == (-1, 0, 1, 0)
    assert np.allclose(read.offsets, [[0.01, 0.9, 0], [0.1, 0.5, 0], [0.6, 0, 0], [0.1, -0.05, 0]])
    file.write_text(header[:-9])
    with pytest.raises(UserError, match=r"Figure\.BVH: not a skeleton: cut short"):
        load_skeleton(file)
    file.write_text(f"{header.replace('LeftLeg', 'Tail')}MOTION\nFrames: 9\n")
    with pytest.raises(UserError, match=r"its unit of length is not known.* give it as JSON, with offsets in metres"):
        load_skeleton(file)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"joint_names": "arm"}, "joint_names: not a list"),
        ({"joint_names": []}, "joint_names: not a list"),
        ({"joint_names": ["a", "b", "a"]}, "a occurs twice"),
        ({"parents": [-1, 0]}, "2 for 3 joints"),
        ({"parents": [-1, 0, 0.5]}, "integers"),
        ({"parents": [-1, 2, 1]}, r"elbow \(joint 1\) has parent 2"),
        ({"parents": [-1, 1, 1]}, r"elbow \(joint 1\) has parent 1"),
        ({"parents": [-1, 0, -1]}, r"wrist \(joint 2\) has parent -1"),
        ({"parents": [1, 0, 0]}, "shoulder is first"),
        ({"offsets": [[0, 0, 0], [1, 0, 0]]}, r"shape \[2, 3\]"),
        ({"offsets": [[0, 0, 0], [1, 0], [1, 0, 0]]}, "offsets: rows of unequal length"),
        ({"offsets": [["0", "0", "0"]] * 3}, "not numbers"),
        ({"offsets": [[0, 0, 0], [1, 0, float("nan")], [1, 0, 0]]}, "NaN or infinite at elbow"),
        ({"offsets": [[0, 0, 0], [1, 0, 0], [45, 0, 0]]}, "wrist is 45 from its parent; use metres"),
        ({"parents": None}, "parents: not a list"),
    ],
)
def test_a_file_that_is_no_skeleton_is_refused_in_one_line(tmp_path, changes, complaint):
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({**ARM, **changes}))
    with pytest.raises(UserError, match=complaint) as error:
        load_skeleton(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.json", None, "No such file"),
        ("text.json", b"not json", "neither JSON"),
        ("binary.json", b"\xff\xfe\x00", "neither JSON"),
        ("list.json", b"[1]", "not an object"),
        ("less.json", b'{"parents": []}', "no key joint_names"),
        ("cut.npz", b"PK\x03\x04", "not a skeleton"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        load_skeleton(tmp_path / name)
    assert "\n" not in str(error.value)


def test_an_npz_of_python_objects_is_refused(tmp_path):
    names = np.array(["a", None], object)
    np.savez(tmp_path / "pickled.npz", joint_names=names, parents=np.array([-1, 0]), offsets_m=np.zeros((2, 3)))
    with pytest.raises(UserError, match="never loaded"):
        load_skeleton(tmp_path / "pickled.npz")


TURNS = ("Zrotation", "Xrotation", "Yrotation")
PLACES = ("Xposition", "Yposition", "Zposition")


def leg(scale=1.0):
    """Returns a leg on a pelvis that does not move, with the toe's End Site; 1.7 units from top to bottom."""
    return [
        Joint("world", -1, (0, 0, 0), PLACES),
        Joint("pelvis", 0, (0, 0.9 * scale, 0), ()),
        Joint("knee", 1, (0.1 * scale, -0.9 * scale, 0), TURNS),
        Joint("", 2, (0, -0.8 * scale, 0), ()),
    ]


@pytest.mark.parametrize(
    ("scale", "metres", "words"),
    [
        (1, 1.0, "1 unit = 100 cm"),
        (100, 0.01, "1 unit = 1 cm"),
        (1000, 0.001, "1 unit = 0.1 cm"),
        (1 / 0.0254, 0.0254, "1 unit = 2.54 cm"),
        (1 / 0.3048, 0.3048, "1 unit = 30.48 cm"),
    ],
)
def test_the_unit_of_versions_up_to_0_2_is_the_one_that_makes_a_figure_as_tall_as_a_person(scale, metres, words):
    assert guess_unit(leg(scale)) == (metres, f"{words}, guessed from the size of the skeleton")


def test_a_figure_of_no_size_and_one_of_no_persons_say_so():
    assert guess_unit(leg(0))[1] == "1 unit = 1 cm, because its skeleton has no size to guess from"
    metres, words = guess_unit(leg(10_000))
    assert metres == 0.001 and words.endswith("which is 17 m then: set rvqvae.data.metres_per_unit")


def test_names_are_made_unique_and_none_is_called_as_the_translation():
    names = ["a", "a.1", "a", "a", "", "translation", ""]
    joints = [Joint(name, index - 1, (0, 0, 0), ()) for index, name in enumerate(names)]
    assert unique_names(joints) == ["a", "a.1", "a.2", "a.3", "", "translation.1", ""]


def test_what_nothing_turns_lies_in_the_world():
    assert outermost(leg()) == [True, True, True, False]


def test_a_rest_skeleton_has_the_joints_that_move_in_metres():
    # The knee is attached to the world, which carries the pelvis: 0.9 up and 0.9 down.
    expected = [[0, 0, 0], [0.2, 0, 0]]
    found = rest_skeleton(leg(), 2 * bones_of(leg()))
    assert found["joint_names"] == ["world", "knee"] and found["parents"] == [-1, 0]
    np.testing.assert_allclose(found["offsets"], expected, atol=1e-12)


def test_turned_upright_only_what_lies_in_the_world_is_turned():
    joints = [Joint("hips", -1, (1, 2, 3), TURNS), Joint("spine", 0, (0, 0, 5), TURNS)]
    # z becomes y, and the old y becomes -z; the spine turns with the hips.
    assert rest_skeleton(joints, bones_of(joints), turn=Z_UP_TO_Y_UP)["offsets"] == [[1, 3, -2], [0, 0, 5]]


def test_the_root_of_a_rest_skeleton_is_the_joint_that_carries_the_body():
    camera = [Joint("camera", 0, (9, 9, 9), TURNS), Joint("lens", 3, (1, 1, 1), TURNS)]
    joints = [
        Joint("world", -1, (0, 1, 0), TURNS),
        Joint("hips", 0, (0, 0, 90), TURNS),
        Joint("knee", 1, (0, 0, -40), TURNS),
        *camera,
    ]
    found = rest_skeleton(joints, bones_of(joints), 1)
    assert found == {"joint_names": ["hips", "knee"], "parents": [-1, 0], "offsets": [[0, 1, 90], [0, 0, -40]]}
    turned = rest_skeleton(joints, bones_of(joints), 1, Z_UP_TO_Y_UP)
    np.testing.assert_allclose(turned["offsets"], [[0, 90, -1], [0, 0, -40]])
