"""Scores compared with the same sums computed plainly."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE
from ds_rvqvae.motion.kinematics import angle_between
from ds_rvqvae.motion.layout import Channels
from ds_rvqvae.motion.skeleton import builtin_skeleton, joint_places
from ds_rvqvae.tokenizer.scores.joints import STANDING_HEIGHT, STANDING_SPEED
from ds_rvqvae.tokenizer.scores.metrics import ScoreSums
from ds_rvqvae.tokenizer.scores.tables import score_table
from tests.motion.walking import legs
from tests.tokenizer.scores.scoring import CHAIN, CONFIG, LAYOUT, make_sums


def _third_differences(clip):
    return (clip[3:] - 3 * clip[2:-1] + 3 * clip[1:-2] - clip[:-3]).abs()


def test_scores_are_the_plain_means(model):
    torch.manual_seed(2)
    clips = [torch.randn(length, 14) for length in (16, 35, 50)]
    sums = make_sums(model)
    for clip in clips:
        sums.add(clip)
    scores = sums.scores("val")
    kept = [clip[: len(clip) // 4 * 4] for clip in clips]
    codes = [model.encode(clip[None])[0] for clip in kept]
    assert (scores["split"], scores["clips"], scores["frames"]) == ("val", 3, 16 + 32 + 48)
    for levels in (1, 2, 3):
        found = [model.decode(code[None, :, :levels])[0] for code in codes]
        differences = torch.cat([(a - b).abs() for a, b in zip(found, kept, strict=True)])
        steps = torch.cat([(a - b).diff(dim=0).abs() for a, b in zip(found, kept, strict=True)])
        angles = []
        for a, b in zip(found, kept, strict=True):
            for start in (0, 6):
                pair = [(x * sums.std + sums.mean)[:, start : start + 6] for x in (a, b)]
                angles.append(angle_between(*pair))
        row = scores["by_levels"][levels - 1]
        assert row["levels"] == levels
        assert row["l1"] == pytest.approx(differences.mean().item(), rel=1e-5)
        assert row["velocity_error"] == pytest.approx(steps.mean().item(), rel=1e-5)
        assert row["angle_error_deg"] == pytest.approx(torch.cat(angles).mean().item(), rel=1e-5)
        thirds = torch.cat([_third_differences(clip) for clip in found])
        assert row["jitter"] == pytest.approx(thirds.mean().item(), rel=1e-5)
    assert scores["jitter_truth"] == pytest.approx(
        torch.cat(list(map(_third_differences, kept))).mean().item(), rel=1e-5
    )
    used = torch.cat(codes)
    for level in range(3):
        assert scores["usage"][level] == len(used[:, level].unique()) / 8
    assert {key: scores[key] for key in ("l1", "angle_error_deg", "velocity_error")} == {
        key: scores["by_levels"][-1][key] for key in ("l1", "angle_error_deg", "velocity_error")
    }


def test_sums_of_two_ranks_add_up(model):
    torch.manual_seed(3)
    clips = [torch.randn(20, 14) for _ in range(4)]
    whole, first, second = make_sums(model), make_sums(model), make_sums(model)
    for index, clip in enumerate(clips):
        whole.add(clip)
        (second if index % 2 else first).add(clip)
    first.flat += second.flat
    merged, expected = first.scores("val"), whole.scores("val")
    assert merged["clips"] == expected["clips"] == 4 and merged["usage"] == expected["usage"]
    for mine, theirs in zip(merged["by_levels"], expected["by_levels"], strict=True):
        assert mine == pytest.approx(theirs)


def test_short_clips_are_left_out(model):
    sums = make_sums(model)
    assert sums.add(torch.randn(15, 14)) is None
    assert sums.add(torch.randn(17, 14)).shape == (16, 14)
    assert sums.scores("all")["clips"] == 1


def test_without_rotations_there_is_no_angle(model):
    sums = make_sums(model, (Channels("features", "feature", 0, 14),))
    sums.add(torch.randn(20, 14))
    scores = sums.scores("val")
    assert scores["angle_error_deg"] is None and scores["l1"] > 0
    assert " - " in score_table(scores)


def test_bits_are_counted_from_codes(model):
    sums = make_sums(model)
    sums.add(torch.randn(20, 14))
    scores = sums.scores("val")
    assert scores["code_rate"] == 7.5
    assert [row["bits_per_second"] for row in scores["by_levels"]] == [7.5 * 3, 7.5 * 6, 7.5 * 9]
    entropy = 7.5 * sum(math.log2(value) for value in scores["perplexity"])
    assert scores["entropy_bits_per_second"] == pytest.approx(entropy) and entropy <= scores["bits_per_second"] == 67.5


def test_units_of_another_normalisation(model):
    torch.manual_seed(3)
    clip = torch.randn(40, 14)
    plain, other = make_sums(model), make_sums(model)
    other = ScoreSums(model, LAYOUT, other.mean, other.std, 30.0, unit_std=other.std / 2)
    assert torch.equal(plain.add(clip), other.add(clip))
    own, scaled = plain.scores("val"), other.scores("val")
    for key in ("l1", "velocity_error", "jitter", "jitter_truth"):
        assert scaled[key] == pytest.approx(2 * own[key])
    assert scaled["angle_error_deg"] == pytest.approx(own["angle_error_deg"])


def test_joints_that_the_layout_cannot_move_are_left_out(model):
    sums = make_sums(model, skeleton=CHAIN)
    clip = torch.randn(32, 14)
    reconstruction = sums.add(clip)
    scores = sums.scores("val")
    assert (scores["skeleton"], scores["mpjpe_joints"]) == ("three joints", 1)  # the knee: the hip stays, the toe rests
    found, truth = ((frames * sums.std + sums.mean).numpy() for frames in (reconstruction, clip))
    places = [joint_places(frames, LAYOUT, CHAIN) for frames in (found, truth)]
    apart = np.linalg.norm(places[0] - places[1], axis=-1)
    assert scores["mpjpe_mm"] == pytest.approx(1000 * apart[:, 1].mean(), rel=1e-4)
    assert scores["by_levels"][-1]["mpjpe_mm"] == scores["mpjpe_mm"] != scores["by_levels"][0]["mpjpe_mm"]
    assert scores["root_error_mm"] is None and scores["foot_sliding"] is None


def test_a_skeleton_of_other_joints_gives_no_places(model):
    sums = make_sums(model, skeleton=builtin_skeleton())
    sums.add(torch.randn(32, 14))
    scores = sums.scores("val")
    assert scores["mpjpe_mm"] is None and scores["skeleton"] is None and scores["mpjpe_joints"] == 0


@pytest.fixture
def walk():
    return legs()


@pytest.fixture(params=["translation", "position"])
def walk_of_either_kind(walk, request):
    """The same walk with root columns that are velocities, and with positions."""
    layout, mean, std, motion = walk
    return (*layout[:-1], replace(layout[-1], kind=request.param)), mean, std, motion


def test_root_and_feet_are_those_of_the_places(walk_of_either_kind):
    layout, mean, std, motion = walk_of_either_kind
    torch.manual_seed(4)
    model = RVQVAE(57, CONFIG).eval()
    sums = ScoreSums(model, layout, mean, std, 30.0, builtin_skeleton())
    reconstruction = sums.add(motion)
    scores = sums.scores("val")
    skeleton = builtin_skeleton()
    feet = [skeleton.joint_names.index(name) for name in ("left_foot", "right_foot")]
    truth, found = (
        joint_places((frames * std + mean).numpy(), layout, skeleton) for frames in (motion, reconstruction)
    )
    root = np.linalg.norm(found[:, 0] - truth[:, 0], axis=-1)
    assert scores["root_error_mm"] == pytest.approx(1000 * root.mean(), rel=1e-3)
    height = truth[:, feet, 1]
    low = height <= height.min(axis=0) + STANDING_HEIGHT
    speeds = [np.linalg.norm(np.diff(places[:, feet][..., [0, 2]], axis=0), axis=-1) * 30 for places in (truth, found)]
    stands = low[1:] & low[:-1] & (speeds[0] < STANDING_SPEED)
    assert 10 < stands.sum() < stands.size
    assert scores["foot_sliding_truth"] == pytest.approx(100 * speeds[0][stands].mean(), rel=1e-3)
    assert scores["foot_sliding"] == pytest.approx(100 * speeds[1][stands].mean(), rel=1e-3)


def test_all_sums_of_two_ranks_add_up(walk):
    layout, mean, std, motion = walk
    model = RVQVAE(57, CONFIG).eval()
    whole, first, second = (ScoreSums(model, layout, mean, std, 30.0, builtin_skeleton()) for _ in range(3))
    for rank, clip in ((first, motion[:32]), (second, motion[32:])):
        rank.add(clip)
        whole.add(clip)
    first.flat += second.flat
    merged, expected = first.scores("val"), whole.scores("val")
    assert merged["by_levels"][-1] == pytest.approx(expected["by_levels"][-1])
    for key in ("jitter_truth", "root_error_mm", "foot_sliding", "foot_sliding_truth"):
        assert merged[key] == pytest.approx(expected[key]) and merged[key] > 0
