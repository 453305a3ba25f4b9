import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation, Slerp

from ds_rvqvae.motion.rotations import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rotation_6d,
    resample,
    resampled_length,
    rotation_6d_to_matrix,
)

NO_ROTATIONS = np.empty((0, 6), np.int64)
ROTATIONS = np.arange(12).reshape(2, 6)
rates = st.sampled_from([7.5, 12, 15, 20, 24, 25, 29.97, 30, 48, 50, 59.94, 60, 100, 119.88, 120, 120.00004577, 240])
directions = arrays(np.float64, 3, elements=st.floats(-1, 1)).filter(lambda axis: np.linalg.norm(axis) > 0.1)
axis_angles = arrays(np.float64, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-1.7, 1.7))


def smooth_rotations(frames: int, joints: int) -> np.ndarray:
    """Returns matrices `[frames, joints, 3, 3]`."""
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


def motion_of(matrices: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns two rotations `[frames, 2, 3, 3]` as 6D and other columns."""
    return np.concatenate([matrix_to_rotation_6d(matrices).reshape(len(matrices), -1), others], axis=1)


def random_motion(seed: int, frames: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    angles = np.cumsum(rng.normal(size=(frames, 2, 3)) * 0.3, axis=0)
    return motion_of(axis_angle_to_matrix(angles), rng.normal(size=(frames, 3)))


@given(directions, st.sampled_from([0, 1e-12, 1e-6, 1, np.pi - 1e-6, np.pi - 1e-12, np.pi]))
@settings(deadline=None)
def test_rotations_of_nothing_and_of_half_a_turn_survive_every_way(axis, angle):
    axis_angle = axis / np.linalg.norm(axis) * angle
    matrix = axis_angle_to_matrix(axis_angle)
    back = matrix_to_axis_angle(rotation_6d_to_matrix(matrix_to_rotation_6d(matrix)))
    assert np.linalg.norm(back) == pytest.approx(angle, abs=1e-9)
    assert np.allclose(axis_angle_to_matrix(back), matrix, atol=1e-9)  # half a turn has two axes
    if angle < np.pi - 1e-9:
        assert np.allclose(back, axis_angle, atol=1e-7)


@given(axis_angles)
@settings(deadline=None)
def test_matrices_survive_the_way_to_axis_angle_and_back(axis_angle):
    matrices = axis_angle_to_matrix(axis_angle)
    assert np.allclose(axis_angle_to_matrix(matrix_to_axis_angle(matrices)), matrices, atol=1e-12)
    assert np.allclose(rotation_6d_to_matrix(matrix_to_rotation_6d(matrices)), matrices, atol=1e-12)


@given(st.integers(0, 3000), rates, rates)
@settings(deadline=None)
def test_the_length_tells_what_resampling_gives_and_the_time_it_takes(frames, source, target):
    motion = np.zeros((frames, 1), np.float32)
    made = len(resample(motion, NO_ROTATIONS, source, target))
    assert made == resampled_length(frames, source, target)
    if frames:
        late = (frames - 1) / source - (made - 1) / target
        assert -0.0011 * frames / source <= late < 1.0011 / target + 0.0011 * frames / source


@given(st.integers(0, 99), st.integers(1, 60), rates)
@settings(deadline=None, max_examples=30)
def test_at_its_own_rate_motion_stays_as_it_is(seed, frames, rate):
    motion = random_motion(seed, frames)
    assert np.array_equal(resample(motion, ROTATIONS, rate, rate), motion)


@given(st.integers(0, 99), st.integers(1, 8), st.floats(-9.9e-4, 9.9e-4))
@settings(deadline=None)
def test_decimation_is_exact_within_a_thousandth(seed, step, off):
    motion = random_motion(seed, 41)
    assert np.array_equal(resample(motion, ROTATIONS, 30 * step * (1 + off), 30), motion[::step])


@pytest.mark.parametrize("source", [30 * 1.002, 30 * 0.998, 120 * 1.002])
def test_rates_further_off_are_interpolated(source):
    motion = random_motion(0, 4000)
    step = round(source / 30)
    assert not np.array_equal(resample(motion, ROTATIONS, source, 30)[:900], motion[::step][:900])


@given(st.integers(0, 99), st.integers(2, 40), rates, rates)
@settings(deadline=None, max_examples=50)
def test_the_first_frame_is_kept_and_the_last_where_the_rates_meet(seed, frames, source, target):
    motion = random_motion(seed, frames)
    resampled = resample(motion, ROTATIONS, source, target)
    assert np.allclose(resampled[0], motion[0], atol=1e-12)
    times = (frames - 1) * target / source
    if abs(times - round(times)) < 1e-10:
        assert np.allclose(resampled[-1], motion[-1], atol=1e-6)


@given(directions, st.floats(0, 3), rates, rates)
@settings(deadline=None)
def test_constant_turning_is_interpolated_exactly(axis, radians, source, target):
    assume(abs(source / target - round(source / target)) > 0.002 * round(source / target))
    turn = axis / np.linalg.norm(axis) * radians
    start = axis_angle_to_matrix(np.array([0.3, -0.8, 0.5]))

    def at(times: np.ndarray) -> np.ndarray:
        turned = axis_angle_to_matrix(times[:, None] * turn) @ start
        return motion_of(np.stack([turned, np.broadcast_to(start, turned.shape)], axis=1), times[:, None])

    resampled = resample(at(np.arange(50.0)), ROTATIONS, source, target)
    assert np.allclose(resampled, at(np.arange(len(resampled)) * source / target), atol=1e-8)


@given(st.integers(0, 99), st.integers(2, 60), rates, rates)
@settings(deadline=None, max_examples=50)
def test_a_pose_that_is_held_is_held_at_every_rate(seed, frames, source, target):
    held = random_motion(seed, 1)
    resampled = resample(np.repeat(held, frames, axis=0), ROTATIONS, source, target)
    assert np.allclose(resampled, held, rtol=0, atol=1e-12)


@given(st.integers(0, 99), st.integers(2, 60), st.floats(0, 3), rates, rates)
@settings(deadline=None, max_examples=50)
def test_resampled_rotations_are_rotations_on_the_way_from_one_frame_to_the_next(seed, frames, size, source, target):
    turns = np.random.default_rng(seed).normal(size=(frames, 2, 3)) * size
    poses = axis_angle_to_matrix(np.cumsum(turns, axis=0))
    rows = resample(motion_of(poses, np.zeros((frames, 0))), ROTATIONS, source, target).reshape(-1, 2, 2, 3)
    assert np.allclose(rows @ rows.swapaxes(-1, -2), np.eye(2), rtol=0, atol=1e-9)

    assume(abs(source / target - round(source / target)) > 0.002 * round(source / target))
    times = np.arange(len(rows)) * source / target
    first = np.minimum(times.astype(int), frames - 2)
    back = poses[first].swapaxes(-1, -2)
    whole, part = (
        np.linalg.norm(matrix_to_axis_angle(ends @ back), axis=-1)
        for ends in (poses[first + 1], rotation_6d_to_matrix(rows.reshape(-1, 2, 6)))
    )
    assert np.allclose(part, np.minimum(times - first, 1)[:, None] * whole, rtol=0, atol=1e-5)


@given(st.integers(0, 99), st.integers(1, 50), st.integers(2, 6))
@settings(deadline=None, max_examples=50)
def test_motion_made_faster_and_slower_again_is_what_it_was(seed, frames, factor):
    motion = random_motion(seed, frames)
    faster = resample(motion, ROTATIONS, 25, 25 * factor)
    assert len(faster) == (frames - 1) * factor + 1
    assert np.allclose(resample(faster, ROTATIONS, 25 * factor, 25), motion, atol=1e-9)


@given(directions, st.sampled_from([np.pi, np.pi - 1e-9, np.pi - 1e-5]))
@settings(deadline=None)
def test_half_a_turn_between_two_frames_is_gone_in_even_steps(axis, angle):
    turn = axis / np.linalg.norm(axis) * angle
    start = axis_angle_to_matrix(np.array([[0.3, -0.8, 0.5], [0.0, 0.0, 0.0]]))
    motion = motion_of(np.stack([start, axis_angle_to_matrix(turn) @ start]), np.zeros((2, 0)))
    matrices = rotation_6d_to_matrix(resample(motion, ROTATIONS, 10, 40).reshape(-1, 2, 6))
    steps = matrix_to_axis_angle(matrices[1:] @ matrices[:-1].swapaxes(-1, -2))
    assert np.allclose(np.linalg.norm(steps, axis=-1), angle / 4, atol=1e-7)
    assert np.allclose(matrices[-1], axis_angle_to_matrix(turn) @ start, atol=1e-7)


@pytest.mark.parametrize(("source", "target"), [(25, 30), (100, 30), (3000, 29)])
def test_long_motion_is_resampled_as_its_parts_are(source, target):
    motion = random_motion(1, 6000)
    resampled = resample(motion.astype(np.float32), ROTATIONS, source, target)
    assert resampled.dtype == np.float32
    times = np.arange(len(resampled)) * source / target
    for index in (0, len(resampled) // 2, len(resampled) - 1):
        first = min(int(times[index]), 5998)
        share = times[index] - first
        pair = Rotation.from_matrix(rotation_6d_to_matrix(motion[first : first + 2, :6]))
        wanted = Slerp([0, 1], pair)(min(share, 1)).as_matrix()[:2].reshape(6)
        assert np.allclose(resampled[index, :6], wanted, atol=1e-6)
        others = motion[first, 12:] * (1 - share) + motion[first + 1, 12:] * share
        assert np.allclose(resampled[index, 12:], others, atol=1e-5)


def test_resampling_a_long_take_needs_little_more_than_the_result():
    columns = np.arange(330).reshape(55, 6)
    motion = np.zeros((20_000, 433), np.float32)
    motion[:, columns[:, [0, 4]]] = 1
    tracemalloc.start()
    try:
        resampled = resample(motion, columns, 100, 30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < resampled.nbytes + 40e6


def test_columns_that_are_no_rotation_are_refused_by_rotation_and_frame():
    motion = random_motion(0, 3000)
    motion[2000, 6:12] = 1
    with pytest.raises(ValueError, match="rotation 1 span no plane in frame 2000"):
        resample(motion, ROTATIONS, 25, 30)
    assert len(resample(motion, ROTATIONS, 60, 30)) == 1500


@pytest.mark.parametrize(("source", "words"), [(0.2, "more than 100 frames"), (1e-9, "more than 100"), (1e12, "apart")])
def test_absurd_rates_are_refused_before_any_memory_is_taken(source, words):
    with pytest.raises(ValueError, match=words):
        resample(np.zeros((1000, 3)), NO_ROTATIONS, source, 30)


def test_whole_numbers_are_interpolated_to_fractions():
    resampled = resample(np.array([[0], [10], [20]]), NO_ROTATIONS, 10, 20)
    assert resampled.dtype == np.float32 and resampled[:, 0].tolist() == [0, 5, 10, 15, 20]
