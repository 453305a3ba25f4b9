"""A stick figure: the camera that sees it from the front, and its bones."""

import numpy as np
import pytest

from ds_rvqvae.motion.layout import Channels
from ds_rvqvae.motion.rotations import axis_angle_to_matrix, matrix_to_rotation_6d
from ds_rvqvae.motion.skeleton import builtin_skeleton, joint_places
from ds_rvqvae.viz.stick_figure import Camera


@pytest.mark.parametrize("turn", [0.0, 1.0, 3.0, -2.0])
def test_the_camera_stands_before_the_figure_wherever_it_faces(turn):
    skeleton = builtin_skeleton()
    pelvis = matrix_to_rotation_6d(axis_angle_to_matrix(np.array([[0.0, turn, 0.0]])))
    places = joint_places(pelvis, (Channels("pelvis", "rotation_6d", 0, 6),), skeleton)
    seen = Camera.before(places, skeleton).project(places, np.zeros(3))[0]
    unturned = joint_places(np.array([[1.0, 0, 0, 0, 1, 0]]), (Channels("pelvis", "rotation_6d", 0, 6),), skeleton)
    assert np.allclose(seen, Camera.before(unturned, skeleton).project(unturned, np.zeros(3))[0])
    joint = dict(zip(skeleton.joint_names, seen, strict=True))
    # As one sees somebody who faces one: the left hand to the right, the feet below, toes nearer than heels.
    assert joint["left_wrist"][0] > joint["head"][0] > joint["right_wrist"][0]
    assert joint["head"][1] > joint["left_foot"][1] and joint["left_foot"][2] > joint["left_ankle"][2]
