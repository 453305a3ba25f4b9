import json
import os
from itertools import pairwise

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store.number_formats import NUMBER_FORMATS
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.data.store.shards import plan_shards
from ds_rvqvae.data.store.statistics import RunningStatistics
from ds_rvqvae.errors import UserError
from tests.data.motion import write_packed


@pytest.fixture
def store(tmp_path):
    return prepare_store(DataConfig(path=str(write_packed(tmp_path / "all.npz"))), tmp_path / "store")


def test_clips_are_views_of_the_memory_map(store):
    frames = store.shard_frames(0)
    assert isinstance(frames.base, np.memmap) and frames.shape == (120, 5)
    assert all(np.shares_memory(store.clip(name), frames) for name in store.clip_names)
    assert store.num_frames == 120 and store.hours == 120 / 30 / 3600
    assert np.array_equal(store.read(*store.rows("clip1")), store.clip("clip1"))


def test_a_bfloat16_store_rounds_as_torch_does(tmp_path):
    import torch

    values = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32) * 10.0 ** np.arange(-3, 2)
    file = write_packed(tmp_path / "all.npz", motion=values)
    for dtype in ("bfloat16", "float16"):
        store = prepare_store(DataConfig(path=str(file), store_dtype=dtype), tmp_path / dtype)
        rounded = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, dtype)).float().numpy()
        assert store.clip("clip2").dtype == np.float32 and np.array_equal(store.clip("clip2"), rounded[70:])
        assert store.nbytes == 120 * 5 * 2 and (store.folder / "shards/00000.npy").stat().st_size == 128 + 1200
    assert NUMBER_FORMATS["float16"].encode(np.array([1e9], np.float32))[0] == np.finfo(np.float16).max


def test_shards_take_about_the_same_bytes_and_every_clip_once():
    weights = np.random.default_rng(0).integers(0, 3 << 20, size=1000).tolist()
    plans = plan_shards([str(index) for index in range(1000)], weights, first=7)
    assert [name for plan in plans for name in plan.names] == [str(index) for index in range(1000)]
    assert [plan.index for plan in plans] == list(range(7, 7 + len(plans)))
    filled = [sum(weights[int(name)] for name in plan.names) for plan in plans]
    assert max(filled) <= 8 << 20 and all(sum(pair) > 8 << 20 for pair in pairwise(filled))
    assert [plan.names for plan in plan_shards(["a", "b"], [1 << 40, 5])] == [["a"], ["b"]]


def test_running_statistics_keep_their_digits_far_from_zero():
    frames = (1e4 + np.random.default_rng(0).normal(size=(40_000, 3)) * 0.1).astype(np.float32)
    running, parts = RunningStatistics(3), [RunningStatistics(3) for _ in range(7)]
    for part, rows in zip(parts, np.array_split(frames, 7), strict=True):
        part.add(rows)
        running.merge(RunningStatistics.from_json(json.loads(json.dumps(part.to_json()))))
    mean, std = running.mean_and_std()
    exact = frames.astype(np.float64)
    assert np.allclose(mean, exact.mean(axis=0), rtol=1e-7) and np.allclose(std, exact.std(axis=0), rtol=1e-6)
    assert running.count == 40_000
    assert np.array_equal(running.minimum, frames.min(axis=0)) and np.array_equal(running.maximum, frames.max(axis=0))


def _edit(**changes):
    def edit(folder):
        table = json.loads((folder / "store.json").read_text())
        (folder / "store.json").write_text(json.dumps({**table, **changes}))

    return edit


def _cut_frames(folder):
    os.truncate(folder / "shards/00000.npy", 1000)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "store.json").unlink(), "no prepared store"),
        (lambda folder: (folder / "store.json").write_text("{"), "damaged store"),
        (lambda folder: (folder / "store.json").write_bytes(b"\xff"), "damaged store"),
        (lambda folder: (folder / "store.json").write_text("[" * 100_000), "damaged store"),
        (lambda folder: (folder / "store.json").write_text("[]"), "not the table of a store"),
        (_edit(format="something else"), "not the table of a store"),
        (_edit(version=1), "version 1, this is version 2"),
        (_edit(clips=[]), "damaged store"),
        (_edit(clips=[{"name": "a", "stop": 120}, {"name": "b", "stop": 10}]), "damaged store"),
        (_edit(segments=[{"name": "clip0", "start": 0, "stop": 900, "split": "train"}]), "damaged store"),
        (_edit(segments=[{"name": "nobody", "start": 0, "stop": 9, "split": "train"}]), "damaged store"),
        (_edit(layout=[]), "damaged store"),
        (_edit(fps=None), "damaged store"),
        (_edit(fps=0), "fps is 0"),
        (_edit(dtype="float8"), "damaged store"),
        (_edit(mean=[0.0] * 3), "do not have as many"),
        (_edit(std=["x"] * 5), "damaged store"),
        (_edit(shards=[{"file": "../../etc/passwd", "rows": 120, "sha256": ""}]), "a shard is '../../etc/passwd'"),
        (_edit(shards=[{"file": "shards/00000.npy", "rows": 60, "sha256": ""}]), "do not hold whole clips"),
        (_cut_frames, "1,000 bytes, not those of 120 frames"),
        (lambda folder: (folder / "shards/00000.npy").unlink(), "No such file"),
    ],
)
def test_a_damaged_or_foreign_store_is_refused_in_one_line(store, damage, complaint):
    damage(store.folder)
    with pytest.raises(UserError, match=complaint) as refusal:
        open_store(store.folder)
    assert str(store.folder) in str(refusal.value) and "\n" not in str(refusal.value)
