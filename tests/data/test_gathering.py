import numpy as np
import pytest
import torch

from ds_rvqvae.config.data import AugmentConfig, DataConfig
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.gathering import Gatherer
from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.data.order import BatchOrder
from ds_rvqvae.errors import UserError
from tests.data.motion import write_beat2_folder, write_packed

AUGMENT = AugmentConfig(mirror=0.5, time_scale=0.3, noise=0.01, offset=0.1, scale=0.1, mix=0.5, mix_windows=3)


@pytest.fixture
def folder(tmp_path):
    return write_beat2_folder(tmp_path / "motion", ("1_a", "1_b", "2_c"), frames=90)


def open_data(path, **settings) -> MotionData:
    return MotionData.open(DataConfig(path=str(path), window_size=32, window_stride=8, split="time", **settings))


def batches(data, *, steps=4, world_size=1) -> list[np.ndarray]:
    """Returns the global batches of some steps."""
    order, found = BatchOrder.of(data, 6, 3, world_size), []
    for rank in range(world_size):
        with BatchLoader(data, order, rank=rank, world_size=world_size, num_workers=0) as loader:
            found.append([torch.cat(loader.next()).numpy() for _ in range(steps)])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def test_samples_are_the_same_out_of_the_cache_and_out_of_the_store(folder, cache, monkeypatch):
    kept = batches(open_data(folder, augment=AUGMENT))
    assert any("selected" in str(file) for file in cache.rglob("frames.npy"))
    monkeypatch.setattr("ds_rvqvae.data.gathering.selected_frames", lambda *_: None)
    for one, other in zip(kept, batches(open_data(folder, augment=AUGMENT)), strict=True):
        assert np.array_equal(one, other)


def test_what_is_drawn_does_not_depend_on_the_number_of_ranks(folder):
    alone, plain = batches(open_data(folder, augment=AUGMENT)), batches(open_data(folder))
    for world_size in (2, 3):
        together = batches(open_data(folder, augment=AUGMENT), world_size=world_size)
        assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    assert not any(np.allclose(one, other, atol=0.1) for one, other in zip(alone, plain, strict=True))


def test_no_sample_reaches_beyond_its_training_part(tmp_path):
    # Each value is its row; the last 20 % of the clip are held out.
    data = open_data(write_packed(tmp_path / "all.npz", (200,)), augment=AugmentConfig(time_scale=0.5))
    data.use_normalisation(np.zeros(5, np.float32), np.ones(5, np.float32))
    gatherer, starts = Gatherer(data, seed=0), data.training_windows[32]
    starts = np.repeat(starts, 20)
    out = np.empty((len(starts), 32, 5), np.float32)
    gatherer.gather(starts, np.arange(len(starts)), 32, out)
    speeds = np.diff(out[:, :, 0], axis=1).mean(axis=1)
    assert out[:, :, 0].max() <= 159 and speeds.min() < 0.6 and speeds.max() > 1.4
    assert np.allclose(out[:, 0, 0], starts)


def test_scoring_sees_no_augmentation(folder):
    plain, augmented = open_data(folder), open_data(folder, augment=AUGMENT)
    for segment in plain.segments("val"):
        assert np.array_equal(plain.normalised(segment), augmented.normalised(segment))


def test_columns_that_cannot_be_mirrored_are_refused_before_training(tmp_path):
    data = open_data(write_packed(tmp_path / "all.npz"), augment=AugmentConfig(mirror=0.5))
    with pytest.raises(UserError, match="mirror"):
        data.count_training_windows()
