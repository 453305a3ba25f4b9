"""A stick figure: its bones, and the camera in front of it."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ds_rvqvae.motion.layout import Channels
from ds_rvqvae.motion.rotations import axis_angle_to_matrix, matrix_to_rotation_6d
from ds_rvqvae.motion.skeleton import Skeleton, builtin_skeleton, joint_places
from ds_rvqvae.viz.stick_figure import HEAD_RADIUS, LEFT, MIDDLE, RIGHT, Camera, StickFigure


@pytest.mark.parametrize("turn", [0.0, 1.0, 3.0, -2.0])
def test_the_camera_stands_before_the_figure_wherever_it_faces(turn):
    skeleton = builtin_skeleton()
    pelvis = matrix_to_rotation_6d(axis_angle_to_matrix(np.array([[0.0, turn, 0.0]])))
    places = joint_places(pelvis, (Channels("pelvis", "rotation_6d", 0, 6),), skeleton)
    seen = Camera.before(places, skeleton).project(places, np.zeros(3))[0]
    unturned = joint_places(np.array([[1.0, 0, 0, 0, 1, 0]]), (Channels("pelvis", "rotation_6d", 0, 6),), skeleton)
    assert np.allclose(seen, Camera.before(unturned, skeleton).project(unturned, np.zeros(3))[0])
    joint = dict(zip(skeleton.joint_names, seen, strict=True))
    # A figure that faces the viewer: the left hand is to the right, the feet below, the toes nearer than the heels.
    assert joint["left_wrist"][0] > joint["head"][0] > joint["right_wrist"][0]
    assert joint["head"][1] > joint["left_foot"][1] and joint["left_foot"][2] > joint["left_ankle"][2]


SMALL = Skeleton(
    ("hips", "left_arm", "right_arm", "head", "jaw", "left_thumb"),
    (-1, 0, 0, 0, 3, 1),
    np.array([[0, 1, 0], [0.3, 0, 0], [-0.3, 0, 0], [0, 0.6, 0], [0, 0.05, 0], [0.04, 0, 0]], np.float64),
    "small",
)
PLACES = np.array([[0, 1, 0], [0.3, 1, 0.2], [-0.3, 1, -0.2], [0, 1.6, 0], [0, 1.65, 0], [0.34, 1, 0.3]], np.float64)
"""Joint positions to the right, up and towards the camera; the left arm is nearer than the right one."""


def _segments(figure):
    bones = figure.artists[0]
    return [segment.tolist() for segment in bones.get_segments()]


def test_bones_are_drawn_from_far_to_near_and_by_side():
    figure = StickFigure(Figure().add_subplot(), SMALL, width=2.0)
    figure.place(PLACES)
    bones, ring = figure.artists
    assert _segments(figure) == [
        [[0.0, 1.0], [-0.3, 1.0]],
        [[0.0, 1.0], [0.0, 1.6]],
        [[0.0, 1.0], [0.3, 1.0]],
        [[0.3, 1.0], [0.34, 1.0]],
    ]
    assert [to_hex(color) for color in bones.get_colors()] == [RIGHT, MIDDLE, LEFT, LEFT]
    # A thumb is a finger; the jaw is a child of the head, and is not drawn.
    assert bones.get_linewidths() == [2.0, 2.0, 2.0, 1.0]
    # The ring is at the end of the neck, in the direction away from the hips.
    assert ring.center == pytest.approx((0.0, 1.6 + HEAD_RADIUS)) and ring.radius == HEAD_RADIUS


def test_one_colour_or_one_of_each_joint():
    figure = StickFigure(Figure().add_subplot(), SMALL, color="#00ff00")
    figure.place(PLACES)
    assert {to_hex(color) for color in figure.artists[0].get_colors()} == {"#00ff00"}
    colors = np.linspace(0, 1, 6)[:, None] * [1, 1, 1, 0] + [0, 0, 0, 1]
    figure.place(PLACES, colors)
    np.testing.assert_allclose(figure.artists[0].get_colors(), colors[[2, 3, 1, 5]])
    np.testing.assert_allclose(figure.artists[1].get_edgecolor(), colors[3])


def test_without_a_head_there_is_no_ring():
    figure = StickFigure(
        Figure().add_subplot(), Skeleton(("hip", "knee"), (-1, 0), np.array([[0, 1, 0], [0, -0.5, 0]]), "")
    )
    figure.place(np.array([[0, 1, 0], [0, 0.5, 0]], np.float64))
    assert len(figure.artists) == 1 and _segments(figure) == [[[0.0, 1.0], [0.0, 0.5]]]


def test_what_is_nearer_is_larger():
    camera = Camera(0.0)
    points = np.array([[1.0, 0, 0], [1.0, 0, 2], [1.0, 0, -2]])
    middle, near, far = camera.project(points, np.zeros(3))
    assert middle[0] == pytest.approx(1.0) and near[0] > 1 > far[0] and near[2] > middle[2] > far[2]
    # The point that the camera faces is the middle of the picture.
    np.testing.assert_allclose(camera.project(points[:1], points[0]), 0, atol=1e-12)
