"""A prepared store: clips are views of it, and one that is damaged or foreign is refused."""

import json
import os

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store.prepare import prepare_store
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
