"""Errors of joints: degradations of known size show in their own measure, and alignment is scipy's."""

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation

from ds_rvqvae.motion.kinematics import joints_of
from ds_rvqvae.motion.layout import Channels, feature_layout
from ds_rvqvae.motion.skeleton import Skeleton
from ds_rvqvae.tokenizer.scores.joints import KEYS, JointErrors, procrustes_distances
from ds_rvqvae.tokenizer.scores.metrics import _mean
from tests.motion.recipes import BONES, columns_263, walk

FPS, FRAMES = 20.0, 201
NAMES = ("pelvis", "left_knee", "right_knee", "left_foot", "right_foot", "head")
STANDING = np.array([[0, 0.9, 0], [0.1, 0.5, 0], [-0.1, 0.5, 0], [0.1, 0.02, 0.1], [-0.1, 0.02, 0.1], [0, 1.6, 0]])
LAYOUT = (
    Channels("translation", "translation", 0, 3),
    *(Channels(name, "relative_position", 3 * index, 3 * index + 3) for index, name in enumerate(NAMES[1:], 1)),
)
SKELETON = Skeleton(NAMES, (-1, 0, 0, 1, 2, 0), STANDING.copy(), "made")


def columns(places):
    """Columns of joints `[T, 6, 3]` in the world: the root's velocities and height, and positions relative to it."""
    roots = places[:, 0].copy()
    roots[1:, [0, 2]] = np.diff(places[:, 0, [0, 2]], axis=0)
    roots[0, [0, 2]] = 0
    return torch.from_numpy(np.concatenate([roots, (places[:, 1:] - places[:, :1]).reshape(len(places), -1)], axis=1))


def errors_of(truth, found, layout=LAYOUT, skeleton=SKELETON):
    """Returns the scores of one clip, with `mpjpe_mm`; both are `[T, C]`."""
    joints = joints_of(layout, skeleton)
    sums = torch.zeros(JointErrors.SIZE, dtype=torch.float64)
    errors = JointErrors(joints, FPS, sums)
    places, found_places = joints.places(truth), joints.places(found)
    errors.add(truth, found, places, found_places)
    scores = dict.fromkeys(KEYS) | {key: _mean(*ratio) for key, ratio in errors.ratios(len(truth)).items()}
    assert tuple(scores) == KEYS
    apart = (found_places - places)[:, joints.measured].norm(dim=-1).mean().item()
    return {**scores, "mpjpe_mm": 1000 * apart}


@pytest.fixture
def standing():
    """A figure that stands still, `[T, 6, 3]`."""
    return np.tile(STANDING, (FRAMES, 1, 1))


def test_no_error_is_none(standing):
    scores = errors_of(columns(standing), columns(standing))
    assert all(value == pytest.approx(0, abs=1e-9) for value in scores.values()), scores


def test_joints_moved_by_ten_millimetres(standing):
    moved = standing.copy()
    moved[:, 1:, 0] += 0.01 * np.array([1, -1, 1, -1, 1])
    scores = errors_of(columns(standing), columns(moved))
    assert scores["mpjpe_mm"] == pytest.approx(10)
    assert scores["mpjpe_global_mm"] == pytest.approx(10 * 5 / 6)  # the root, which is among them, did not move
    assert 0 < scores["pa_mpjpe_mm"] < 10
    for key in ("root_error_mm", "root_drift_mm_per_s", "joint_jerk", "foot_sliding", "foot_skating"):
        assert scores[key] == pytest.approx(0, abs=1e-9), key


def test_a_figure_that_is_turned_and_larger_has_no_aligned_error(standing):
    turned = (standing - STANDING[0]) @ Rotation.from_euler("y", 40, degrees=True).as_matrix().T * 1.1 + STANDING[0]
    scores = errors_of(columns(standing), columns(turned))
    assert scores["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-6) and scores["mpjpe_mm"] > 50


def test_a_root_that_drifts(standing):
    """5 cm per second in x: after 10 s it is 0.5 m off, on average half of that."""
    drifted = standing.copy()
    drifted[..., 0] += 0.05 * (np.arange(FRAMES) / FPS)[:, None]
    scores = errors_of(columns(standing), columns(drifted))
    assert scores["root_error_mm"] == pytest.approx(250)
    assert scores["root_drift_mm_per_s"] == pytest.approx(50)
    assert scores["mpjpe_global_mm"] == pytest.approx(250)
    assert scores["mpjpe_mm"] == pytest.approx(0, abs=1e-9) and scores["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-9)
    assert scores["foot_sliding"] == pytest.approx(5)  # its feet slide with it
    assert scores["joint_jerk"] == pytest.approx(0, abs=1e-6)


def test_a_foot_that_slides(standing):
    slid = standing.copy()
    slid[:, 3, 2] += 0.05 * np.arange(FRAMES) / FPS
    scores = errors_of(columns(standing), columns(slid))
    assert scores["foot_sliding"] == pytest.approx(5 / 2) and scores["foot_sliding_truth"] == 0  # one foot of two
    assert scores["foot_skating"] == 0 and scores["root_error_mm"] == 0


@pytest.mark.parametrize(("speed", "share"), [(0.4, 0.0), (0.6, 1.0)])
def test_a_foot_that_skates_by_gmds_rule(standing, speed, share):
    slid = standing.copy()
    slid[:, 3, 2] += speed * np.arange(FRAMES) / FPS
    scores = errors_of(columns(standing), columns(slid))
    # The mean of five steps has zeros beyond the ends, as in the published code: the first and last are slower.
    ends = 4 if share else 0
    assert scores["foot_skating"] == pytest.approx((share * (FRAMES - 1) - ends) / (FRAMES - 1) if share else 0)


def test_frames_that_shake(standing):
    """1 mm to and fro from frame to frame: the third difference of a, -a, a, -a is 8 a."""
    shaken = standing.copy()
    shaken[:, :, 0] += 0.001 * (-1.0) ** np.arange(FRAMES)[:, None]
    scores = errors_of(columns(standing), columns(shaken))
    assert scores["joint_jerk"] == pytest.approx(0.008 * FPS**3, rel=1e-6) and scores["joint_jerk_truth"] == 0
    assert scores["mpjpe_mm"] == pytest.approx(0, abs=1e-9)


def test_alignment_is_that_of_scipy():
    rng = np.random.default_rng(0)
    truth, found = rng.normal(size=(2, 30, 22, 3))
    distances = procrustes_distances(torch.from_numpy(found), torch.from_numpy(truth)).numpy()
    compared = 0
    for own, other, distance in zip(truth, found, distances, strict=True):
        centred = own - own.mean(axis=0)
        first, second, _ = procrustes(own, other)
        if np.linalg.det((other - other.mean(axis=0)).T @ centred) > 0:  # scipy may also mirror
            expected = np.linalg.norm(first - second, axis=1) * np.linalg.norm(centred)
            np.testing.assert_allclose(distance, expected, atol=1e-9)
            compared += 1
        else:
            turn = Rotation.align_vectors(centred, other - other.mean(axis=0))[0].as_matrix()
            turned = (other - other.mean(axis=0)) @ turn.T
            scale = (turned * centred).sum() / np.square(turned).sum()
            np.testing.assert_allclose(distance, np.linalg.norm(scale * turned - centred, axis=1), atol=1e-6)
    assert 5 < compared < 25
    mirrored = found * [-1, 1, 1]
    assert (procrustes_distances(torch.from_numpy(mirrored), torch.from_numpy(found)) > 0.1).any()


def test_mpjpe_of_263_columns_is_over_22_joints_with_the_root():
    made = walk(5, 20)
    truth = columns_263(made)
    changed = truth.copy()
    changed[:, 4:7] += [0.022, 0, 0]  # one joint of 22
    layout = feature_layout(263)
    scores = errors_of(torch.from_numpy(truth), torch.from_numpy(changed), layout, None)
    assert scores["mpjpe_mm"] == pytest.approx(1.0) and scores["mpjpe_global_mm"] == pytest.approx(1.0)
    assert len(BONES) == 22 and scores["root_error_mm"] == 0


def test_one_or_two_joints_are_not_aligned():
    layout = tuple(part for part in LAYOUT if part.name in ("translation", "left_foot", "head"))
    layout = tuple(Channels(part.name, part.kind, 3 * place, 3 * place + 3) for place, part in enumerate(layout))
    motion = torch.randn(40, 9, dtype=torch.float64)
    scores = errors_of(motion, motion + 0.1, layout)
    assert scores["pa_mpjpe_mm"] is None and scores["mpjpe_mm"] > 0


def test_motion_that_is_not_finite_gives_no_number_and_no_crash(standing):
    broken = columns(standing).clone()
    broken[7, 5] = torch.nan
    scores = errors_of(columns(standing), broken)
    assert scores["pa_mpjpe_mm"] is None and scores["mpjpe_global_mm"] is None and scores["root_error_mm"] == 0
