"""Skeletons from JSON, npz and BVH files, and the unit and names of a file's joints."""

import json

import numpy as np
import pytest

from ds_rvqvae.data.formats.skeletons import load_skeleton
from ds_rvqvae.errors import UserError
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
    elbow = "JOINT elbow\n{\nOFFSET 25 0 0\nCHANNELS 3 Zrotation Xrotation Yrotation\n"
    end = "End Site\n{\nOFFSET 25 145 0\n}\n"
    root = "HIERARCHY\nROOT shoulder\n{\nOFFSET 0 140 0\nCHANNELS 3 Zrotation Xrotation Yrotation\n"
    file = tmp_path / "Arm.BVH"
    file.write_text(f"{root}{elbow}{end}}}\n}}\nMOTION\nFrames: 9\n")
    read = load_skeleton(file)
    assert read.name == "Arm" and read.joint_names == ("shoulder", "elbow") and read.parents == (-1, 0)
    assert np.allclose(read.offsets, [[0, 1.4, 0], [0.25, 0, 0]])
    file.write_text(f"{root}{elbow}")
    with pytest.raises(UserError, match=r"Arm\.BVH: not a skeleton: cut short"):
        load_skeleton(file)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"joint_names": "arm"}, "joint_names: not a list"),
        ({"joint_names": []}, "joint_names: not a list"),
        ({"joint_names": ["a", "b", "a"]}, "a stands twice"),
        ({"parents": [-1, 0]}, "2 for 3 joints"),
        ({"parents": [-1, 0, 0.5]}, "whole numbers"),
        ({"parents": [-1, 2, 1]}, r"elbow \(joint 1\) has parent 2"),
        ({"parents": [-1, 1, 1]}, r"elbow \(joint 1\) has parent 1"),
        ({"parents": [-1, 0, -1]}, r"wrist \(joint 2\) has parent -1"),
        ({"parents": [1, 0, 0]}, "shoulder stands first"),
        ({"offsets": [[0, 0, 0], [1, 0, 0]]}, r"shape \[2, 3\]"),
        ({"offsets": [[0, 0, 0], [1, 0], [1, 0, 0]]}, "not one x, y, z"),
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
