"""Fréchet distances against scipy's matrix root and against closed forms, and what encoders may not do."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.scores.frechet import FrechetFeatures, Moments, frechet_distance, frechet_warning


def _moments(*parts):
    moments = Moments()
    for part in parts:
        moments.add(part)
    return moments


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 6, 6))
    return rng.normal(size=(400, 6)) @ mixing[0] + 3, rng.normal(size=(300, 6)) @ mixing[1]


def test_moments_of_parts_are_those_of_the_whole(vectors):
    moments = _moments(vectors[0][:7], vectors[0][7:8], vectors[0][8:])
    assert moments.count == 400
    np.testing.assert_allclose(moments.mean, vectors[0].mean(axis=0))
    np.testing.assert_allclose(moments.covariance, np.cov(vectors[0], rowvar=False))


def test_distance_is_that_of_the_general_root(vectors):
    first, second = map(_moments, vectors)
    root = sqrtm(first.covariance @ second.covariance).real
    expected = ((first.mean - second.mean) ** 2).sum() + np.trace(first.covariance + second.covariance - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected) == frechet_distance(second, first)


def test_a_shift_counts_by_its_square_and_equals_are_apart_by_nothing(vectors):
    same = _moments(vectors[0])
    assert 0 <= frechet_distance(same, same) < 1e-6
    assert frechet_distance(same, _moments(vectors[0] + 2)) == pytest.approx(4 * 6)


def test_few_samples_give_a_finite_distance_and_a_warning():
    rng = np.random.default_rng(0)
    few = rng.normal(size=(5, 40))
    first, second = _moments(few), _moments(few[::-1] + 1e-9)
    distance = frechet_distance(first, second)
    assert 0 <= distance < 1e-6
    scores = {"frechet": distance, "frechet_samples": 5, "frechet_dimensions": 40}
    assert "5 samples in 40 dimensions" in frechet_warning(scores)
    assert frechet_warning({**scores, "frechet_samples": 41}) is None


class Steps(torch.nn.Module):
    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        return motion[:, ::2, :2]


class Pooled(torch.nn.Module):
    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        return motion.mean(1)


class Scalar(torch.nn.Module):
    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        return motion.mean()


class NotANumber(torch.nn.Module):
    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        return motion.mean(1) / torch.zeros(1)


class Wide(torch.nn.Module):
    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        return motion @ torch.ones(9, 2)


def _encoder(tmp_path, module, window=8):
    torch.jit.script(module()).save(str(tmp_path / "encoder.pt"))
    return FrechetFeatures(tmp_path / "encoder.pt", window)


def test_windows_follow_one_another_and_tails_are_left(tmp_path):
    clips = [torch.randn(27, 3), torch.randn(7, 3), torch.randn(8, 3)]
    features = _encoder(tmp_path, Pooled)
    for clip in clips:
        features.add(clip, clip + 1)
    scores = features.scores()
    assert (scores["frechet_samples"], scores["frechet_dimensions"], scores["frechet_window"]) == (4, 3, 8)
    assert scores["frechet"] == pytest.approx(3, rel=1e-4)
    expected = torch.stack([clips[0][start : start + 8].mean(0) for start in (0, 8, 16)] + [clips[2].mean(0)])
    np.testing.assert_allclose(features.truth.mean, expected.mean(0).numpy(), rtol=1e-4, atol=1e-6)
    features.clear()
    assert features.truth.count == features.found.count == 0


def test_every_step_of_an_encoder_that_keeps_time_is_a_sample(tmp_path):
    features = _encoder(tmp_path, Steps)
    features.add(torch.randn(16, 3), torch.randn(16, 3))
    assert features.scores()["frechet_samples"] == 8 and features.scores()["frechet_dimensions"] == 2


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (Scalar, r"returns \[\] for motion \[2, 8, 3\]"),
        (NotANumber, "NaN or infinite"),
        (Wide, r"does not take motion \[2, 8, 3\]"),
    ],
)
def test_encoders_that_do_not_fit_are_refused_in_one_line(tmp_path, module, complaint):
    features = _encoder(tmp_path, module)
    with pytest.raises(UserError, match=complaint) as refusal:
        features.add(torch.randn(16, 3), torch.randn(16, 3))
    assert "\n" not in str(refusal.value) and "encoder.pt" in str(refusal.value)


def test_no_window_is_no_distance(tmp_path):
    features = _encoder(tmp_path, Pooled)
    features.add(torch.randn(7, 3), torch.randn(7, 3))
    with pytest.raises(UserError, match="--feature_window 8: 0 samples"):
        features.scores()


def test_files_that_are_no_torchscript_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("no archive")
    for name, complaint in (
        ("weights.pt", "not a TorchScript"),
        ("text.pt", "not a TorchScript"),
        ("none.pt", "no such file"),
    ):
        with pytest.raises(UserError, match=f"{name}: {complaint}") as refusal:
            FrechetFeatures(tmp_path / name, 8)
        assert "\n" not in str(refusal.value)
