"""Scores of a split: complete clips, normalised, each counted once; on which figure, and of which split."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ds_rvqvae import RVQVAE
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.tokenizer.scores.evaluation import evaluate_split, held_out_split, skeleton_of
from ds_rvqvae.tokenizer.scores.frechet import FrechetFeatures
from tests.data.formats.bvh_files import write_bvh_motion
from tests.data.motion import write_packed

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=2)


def _packed(tmp_path, splits=("train", "val", "train"), name="packed.npz"):
    motion = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    file = write_packed(tmp_path / name, (40, 30, 50), motion=motion, split=np.array(splits))
    return MotionData.open(DataConfig(path=str(file)))


def _model(width=5):
    torch.manual_seed(0)
    return RVQVAE(width, CONFIG).eval().requires_grad_(False)


def test_scores_are_those_of_the_splits_clips_normalised(tmp_path):
    data, model = _packed(tmp_path), _model()
    scores = evaluate_split(model, data, "train", "cpu")
    assert (scores["split"], scores["clips"], scores["frames"]) == ("train", 2, 40 + 48)
    errors = []
    for name, frames in (("clip0", 40), ("clip2", 48)):
        motion = torch.from_numpy((data.store.clip(name)[:frames] - data.mean) / data.std)
        errors.append((model.decode(model.encode(motion[None]))[0] - motion).abs())
    assert scores["l1"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)


def test_units_of_another_normalisation_scale_the_error(tmp_path):
    data, model = _packed(tmp_path), _model()
    own = evaluate_split(model, data, "all", "cpu")
    half = evaluate_split(model, data, "all", "cpu", unit_std=2 * data.std)
    assert half["l1"] == pytest.approx(own["l1"] / 2) and own["frames"] == half["frames"] == 40 + 28 + 48


def test_ranks_share_out_the_clips(tmp_path):
    data, model = _packed(tmp_path), _model()
    # A group of this process alone, whose sums are each rank's own.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parts = [evaluate_split(model, data, "all", "cpu", rank, 2) for rank in (0, 1)]
    finally:
        dist.destroy_process_group()
    assert [(part["clips"], part["frames"]) for part in parts] == [(2, 40 + 48), (1, 28)]


def test_features_see_the_motion_in_its_own_units_and_of_one_rank_only(tmp_path):
    data, model = _packed(tmp_path), _model()
    encoder = torch.nn.Conv1d(16, 2, 5).requires_grad_(False)
    torch.jit.trace(encoder, torch.zeros(1, 16, 5)).save(str(tmp_path / "encoder.pt"))
    features = FrechetFeatures(tmp_path / "encoder.pt", 16)
    scores = evaluate_split(model, data, "all", "cpu", features=features)
    assert scores["frechet"] > 0 and scores["frechet_window"] == 16
    starts = [0, 16, 40, 70, 86, 102]  # clips of 40, 30 and 50 frames hold two, one and three windows
    motion = np.concatenate([data.store.clip(name) for name in data.store.clip_names])
    windows = torch.from_numpy(np.stack([motion[start : start + 16] for start in starts]))
    np.testing.assert_allclose(features.truth.mean, encoder(windows).mean(), atol=1e-5)
    with pytest.raises(ValueError, match="measured on one rank"):
        evaluate_split(model, data, "all", "cpu", 0, 2, features=features)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "val", "test"), "val"),
        (("train", "test", "train"), "test"),
        (("train", "train", "train"), "train"),
    ],
)
def test_the_split_held_out_is_val_else_test_else_train(tmp_path, splits, expected):
    assert held_out_split(_packed(tmp_path, splits)) == expected


def test_the_figure_is_that_of_the_files_else_the_built_in_one(tmp_path):
    assert skeleton_of(_packed(tmp_path)).name == "built-in"
    for seed in range(2):
        write_bvh_motion(tmp_path / "walks" / f"{seed}.bvh", frames=60, seed=seed)
    own = skeleton_of(MotionData.open(DataConfig(path=str(tmp_path / "walks"))))
    assert own.name == "walks" and "LeftArm" in own.joint_names
