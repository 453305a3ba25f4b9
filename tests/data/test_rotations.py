import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation, Slerp

from ds_rvqvae.data.rotations import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rotation_6d,
    resample,
    rotation_6d_to_matrix,
)

NO_ROTATIONS = np.empty((0, 6), np.int64)
axis_angles = arrays(np.float64, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-1.7, 1.7))


def smooth_rotations(frames: int, joints: int) -> np.ndarray:
    """Matrices `[frames, joints, 3, 3]`."""
    angles = np.cumsum(np.random.default_rng(0).normal(size=(frames, joints, 3)) * 0.2, axis=0)
    return axis_angle_to_matrix(angles)


@given(axis_angles)
@settings(deadline=None)
def test_axis_angle_survives_the_way_to_6d_and_back(axis_angle):
    rotation_6d = matrix_to_rotation_6d(axis_angle_to_matrix(axis_angle))
    assert rotation_6d.shape == (len(axis_angle), 6)
    assert np.allclose(matrix_to_axis_angle(rotation_6d_to_matrix(rotation_6d)), axis_angle, atol=1e-9)


@given(arrays(np.float64, (3, 6), elements=st.floats(-5, 5)))
@settings(deadline=None)
def test_gram_schmidt_gives_rotations_that_keep_the_first_direction(rotation_6d):
    independent = np.linalg.norm(np.cross(rotation_6d[:, :3], rotation_6d[:, 3:]), axis=1) > 1e-3
    rotation_6d = rotation_6d[independent]
    matrices = rotation_6d_to_matrix(rotation_6d)
    assert np.allclose(matrices @ matrices.swapaxes(-1, -2), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(matrices), 1)
    lengths = np.linalg.norm(rotation_6d[:, :3], axis=1, keepdims=True)
    assert np.allclose(matrices[:, 0] * lengths, rotation_6d[:, :3], atol=1e-9)


def test_6d_is_the_first_two_rows():
    quarter_turn_about_z = axis_angle_to_matrix(np.array([0, 0, np.pi / 2]))
    assert np.allclose(matrix_to_rotation_6d(quarter_turn_about_z), [0, -1, 0, 1, 0, 0])


@pytest.mark.parametrize(("source", "target", "step"), [(120, 30, 4), (30, 30, 1), (29.97, 30, 1), (119.88, 30, 4)])
def test_a_whole_multiple_is_decimated_exactly(source, target, step):
    motion = np.random.default_rng(0).normal(size=(101, 7)).astype(np.float32)
    assert np.array_equal(resample(motion, NO_ROTATIONS, source, target), motion[::step])


@pytest.mark.parametrize(("source", "target"), [(25, 30), (30, 20), (120, 50), (10, 30)])
def test_other_columns_are_resampled_linearly(source, target):
    seconds = np.arange(61)[:, None] / source
    motion = np.concatenate([seconds, 3 - 2 * seconds], axis=1)
    resampled = resample(motion, NO_ROTATIONS, source, target)
    wanted = np.arange(len(resampled)) / target
    assert np.allclose(resampled[:, 0], wanted) and np.allclose(resampled[:, 1], 3 - 2 * wanted)
    assert 0 <= 60 / source - wanted[-1] < 1 / target


def test_rotations_are_resampled_on_the_sphere_as_scipy_does():
    matrices = smooth_rotations(40, 3)
    motion = matrix_to_rotation_6d(matrices).reshape(40, 18)
    columns = np.arange(18).reshape(3, 6)
    resampled = rotation_6d_to_matrix(resample(motion, columns, 25, 30).reshape(-1, 3, 6))
    for joint in range(3):
        slerp = Slerp(np.arange(40) / 25, Rotation.from_matrix(matrices[:, joint]))
        wanted = slerp(np.minimum(np.arange(len(resampled)) / 30, 39 / 25)).as_matrix()
        assert np.allclose(resampled[:, joint], wanted, atol=1e-9)
