"""Features at another frame rate."""

import numpy as np
import pytest

from ds_rvqvae.motion.layout import Channels, feature_layout
from ds_rvqvae.motion.rates import at_rate
from ds_rvqvae.motion.rotations import axis_angle_to_matrix, matrix_to_rotation_6d, translation_positions

LAYOUT = (Channels("hips", "rotation_6d", 0, 6), Channels("translation", "translation", 6, 9))


def _walk(frames, fps):
    """Returns a turn of 90 degrees per second and a walk of 2 m/s along x, 1 m above the ground."""
    turns = axis_angle_to_matrix(np.arange(frames)[:, None] / fps * [0.0, np.pi / 2, 0.0])
    way = np.tile([2.0 / fps, 1.0, 0.0], (frames, 1))
    return np.hstack([matrix_to_rotation_6d(turns), way]).astype(np.float32)


@pytest.mark.parametrize(("fps", "target"), [(30.0, 120.0), (30.0, 50.0), (60.0, 30.0)])
def test_turns_and_ways_are_those_of_the_other_rate(fps, target):
    found = at_rate(_walk(31, fps), LAYOUT, fps, target)
    expected = _walk(len(found), target)
    np.testing.assert_allclose(found[:, :6], expected[:, :6], atol=1e-5)
    np.testing.assert_allclose(translation_positions(found[:, 6:]), translation_positions(expected[:, 6:]), atol=1e-5)
    assert len(found) == int(30 * target / fps) + 1


def test_the_last_frame_is_held_to_the_sources_length_and_the_root_stands():
    found = at_rate(_walk(10, 30.0), LAYOUT, 30.0, 120.0, 40)
    assert len(found) == 40 and (found[37:, :6] == found[36, :6]).all()
    np.testing.assert_allclose(found[37:, 6:], [[0, 1, 0]] * 3)
    assert len(at_rate(_walk(10, 30.0), LAYOUT, 30.0, 120.0, 36)) == 36
    with pytest.raises(ValueError, match="37 frames at 120 fps, but the source has 60"):
        at_rate(_walk(10, 30.0), LAYOUT, 30.0, 120.0, 60)


def test_columns_of_unknown_meaning_are_not_resampled():
    with pytest.raises(ValueError, match="never resampled"):
        at_rate(np.zeros((10, 5), np.float32), feature_layout(5), 30.0, 60.0)
    features = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    np.testing.assert_array_equal(at_rate(features, feature_layout(5), 20.0, 20.0, 10), features)
