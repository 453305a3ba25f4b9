import json
import logging
import mmap
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import cache as columns_cache
from ds_rvqvae.data.cache import KEPT, gather, selected_frames, will_need
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.data.store.store import open_store
from ds_rvqvae.host import Host
from tests.data.motion import write_packed

COLUMNS = np.array([3, 0, 4])
MEAN, STD = np.array([0.1, -2, 3], np.float32), np.array([0.3, 7, 1.7], np.float32)
SETUP = """
import os, resource, signal, sys
import numpy as np
from ds_rvqvae.data.cache import selected_frames
from ds_rvqvae.data.store.store import Store, open_store

store = open_store(sys.argv[1])
of_store = store, np.array([3, 0, 4]), np.array([0.1, -2, 3], np.float32), np.array([0.3, 7, 1.7], np.float32)
"""
"""The first lines of each separate process: the same selection as in this file."""


@pytest.fixture
def store(tmp_path):
    file = write_packed(tmp_path / "all.npz", motion=np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32))
    return prepare_store(DataConfig(path=str(file)), tmp_path / "store")


def select(store, std=STD):
    return selected_frames(store, COLUMNS, MEAN, std)


def start(store, code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SETUP + code, str(store.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_cache(cache: Path) -> list[Path]:
    return sorted((cache / "selected").iterdir())


def test_frames_are_those_of_the_store_normalised(store):
    frames = select(store)
    assert frames.dtype == np.float32 and frames.shape == (120, 3)
    wanted = np.concatenate([store.clip(name) for name in store.clip_names])[:, COLUMNS]
    wanted -= MEAN
    wanted /= STD
    assert np.array_equal(frames, wanted)
    base = frames
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap) and not frames.flags.writeable


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_windows_equal_those_normalised_by_themselves(demo_folder, tmp_path, dtype):
    config = DataConfig(path=str(demo_folder), body_part="lower_trans", window_size=48, store_dtype=dtype)
    data = MotionData(prepare_store(config, tmp_path / "store"), config)
    columns = data.columns
    frames = selected_frames(data.store, columns, data.mean, data.std)
    starts = data.window_starts()[::-1]
    windows = gather(frames, starts, 48, np.empty((len(starts), 48, data.in_features), np.float32))
    for window, first in zip(windows, starts.tolist(), strict=True):
        alone = data.store.read(first, first + 48).take(columns, axis=1)
        assert np.array_equal(window, (alone - data.mean) / data.std)


def test_small_blocks_give_the_same(store, monkeypatch, cache):
    whole = np.array(select(store))
    shutil.rmtree(cache / "selected")
    monkeypatch.setattr(columns_cache, "_BLOCK_BYTES", 7 * 20)
    assert np.array_equal(select(store), whole)


def test_what_is_there_is_used_again(store, cache):
    select(store)
    (folder,) = in_cache(cache)
    before = (folder / "frames.npy").stat()
    select(open_store(store.folder))
    assert (folder / "frames.npy").stat() == before
    other = select(store, STD * 2)
    assert np.array_equal(other * 2, select(store)) and len(in_cache(cache)) == 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY nonsense", None])
def test_a_damaged_one_is_made_again(store, cache, damage):
    whole = np.array(select(store))
    file = in_cache(cache)[0] / "frames.npy"
    content = file.read_bytes()
    file.unlink()  # not truncated in place, because `whole` is a map of it
    file.write_bytes(content[:-4] if damage is None else damage)
    assert np.array_equal(select(store), whole) and file.read_bytes() == content


def test_frames_of_an_older_store_are_removed_once_nobody_has_them_mapped(store, tmp_path, cache):
    before = select(store)
    kept = before.copy()
    (first,) = in_cache(cache)
    file = write_packed(tmp_path / "all.npz", motion=np.ones((120, 5), np.float32))
    new = prepare_store(DataConfig(path=str(file)), tmp_path / "store")
    assert not np.array_equal(select(new), kept) and np.array_equal(before, kept)
    assert first in in_cache(cache) and len(in_cache(cache)) == 2
    del before
    select(new, STD * 2)
    assert first not in in_cache(cache) and len(in_cache(cache)) == 2


def test_frames_of_a_store_that_is_gone_are_removed(store, tmp_path, cache):
    other = prepare_store(DataConfig(path=str(write_packed(tmp_path / "b.npz"))), tmp_path / "other")
    select(other)
    shutil.rmtree(other.folder)
    select(store)
    assert [json.loads((folder / "selection.json").read_text())["store"] for folder in in_cache(cache)] == [
        str(store.folder.resolve())
    ]


def test_the_cache_keeps_those_last_used(store, cache):
    ages = {}
    for number in range(KEPT):
        select(store, STD + number)
        (folder,) = set(in_cache(cache)) - set(ages)
        os.utime(folder / "selection.json", (number, number))
        ages[folder] = number
    assert len(in_cache(cache)) == KEPT
    select(store, STD)  # the oldest is used again
    select(store, STD + KEPT)
    removed = set(ages) - set(in_cache(cache))
    assert len(in_cache(cache)) == KEPT and {ages[folder] for folder in removed} == {1}


def test_what_does_not_fit_half_of_the_memory_stays_in_the_store(store, cache, monkeypatch, caplog):
    host = Host.read()
    monkeypatch.setattr(Host, "read", lambda: replace(host, memory_bytes=2 * 120 * 3 * 4 - 1))
    with caplog.at_level(logging.INFO):
        assert select(store) is None
    assert "too large for the memory" in caplog.text and not (cache / "selected").exists()
    monkeypatch.setattr(Host, "read", lambda: replace(host, memory_bytes=2 * 120 * 3 * 4))
    assert select(store) is not None


def test_a_cache_that_cannot_be_written_is_a_warning(store, cache, caplog):
    cache.mkdir(exist_ok=True)
    (cache / "selected").write_text("a file, no folder")
    assert select(store) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "training reads the store" in caplog.text and str(cache) in caplog.text


def test_a_disk_without_room_is_a_warning(store, cache, monkeypatch, caplog):
    monkeypatch.setattr(columns_cache, "SPARE_BYTES", 1 << 62)
    assert select(store) is None
    assert "GiB free on its disk" in caplog.text and not in_cache(cache)


@pytest.mark.processes
def test_a_disk_that_fills_up_is_a_warning_and_leaves_nothing(store, cache):
    code = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); print(selected_frames(*of_store))"
    process = start(store, code)
    said, warned = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "None\n") and "cannot be kept" in warned and "too large" in warned
    assert not in_cache(cache)


@pytest.mark.processes
def test_a_killed_process_leaves_nothing_that_counts(store, cache):
    code = """
read = Store.read
Store.read = lambda self, start, stop: os.kill(os.getpid(), signal.SIGKILL) if start else read(self, start, stop)
selected_frames(*of_store)
"""
    process = start(store, code)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (left,) = in_cache(cache)
    assert left.name.endswith(".building")
    assert select(store, STD * 2) is not None  # another selection removes it
    assert left not in in_cache(cache) and len(in_cache(cache)) == 1
    assert len(select(store)) == 120


@pytest.mark.processes
def test_many_processes_at_once_build_it_once(store, cache):
    code = """
reads, read = [], Store.read
Store.read = lambda self, start, stop: reads.append(start) or read(self, start, stop)
print("ready", flush=True)
sys.stdin.readline()
frames = selected_frames(*of_store)
print(len(reads), frames.sum())
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SETUP + code, str(store.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert all(process.stdout.readline() == "ready\n" for process in processes)
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(int(reads) for reads, _ in said) == [0, 0, 3] and len({total for _, total in said}) == 1
    assert len(in_cache(cache)) == 1


def test_windows_beyond_the_rows_are_refused():
    frames = np.arange(20, dtype=np.float32).reshape(10, 2)
    out = np.empty((2, 4, 2), np.float32)
    assert gather(frames, np.array([6, 0]), 4, out) is out
    assert np.array_equal(out, [frames[6:], frames[:4]])
    for starts in ([7, 0], [-1, 0]):
        with pytest.raises(IndexError, match="windows of 4 rows"):
            gather(frames, np.array(starts), 4, out)
    assert gather(frames, np.empty(0, np.int64), 4, out[:0]).shape == (0, 4, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_asking_for_windows_ahead_leaves_them_as_they_are(tmp_path, dtype):
    file = write_packed(tmp_path / "all.npz", lengths=(4000, 3000), width=9)
    store = prepare_store(DataConfig(path=str(file), store_dtype=dtype), tmp_path / "store")
    starts = np.array([0, 3936, 4000, 6936])
    before = [store.read(start, start + 64).copy() for start in starts.tolist()]
    will_need(store, starts, 64)
    for start, rows in zip(starts.tolist(), before, strict=True):
        assert np.array_equal(store.read(start, start + 64), rows)
