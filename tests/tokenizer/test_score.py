"""Scores against the same sums done plainly, and angles against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ds_rvqvae import RVQVAE
from ds_rvqvae.data.layout import Channels
from ds_rvqvae.profile import ModelConfig
from ds_rvqvae.tokenizer.geometry import angle_between, matrices_from_6d
from ds_rvqvae.tokenizer.score import ScoreSums
from ds_rvqvae.tokenizer.tables import score_table

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=3)
LAYOUT = (
    Channels("hip", "rotation_6d", 0, 6),
    Channels("knee", "rotation_6d", 6, 12),
    Channels("rest", "feature", 12, 14),
)


def _rows(rotations: Rotation) -> torch.Tensor:
    return torch.from_numpy(rotations.as_matrix()[:, :2].reshape(-1, 6))


def test_angles_are_scipys():
    first, second = Rotation.random(500, random_state=0), Rotation.random(500, random_state=1)
    expected = np.rad2deg((first * second.inv()).magnitude())
    np.testing.assert_allclose(angle_between(_rows(first), _rows(second)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 1.0, 90.0, 179.9])
def test_small_and_large_angles_keep_their_digits(degrees):
    turned = Rotation.from_rotvec([[0, math.radians(degrees), 0]])
    angle = angle_between(_rows(turned).float(), _rows(Rotation.identity(1)).float())
    assert angle.item() == pytest.approx(degrees, rel=1e-3, abs=1e-5)


def test_gram_schmidt_gives_rotations():
    matrices = matrices_from_6d(torch.randn(50, 6, dtype=torch.float64))
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(50, dtype=torch.float64))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RVQVAE(14, CONFIG).eval()


def _sums(model, layout=LAYOUT):
    torch.manual_seed(1)
    return ScoreSums(model, layout, torch.randn(14), torch.rand(14) + 0.5)


def test_scores_are_the_plain_means(model):
    torch.manual_seed(2)
    clips = [torch.randn(length, 14) for length in (16, 35, 50)]
    sums = _sums(model)
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
    used = torch.cat(codes)
    for level in range(3):
        assert scores["usage"][level] == len(used[:, level].unique()) / 8
    assert {key: scores[key] for key in ("l1", "angle_error_deg", "velocity_error")} == {
        key: scores["by_levels"][-1][key] for key in ("l1", "angle_error_deg", "velocity_error")
    }


def test_sums_of_two_ranks_add_up(model):
    torch.manual_seed(3)
    clips = [torch.randn(20, 14) for _ in range(4)]
    whole, first, second = _sums(model), _sums(model), _sums(model)
    for index, clip in enumerate(clips):
        whole.add(clip)
        (second if index % 2 else first).add(clip)
    first.flat += second.flat
    merged, expected = first.scores("val"), whole.scores("val")
    assert merged["clips"] == expected["clips"] == 4 and merged["usage"] == expected["usage"]
    for mine, theirs in zip(merged["by_levels"], expected["by_levels"], strict=True):
        assert mine == pytest.approx(theirs)


def test_short_clips_are_left_out(model):
    sums = _sums(model)
    assert sums.add(torch.randn(15, 14)) is None
    assert sums.add(torch.randn(17, 14)).shape == (16, 14)
    assert sums.scores("all")["clips"] == 1


def test_without_rotations_there_is_no_angle(model):
    sums = _sums(model, (Channels("features", "feature", 0, 14),))
    sums.add(torch.randn(20, 14))
    scores = sums.scores("val")
    assert scores["angle_error_deg"] is None and scores["l1"] > 0
    assert " - " in score_table(scores)


def test_table_shows_every_level_and_what_training_changed(model):
    sums = _sums(model)
    sums.add(torch.randn(20, 14))
    scores = sums.scores("val")
    lines = score_table(scores, scores).splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["1", "2", "3"]
    assert f"{scores['l1']:.4f}" in lines[2]
