"""Skeletons: the built-in figure, and the positions of joints in motion."""

import numpy as np
import pytest

from ds_rvqvae.data.formats.bvh.skeletons import load_skeleton
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.kinematics import joints_of
from ds_rvqvae.motion.layout import (
    SMPLX_JOINTS,
    SMPLX_PARENTS,
    Channels,
    feature_layout,
    joint_layout,
    smplx_layout,
)
from ds_rvqvae.motion.rotations import axis_angle_to_matrix, matrix_to_rotation_6d
from ds_rvqvae.motion.skeleton import (
    builtin_skeleton,
    check_skeleton,
    forward_kinematics,
    joint_places,
    measured_joints,
    moved_joints,
    skeleton_from_json,
)
from tests.motion.arm import ARM, load_arm

IDENTITY_6D = [1.0, 0, 0, 0, 1, 0]
QUARTER_TURN = matrix_to_rotation_6d(axis_angle_to_matrix(np.array([0, 0, np.pi / 2])))


@pytest.fixture
def arm(tmp_path):
    return load_arm(tmp_path)


def test_the_built_in_figure_stands_upright_and_mirrors_itself():
    skeleton = builtin_skeleton()
    assert skeleton.joint_names == SMPLX_JOINTS and skeleton.parents == SMPLX_PARENTS
    places = forward_kinematics(np.broadcast_to(np.eye(3), (2, 55, 3, 3)), skeleton.offsets)
    joint = {name: places[0, index] for index, name in enumerate(SMPLX_JOINTS)}
    assert joint["head"][1] > joint["pelvis"][1] > joint["left_knee"][1] > joint["left_foot"][1] > -0.05
    for name in SMPLX_JOINTS:
        if name.startswith("left_"):
            assert np.allclose(joint[name] * [-1, 1, 1], joint[name.replace("left", "right")])


def test_forward_kinematics_turns_what_hangs_on_a_joint():
    rotations = np.tile(np.eye(3), (1, 3, 1, 1))
    rotations[0, 0] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # a quarter turn about z
    places = forward_kinematics(rotations, np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]]), (-1, 0, 1), np.ones((1, 3)))
    assert np.allclose(places[0], [[1, 1, 1], [1, 2, 1], [1, 4, 1]])


def test_a_takes_skeleton_is_made_of_what_it_says(arm):
    read = skeleton_from_json(ARM, "arm of a take")
    assert read.name == "arm of a take" and read.joint_names == arm.joint_names and read.parents == arm.parents
    np.testing.assert_array_equal(read.offsets, arm.offsets)
    with pytest.raises(ClipError, match="no key offsets"):
        skeleton_from_json({"joint_names": ["a"], "parents": [-1]}, "less")


def test_joints_are_turned_by_name_and_the_others_rest(arm):
    layout = (Channels("other", "rotation_6d", 0, 6), Channels("elbow", "rotation_6d", 6, 12))
    places = joint_places(np.array([[*QUARTER_TURN, *QUARTER_TURN], [*QUARTER_TURN, *IDENTITY_6D]]), layout, arm)
    assert np.allclose(places[0], [[0, 1, 0], [1, 1, 0], [1, 3, 0]])
    assert np.allclose(places[1], [[0, 1, 0], [1, 1, 0], [3, 1, 0]])


def test_the_translation_moves_the_root(arm):
    layout = (Channels("shoulder", "rotation_6d", 0, 6), Channels("translation", "translation", 6, 9))
    motion = np.array([[*IDENTITY_6D, 0, 1.5, 0], [*IDENTITY_6D, 0.1, 1.4, -0.2], [*IDENTITY_6D, 0.1, 1.3, 0.0]])
    places = joint_places(motion, layout, arm)
    assert np.allclose(places[:, 0], [[0, 1.5, 0], [0.1, 1.4, -0.2], [0.2, 1.3, -0.2]])
    assert np.allclose(places[:, 2] - places[:, 0], [3, 0, 0])


def test_a_position_is_the_roots_place(arm):
    layout = (Channels("shoulder", "rotation_6d", 0, 6), Channels("translation", "position", 6, 9))
    motion = np.array([[*IDENTITY_6D, 5, 1.5, 3], [*QUARTER_TURN, 6, 1.4, -0.2]])
    places = joint_places(motion, layout, arm)
    assert np.allclose(places[0], [[5, 1.5, 3], [6, 1.5, 3], [8, 1.5, 3]])
    assert np.allclose(places[1], [[6, 1.4, -0.2], [6, 2.4, -0.2], [6, 4.4, -0.2]])


def test_without_a_joint_of_the_skeleton_there_are_no_places(arm):
    assert joint_places(np.zeros((4, 433)), smplx_layout(), arm) is None
    assert joint_places(np.zeros((4, 6)), (Channels("elbow", "feature", 0, 6),), arm) is None


@pytest.mark.real_data
def test_the_skeleton_of_the_cmu_file_carries_its_motion(real_data):
    file = real_data / "cmu" / "motion_6d.npz"
    skeleton = load_skeleton(file)
    motion = np.load(file)["motion"][:10]  # before it crouches
    layout = tuple(
        Channels(name, "rotation_6d", 6 * index, 6 * index + 6) for index, name in enumerate(skeleton.joint_names)
    )
    places = joint_places(motion, layout, skeleton)
    bones = np.linalg.norm(places[:, 1:] - places[:, list(skeleton.parents[1:])], axis=-1)
    assert np.allclose(bones, np.linalg.norm(skeleton.offsets[1:], axis=-1))
    height = places[..., 1].max(axis=1) - places[..., 1].min(axis=1)
    assert (height > 1.3).all() and (height < 2.0).all()


def test_angles_without_axes_move_no_joint_of_a_figure():
    names = ("left_knee", "left_ankle", "right_ankle")
    layout = tuple(Channels(name, "angle", index, index + 1) for index, name in enumerate(names))
    skeleton = builtin_skeleton()
    assert measured_joints(layout, skeleton) == [] and not any(moved_joints(layout, skeleton))
    assert joint_places(np.ones((4, 3)), layout, skeleton) is None
    assert joints_of(layout, skeleton) is None


def test_published_columns_take_no_other_skeleton():
    check_skeleton(builtin_skeleton(), joint_layout(("pelvis",), "position"))
    check_skeleton(None, feature_layout(263))
    with pytest.raises(UserError, match="--skeleton: 272 columns have joint positions of 272 columns; leave it out"):
        check_skeleton(builtin_skeleton(), feature_layout(272))
