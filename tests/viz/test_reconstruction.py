"""Pictures of a reconstruction: curves, and a row of stick figures where the skeleton is known."""

import numpy as np
import pytest
from PIL import Image

from ds_rvqvae.motion.layout import SMPLX_JOINTS, Channels, feature_layout, select_columns, smplx_layout
from ds_rvqvae.motion.rotations import axis_angle_to_matrix, matrix_to_rotation_6d
from ds_rvqvae.motion.skeleton import builtin_skeleton, joint_places
from ds_rvqvae.viz.curves import liveliest
from ds_rvqvae.viz.poses import PoseRow, moved_groups
from ds_rvqvae.viz.reconstruction import pixels_of, reconstruction_figure, save_figure

LAYOUT = select_columns(smplx_layout(), "upper")[1]


def _motion(seed: int) -> np.ndarray:
    """Returns 40 frames of the upper body, `[40, 78]`."""
    turns = np.cumsum(np.random.default_rng(seed).normal(size=(40, 13, 3)) * 0.05, axis=0)
    return matrix_to_rotation_6d(axis_angle_to_matrix(turns)).reshape(40, -1).astype(np.float32)


def test_smplx_joints_add_a_row_of_stick_figures():
    motion = _motion(0)
    with_poses = reconstruction_figure(motion, motion, LAYOUT, 30.0, "upper")
    without = reconstruction_figure(motion, motion, feature_layout(78), 30.0, "upper")
    assert len(with_poses.axes) == 8 and len(without.axes) == 6
    other_names = tuple(Channels(f"bone{index}", "rotation_6d", 6 * index, 6 * index + 6) for index in range(13))
    assert len(reconstruction_figure(motion, motion, other_names, 30.0, "bones").axes) == 7
    times = [text.get_text() for text in with_poses.axes[7].texts]
    assert len(times) >= 5 and times[0] == "0.0 s" and times[-1] == "1.3 s"


def test_the_reconstruction_shows_beside_the_truth():
    truth, other = _motion(0), _motion(1)
    same, different = (pixels_of(reconstruction_figure(truth, found, LAYOUT, 30.0, "")) for found in (truth, other))
    assert same.dtype == np.uint8 and same.shape == different.shape and same.shape[2] == 3
    poses = slice(int(0.75 * len(same)), None)
    assert (same[poses] != different[poses]).any()


def test_a_saved_figure_is_whole_and_leaves_nothing_beside_it(tmp_path):
    figure = reconstruction_figure(_motion(0), _motion(1), LAYOUT, 30.0, "upper")
    save_figure(figure, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == pixels_of(figure).shape[1::-1]
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_errors_are_degrees_by_the_names_of_joints_the_worst_first():
    truth = np.tile(matrix_to_rotation_6d(np.broadcast_to(np.eye(3), (40, 13, 3, 3))).reshape(40, -1), 1)
    truth = truth.astype(np.float32)
    found = truth.reshape(40, 13, 6).copy()
    for joint, degrees in ((4, 20.0), (12, 30.0)):  # the neck and the right wrist
        turn = axis_angle_to_matrix(np.array([0, 0, np.radians(degrees)]))
        found[:, joint] = matrix_to_rotation_6d(turn)
    figure = reconstruction_figure(truth, found.reshape(40, -1), LAYOUT, 30.0, "clip", None, [9.0, 50 / 13])
    assert figure.get_suptitle() == "clip\nmean angle error 3.85°; with 1 to 2 levels 9.0, 3.8"
    bars = figure.axes[6]
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names[:2] == [LAYOUT[12].name, LAYOUT[4].name] and len(names) == 13
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches][:3], [30, 20, 0], atol=0.05)


def test_curves_of_joints_are_degrees_about_the_axis_that_they_turn_about():
    angles = np.linspace(-30, 400, 40)
    part = (Channels("elbow", "rotation_6d", 0, 6), Channels("root", "position", 6, 9))
    turns = matrix_to_rotation_6d(axis_angle_to_matrix(np.radians(angles)[:, None] * [0.0, 1.0, 0.0]))
    motion = np.hstack([turns, np.outer(angles, [0.001, 0, 0])]).astype(np.float32)
    joint, place = liveliest(motion, motion, part, 2)
    np.testing.assert_allclose(joint.truth - joint.truth[0], angles - angles[0], atol=0.01)
    np.testing.assert_allclose(joint.found, joint.truth, atol=0.01)
    assert joint.title == "elbow, degrees from its mean; 0.0° mean error" and place.title == "root: x, m"


@pytest.mark.parametrize("seed", range(2))
def test_a_poor_reconstructions_curve_is_drawn_by_the_truths(seed):
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 1500, 200)  # a root that makes four full turns
    errors = rng.uniform(-170, 170, size=200)

    def motion(degrees):
        turns = axis_angle_to_matrix(np.radians(degrees)[:, None] * [0.0, 1.0, 0.0])
        return matrix_to_rotation_6d(turns).astype(np.float32)

    (curve,) = liveliest(motion(angles), motion(angles + errors), (Channels("root", "rotation_6d", 0, 6),), 1)
    np.testing.assert_allclose(curve.found - curve.truth, errors, atol=0.1)
    assert curve.title == f"root, degrees from its mean; {np.abs(errors).mean():.1f}° mean error"


@pytest.mark.parametrize(
    ("part", "tops"), [("hands", ["left_wrist", "right_wrist"]), ("whole", ["pelvis"]), ("face", [])]
)
def test_poses_show_the_bones_that_a_part_moves(part, tops):
    skeleton, layout = builtin_skeleton(), select_columns(smplx_layout(), part)[1]
    groups = moved_groups(layout, skeleton)
    assert [skeleton.joint_names[group.top] for group in groups] == tops
    if part == "hands":
        names = {skeleton.joint_names[joint] for joint in groups[0].joints}
        assert names == {name for name in SMPLX_JOINTS if name.startswith("left_") and name[-1] in "123"}


def test_a_hand_is_seen_from_its_back_and_the_root_of_both_is_in_one_place():
    skeleton, layout = builtin_skeleton(), select_columns(smplx_layout(), "hands")[1]
    rest = np.tile([1.0, 0, 0, 0, 1, 0], (40, 30)).astype(np.float32)
    places = joint_places(rest, layout, skeleton)
    group = moved_groups(layout, skeleton)[0]
    row = PoseRow(places, places + np.array([0.3, 1.0, 0.0]), skeleton, group, 11.6, has_root=False)
    np.testing.assert_allclose(row._found, row._truth, atol=1e-9)
    seen = dict(zip(skeleton.joint_names, row._truth[0], strict=True))
    # Fingers point up, side by side; the left hand's thumb is to the right.
    assert seen["left_middle3"][1] > 0.1 and seen["left_thumb3"][0] > seen["left_pinky3"][0] + 0.05
    assert row.height > 1.5  # zoomed to the hand


def test_a_root_that_stands_still_is_marked():
    skeleton, layout = builtin_skeleton(), select_columns(smplx_layout(), "whole_trans")[1]
    motion = np.hstack([np.tile([1.0, 0, 0, 0, 1, 0], (40, 52)), np.tile([0.0, 0.95, 0], (40, 1))])

    def title(height):
        moved = motion.copy()
        moved[20:, -2] = height
        places = joint_places(moved, layout, skeleton)
        return PoseRow(places, places, skeleton, moved_groups(layout, skeleton)[0], 11.6, has_root=True)._title()

    assert title(0.95).endswith("; the root does not move") and "the root" not in title(1.0)


@pytest.mark.parametrize(
    ("part", "root_is_still", "has_ground"),
    [("upper", False, False), ("lower", False, True), ("whole", False, True), ("lower_trans", True, True)],
)
def test_only_a_root_whose_columns_are_there_is_said_to_stand_still(part, root_is_still, has_ground):
    layout = select_columns(smplx_layout(), part)[1]
    rotations = [own for own in layout if own.kind == "rotation_6d"]
    motion = np.tile([1.0, 0, 0, 0, 1, 0], (40, len(rotations))).astype(np.float32)
    motion = np.hstack([motion, np.zeros((40, layout[-1].stop - motion.shape[1]), np.float32)])
    row = reconstruction_figure(motion, motion, layout, 30.0, part).axes[-1]
    title = row.get_title(loc="left")
    assert ("the root does not move" in title, "the line is" in title) == (root_is_still, has_ground)
    flat = [line for line in row.lines if list(line.get_xdata()) == [0, 1] and len(set(line.get_ydata())) == 1]
    assert len(flat) == has_ground
