"""EMAGE's motion autoencoder against numbers of the published class, its order of 6D, and parts of the body."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.transform import Rotation

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import SMPLX_JOINTS, select_columns, smplx_layout
from ds_rvqvae.motion.rotations import axis_angle_to_matrix, matrix_to_rotation_6d
from ds_rvqvae.tokenizer.scores.frechet import Moments, frechet_distance
from ds_rvqvae.tokenizer.scores.published.gestures import (
    GestureEncoder,
    GestureEvaluator,
    pooled_edges,
    smplx_edges,
)
from tests.tokenizer.scores.published.weights import gesture_weights


@pytest.fixture(scope="module")
def evaluator():
    evaluator = GestureEvaluator(gesture_weights())
    evaluator.check(smplx_layout(), "motion")
    return evaluator


def _motion(frames, seed=0):
    """Returns axis-angle rotations `[frames, 55, 3]` and the 433 columns made from them."""
    turns = np.random.default_rng(seed).normal(size=(frames, 55, 3))
    columns = np.zeros((frames, 433), np.float32)
    columns[:, :330] = matrix_to_rotation_6d(axis_angle_to_matrix(turns)).reshape(frames, 330)
    return turns, columns


def test_features_are_those_of_the_published_class():
    net = GestureEncoder()
    net.load_state_dict(gesture_weights(), strict=True)
    motion = torch.randn(2, 64, 330, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        features = net(motion)
    assert features.shape == (2, 4, 240)
    np.testing.assert_allclose(features[0, 0, :3], [-0.016369, 0.035385, -0.041553], atol=1e-5)
    np.testing.assert_allclose(features[1, 3, -3:], [-0.141664, -0.019866, -0.053538], atol=1e-5)


def test_edges_are_merged_as_in_the_published_weights():
    edges, counts = smplx_edges(), []
    for last in (False, False, False, True):
        groups, edges = pooled_edges(edges, last)
        counts.append(len(groups))
    assert counts == [35, 20, 20, 20]


def test_rotations_reach_the_net_as_the_first_two_rows_made_orthonormal(evaluator):
    turns, columns = _motion(32)
    rows = Rotation.from_rotvec(turns.reshape(-1, 3)).as_matrix()[:, :2].reshape(1, 32, 330)
    with torch.no_grad():
        expected = evaluator.encoder(torch.from_numpy(rows).float())[0]
    np.testing.assert_allclose(evaluator.features(columns), expected, atol=1e-5)
    np.testing.assert_allclose(evaluator.features(3 * columns), expected, atol=1e-5)


def test_a_part_of_the_body_makes_a_smaller_number_and_says_so():
    weights = {key: torch.ones_like(one) if "mask" in key else 4 * one for key, one in gesture_weights().items()}
    evaluator = GestureEvaluator(weights)
    evaluator.check(smplx_layout(), "motion")
    _, truth = _motion(320)
    _, other = _motion(320, seed=1)
    found = {}
    for part in ("upper", "whole"):
        covered, _ = select_columns(smplx_layout(), part)
        mixed = truth.copy()
        mixed[:, covered] = other[:, covered]
        evaluator.clear()
        evaluator.add(truth, mixed, covered)
        found[part] = evaluator.scores()
    assert (found["upper"]["fgd_joints"], found["whole"]["fgd_joints"]) == (13, 52)
    assert found["upper"]["evaluator_samples"] == 20 and found["upper"]["evaluator_dimensions"] == 240
    assert 0 < found["upper"]["fgd"] < found["whole"]["fgd"]


def test_clips_are_cut_to_multiples_of_32_and_motion_without_the_joints_is_refused(evaluator):
    assert evaluator.frames(31) is None
    assert [evaluator.frames(frames).stop for frames in (32, 63, 64)] == [32, 32, 64]
    lower = select_columns(smplx_layout(), "lower")[1]
    with pytest.raises(UserError, match=rf"motion: has no rotations of {SMPLX_JOINTS[3]}, but .* 55 joints"):
        GestureEvaluator(gesture_weights()).check(lower, "motion")
    evaluator.clear()
    with pytest.raises(UserError, match="no clip of 32 frames"):
        evaluator.scores()


def test_the_distance_is_that_of_emages_arithmetic_and_of_a_closed_form():
    random = np.random.default_rng(0)
    samples = random.normal(size=(50, 6)), 2 * random.normal(size=(40, 6)) + 1
    moments = Moments(), Moments()
    for one, values in zip(moments, samples, strict=True):
        one.add(values)
    first, second = (np.cov(values, rowvar=False) for values in samples)
    shift = samples[0].mean(axis=0) - samples[1].mean(axis=0)
    offset = 0.1  # large, so that it is seen
    root = sqrtm((first + offset * np.eye(6)) @ (second + offset * np.eye(6))).real
    expected = shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(root)
    assert frechet_distance(*moments, offset) == pytest.approx(expected)
    assert frechet_distance(*moments) != pytest.approx(expected, rel=1e-3)
    # Points at +-a on the axes have variances 2 a² / 3: the distance is |m|² plus the sum of 2 (a - b)² / 3.
    sides = np.array([[1.0, 2.0], [4.0, 3.0]])
    corners = [np.concatenate([np.diag(side), -np.diag(side)]) for side in sides]
    one, two = Moments(), Moments()
    one.add(corners[0])
    two.add(corners[1] + [0, 5])
    variance = 2 / (len(corners[0]) - 1)
    assert frechet_distance(one, two) == pytest.approx(25 + variance * ((sides[0] - sides[1]) ** 2).sum())
