"""Checks of a store: damage is found, and its file and clips are named."""

import os

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store import verify
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.data.store.verify import Damage, verify_store
from tests.data.motion import write_packed

HEADER = 128
"""Bytes in a shard before its numbers."""


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Three clips of 40, 30 and 50 frames and five columns, in shards of two clips and of one."""
    data = write_packed(tmp_path / "data.npz")
    monkeypatch.setattr("ds_rvqvae.data.store.shards.SMALLEST_SHARD", data.stat().st_size * 2 // 3)
    return prepare_store(DataConfig(path=str(data)), tmp_path / "store")


def overwrite(store, shard, row, content):
    with (store.folder / store.shards[shard].file).open("r+b") as stream:
        stream.seek(HEADER + row * 5 * 4)
        stream.write(content)


def test_a_whole_store_has_no_damage(store):
    assert [shard.rows for shard in store.shards] == [70, 50]
    assert verify_store(store) == []


def test_a_changed_number_is_found_by_its_checksum(store):
    overwrite(store, 0, 3, np.float32(77).tobytes())
    (damage,) = verify_store(store)
    assert damage == Damage("shards/00000.npy", ["its checksum differs from the one in the table"], ["clip0", "clip1"])
    assert str(damage) == "shards/00000.npy: its checksum differs from the one in the table (2 clips: clip0, clip1)"


@pytest.mark.parametrize("block", [1, 7 * 20, 4 << 20])
def test_numbers_that_are_none_are_placed_by_clip_and_frame_however_much_is_read_at_a_time(store, monkeypatch, block):
    monkeypatch.setattr(verify, "_BLOCK", block)
    for row in (38, 39, 45):
        overwrite(store, 0, row, np.float32(np.nan).tobytes())
    overwrite(store, 1, 49, np.float32(-np.inf).tobytes())
    first, second = verify_store(store)
    assert first.problems[0] == "NaN or infinite values in frames 38-39 of clip0 and 1 frames of 1 more clips"
    assert second.problems[0] == "NaN or infinite values in frames 49 of clip2"
    assert str(second).endswith("(clip clip2)")


def test_shards_cut_short_or_gone_are_told_in_their_order(store):
    first, second = (store.folder / shard.file for shard in store.shards)
    os.truncate(first, HEADER + 69 * 20)
    second.unlink()
    found = verify_store(open_store(store.folder, check_files=False))
    assert [damage.file for damage in found] == ["shards/00000.npy", "shards/00001.npy"]
    assert found[0].problems == ["1,508 bytes, 20 too few", "its checksum differs from the one in the table"]
    assert found[1].problems == ["cannot be read: No such file or directory"]


def test_facts_and_report_are_held_against_the_table(store):
    facts = store.folder / "shards" / "00001.json"
    facts.write_text(facts.read_text().replace("clip2", "clip3"))
    (store.folder / "report.json").write_text("{")
    found = verify_store(store)
    assert [damage.file for damage in found] == ["shards/00001.json", "report.json"]
    assert found[0].problems == ["does not agree with the store's table"]
