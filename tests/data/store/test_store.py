"""A prepared store: clips are views of it, and one that is damaged or foreign is refused."""

import json
import os

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.data.store.table import NUMBER_FORMATS
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


@pytest.mark.parametrize(
    ("name", "kind", "values", "bits"),
    [
        ("float32", "<f4", [1.0, -2.5], None),
        # One sign bit, 5 of the exponent around 15, 10 of the mantissa.
        ("float16", "<f2", [1.0, -2.5, 65504.0], [0x3C00, 0xC100, 0x7BFF]),
        # The upper half of float32: 1 + 1/256 lies between two numbers, and the even one is taken, as of 1 + 3/256.
        (
            "bfloat16",
            "<u2",
            [1.0, -2.5, 1 + 1 / 256, 1 + 3 / 256, 1 + 1.1 / 256],
            [0x3F80, 0xC020, 0x3F80, 0x3F82, 0x3F81],
        ),
    ],
)
def test_numbers_are_stored_as_these_bits(name, kind, values, bits):
    numbers = NUMBER_FORMATS[name]
    there = np.array(values, np.float32)
    stored = numbers.encode(there)
    assert numbers.stored == np.dtype(kind) == stored.dtype and numbers.decode(stored).dtype == np.float32
    if bits is None:
        assert stored is there
    else:
        assert stored.view(np.uint16).tolist() == bits


def test_large_numbers_become_the_largest_and_stay_finite():
    huge = np.array([3.4e38, -3.4e38], np.float32)
    for name, largest in (("float16", 65504.0), ("bfloat16", 255 / 128 * 2.0**127)):
        numbers = NUMBER_FORMATS[name]
        assert numbers.decode(numbers.encode(huge)).tolist() == [largest, -largest]
