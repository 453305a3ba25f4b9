import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store import packing, shards
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.errors import UserError
from tests.data.formats.bvh_files import write_bvh_motion
from tests.data.motion import beat2_arrays, write_beat2, write_beat2_folder, write_lists, write_matrices
from tests.replacing import WAYS, files_of, replace_by, touch_all


@pytest.fixture
def small_shards(monkeypatch):
    """Makes a few clips fill a shard, and processes start for any amount of work."""
    monkeypatch.setattr(shards, "SMALLEST_SHARD", 1 << 19)
    monkeypatch.setattr(packing, "_WORTH_PROCESSES", 0)


def contents(folder: Path) -> dict[str, str]:
    """Returns the checksum of every file of a store."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def pack(path, out, **settings):
    arguments = {key: settings.pop(key) for key in ("append", "strict", "workers") if key in settings}
    return prepare(DataConfig(path=str(path), **settings), out, **arguments)


@pytest.mark.processes
def test_the_number_of_processes_changes_no_byte(tmp_path, small_shards):
    folder = write_beat2_folder(tmp_path / "motion", tuple(f"{index}_a" for index in range(12)), frames=200)
    write_beat2(folder / "5_bad.npz", poses=None)
    one, three = pack(folder, tmp_path / "one", workers=1), pack(folder, tmp_path / "three", workers=3)
    assert three.packed.workers == 3 and len(one.store.shards) > 3
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_statistics_are_those_of_the_frames_that_train(tmp_path, small_shards):
    folder = write_beat2_folder(tmp_path / "motion", tuple(f"{index}_a" for index in range(9)), frames=200)
    for split in ("hash", "time"):
        store = pack(folder, tmp_path / split, workers=1, split=split).store
        parts = [store.clip(part.name)[part.start : part.stop] for part in store.segments if part.split == "train"]
        frames = np.concatenate(parts).astype(np.float64)
        assert np.allclose(store.mean, frames.mean(axis=0), atol=1e-6)
        assert np.allclose(store.std, frames.std(axis=0), atol=1e-6)


_PREPARE = """
import sys
from pathlib import Path
from ds_rvqvae.data.store import packing, shards
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.config.data import DataConfig
shards.SMALLEST_SHARD, packing._WORTH_PROCESSES = 1 << 19, 0
if __name__ == "__main__":
    prepare(DataConfig(path=sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


@pytest.mark.processes
def test_a_store_killed_at_any_time_ends_byte_for_byte_as_an_unbroken_one(tmp_path):
    folder = write_beat2_folder(tmp_path / "motion", tuple(f"{index}_a" for index in range(12)), frames=400)
    script = tmp_path / "prepare.py"
    script.write_text(_PREPARE)
    whole = tmp_path / "whole"
    command = [sys.executable, str(script), str(folder)]
    subprocess.run([*command, str(whole), "1"], check=True)
    out, kills, chance = tmp_path / "store", 0, random.Random(0)
    shards_so_far = tmp_path / ".store.building/new/shards"
    while True:
        seen = set(shards_so_far.glob("*"))
        process = subprocess.Popen([*command, str(out), str(1 + kills % 2)])
        while process.poll() is None and (kills == 6 or set(shards_so_far.glob("*")) <= seen):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 3 and contents(out) == contents(whole)
    time.sleep(0.5)
    assert not list(tmp_path.glob(".*building*"))


def test_what_an_earlier_run_packed_is_not_packed_again(tmp_path, small_shards, monkeypatch):
    folder = write_beat2_folder(tmp_path / "motion", tuple(f"{index}_a" for index in range(12)), frames=200)
    full, packed_names = shards.ShardPacker.pack, []

    def pack_two(packer, plan, advance=lambda frames: None):
        if len(packed_names) == 2:
            raise OSError(28, "No space left on device")
        packed_names.append(plan.index)
        return full(packer, plan, advance)

    monkeypatch.setattr(shards.ShardPacker, "pack", pack_two)
    with pytest.raises(UserError, match=r"cannot be written to .*store: No space left"):
        pack(folder, tmp_path / "store", workers=1)
    assert not (tmp_path / "store").exists()
    monkeypatch.setattr(shards.ShardPacker, "pack", full)
    done = pack(folder, tmp_path / "store", workers=1)
    assert 0 < done.packed.kept_clips < 12 and done.packed.work.clips == 12 - done.packed.kept_clips
    assert contents(tmp_path / "store") == contents(pack(folder, tmp_path / "again", workers=1).store.folder)


def test_a_damaged_half_of_an_unfinished_store_is_packed_again(tmp_path, small_shards, monkeypatch):
    folder = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b", "1_c", "1_d"), frames=200)
    monkeypatch.setattr("ds_rvqvae.data.store.builder.StoreBuilder.finish", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "store", workers=1)
    monkeypatch.undo()
    (tmp_path / ".store.building/new/shards/00000.json").write_text("{")
    os.truncate(tmp_path / ".store.building/new/shards/00000.npy", 5)
    (tmp_path / ".store.building/new/shards/stray").write_text("")
    assert pack(folder, tmp_path / "store", workers=1).store.clip_names == ["1_a", "1_b", "1_c", "1_d"]
    assert contents(tmp_path / "store").keys() == contents(pack(folder, tmp_path / "again").store.folder).keys()


def _interrupted(*_):
    raise KeyboardInterrupt


def test_clips_are_appended_without_a_rebuild(tmp_path):
    first = write_beat2_folder(tmp_path / "first", ("1_a", "1_b", "2_c"))
    second = write_beat2_folder(tmp_path / "second", ("3_d",), frames=90)
    (second / "2_c.npz").write_bytes((first / "2_c.npz").read_bytes())
    out = tmp_path / "store"
    before = pack(first, out).store
    shard = contents(out)["shards/00000.npy"]
    grown = pack(second, out, append=True)
    assert grown.store.clip_names == ["1_a", "1_b", "2_c", "3_d"] and grown.packed.work.clips == 1
    assert len(grown.store.clip("2_c")) == 60 and len(grown.store.clip("3_d")) == 90
    assert contents(out)["shards/00000.npy"] == shard and before.clip("1_b").shape == (60, 433)
    assert grown.store.sources == [str(first), str(second)]
    frames = np.concatenate(
        [grown.store.clip(part.name)[part.start : part.stop] for part in grown.store.segments if part.split == "train"]
    )
    assert np.allclose(grown.store.mean, frames.mean(axis=0, dtype=float), atol=1e-6)
    assert grown.store.report()["clips"] == 4
    again = pack(second, out, append=True)
    assert again.packed.work.clips == 0 and again.store.fingerprint == grown.store.fingerprint
    with pytest.raises(UserError, match="holds clips of 2 data sets"):
        pack(second, out)
    with pytest.raises(UserError, match=r"prepared with rvqvae.data.fps 30.0, not 15.0; append with the same"):
        pack(second, out, append=True, fps=15.0)


def test_appending_keeps_the_official_split_and_what_was_said(tmp_path):
    names = tuple(f"{number:06}" for number in range(6))
    first = write_matrices(tmp_path / "first" / "new_joint_vecs", names, 263).parent
    write_lists(first, train=" ".join(names[:4]), val=names[4], test=names[5])
    write_lists(first / "old", test=names[0])
    out = tmp_path / "store"
    before = pack(first, out).store
    second = write_matrices(tmp_path / "second", tuple(f"M{name}" for name in names), 263)
    grown = pack(second, out, append=True).store
    splits = {part.name: part.split for part in grown.segments}
    assert {part.name: part.split for part in before.segments}.items() <= splits.items()
    assert all(splits[f"M{name}"] == splits[name] for name in names)
    trains = np.concatenate([grown.clip(name) for name, split in splits.items() if split == "train"])
    assert np.allclose(grown.mean, trains.mean(axis=0, dtype=float), atol=1e-6)
    notes = list(grown.report()["notes"])
    assert notes[: len(before.report()["notes"])] == list(before.report()["notes"])
    assert notes[-1].startswith(
        "no list of splits names 6 of 12 clips, such as M000000: they get the split of the listed"
    )
    again = list(pack(second, out, append=True).store.report()["notes"])
    assert again == notes


@pytest.mark.parametrize("way", WAYS)
def test_appending_says_that_a_file_of_the_store_was_replaced(tmp_path, way):
    first, out = write_beat2_folder(tmp_path / "first", ("1_a", "1_b", "2_c")), tmp_path / "store"
    pack(first, out)
    write_beat2(first / "3_d.npz")
    replace_by(way, first / "1_b.npz", write_beat2(tmp_path / "other.npz", seed=9).read_bytes())
    touch_all(first)
    before = contents(out)
    with pytest.raises(UserError, match=r"has other content under the name of 1_b\.npz; prepare the store again"):
        pack(first, out, append=True)
    assert contents(out) == before
    assert files_of(pack(first, out)) == (2, 2)


def test_appending_to_a_store_that_does_not_know_contents_says_that(tmp_path):
    first, out = write_beat2_folder(tmp_path / "first", ("1_a", "1_b")), tmp_path / "store"
    pack(first, out)
    _forget_contents(out)
    grown = pack(write_beat2_folder(first, ("3_d",)), out, append=True)
    assert grown.store.clip_names == ["1_a", "1_b", "3_d"]
    assert grown.notes[0].startswith("2 clips of the store were compared by name only")
    assert files_of(pack(first, out)) == (2, 1)


def _forget_contents(store):
    """Turns a store into one from before shards recognised their files by content."""
    for file in (store / "shards").glob("*.json"):
        facts = json.loads(file.read_text())
        skeletons = facts.pop("skeletons")
        del facts["files"], facts["key"]
        file.write_text(json.dumps({**facts, "skeleton": (skeletons or [None])[0]}))


def test_a_rebuilt_store_equals_one_that_is_packed_anew(tmp_path, small_shards):
    folder = write_beat2_folder(tmp_path / "motion", tuple(f"{index}_a" for index in range(12)), frames=200)
    write_beat2(folder / "5_bad.npz", poses=None)
    poses = beat2_arrays(200)["poses"]
    poses[100] = np.nan
    write_beat2(folder / "6_cut.npz", 200, poses=poses)
    out = tmp_path / "store"
    pack(folder, out, workers=1)
    write_beat2(folder / "3_a.npz", frames=300, seed=50)
    (folder / "7_a.npz").rename(folder / "0_first.npz")
    (folder / "9_a.npz").unlink()
    rebuilt = pack(folder, out, workers=1)
    assert files_of(rebuilt) == (2, 11)
    assert contents(out) == contents(pack(folder, tmp_path / "again", workers=1).store.folder)
    # Other settings give other numbers.
    assert files_of(pack(folder, out, workers=1, fps=15.0))[1] == 0


@pytest.mark.processes
def test_several_processes_rebuild_the_same(tmp_path, small_shards):
    folder = write_beat2_folder(tmp_path / "motion", tuple(f"{index}_a" for index in range(12)), frames=200)
    pack(folder, tmp_path / "store", workers=3)
    write_beat2(folder / "0_a.npz", frames=300, seed=50)
    write_beat2(folder / "9_a.npz", frames=300, seed=51)
    rebuilt = pack(folder, tmp_path / "store", workers=3)
    assert files_of(rebuilt) == (2, 10)
    assert contents(tmp_path / "store") == contents(pack(folder, tmp_path / "again", workers=1).store.folder)


def test_figures_of_bvh_files_are_kept_when_the_first_of_them_goes(tmp_path):
    for index, length in enumerate((b"50.0", b"51.0", b"51.0", b"52.0")):
        file = write_bvh_motion(tmp_path / "motion" / f"{index}.bvh", seed=index)
        file.write_bytes(file.read_bytes().replace(b"OFFSET 10.0 50.0", b"OFFSET 10.0 " + length))
    pack(tmp_path / "motion", tmp_path / "store")
    (tmp_path / "motion" / "0.bvh").unlink()
    rebuilt = pack(tmp_path / "motion", tmp_path / "store")
    assert files_of(rebuilt) == (0, 3)
    anew = pack(tmp_path / "motion", tmp_path / "again")
    assert contents(tmp_path / "store") == contents(tmp_path / "again") and anew.store.skeleton is not None


def test_a_damaged_shard_gives_nothing_to_a_rebuilt_store(tmp_path, small_shards):
    folder = write_beat2_folder(tmp_path / "motion", tuple(f"{index}_a" for index in range(6)), frames=200)
    out = tmp_path / "store"
    pack(folder, out, workers=1)
    shard = out / "shards/00000.npy"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    write_beat2(folder / "5_a.npz", frames=200, seed=50)
    rebuilt = pack(folder, out, workers=1)
    assert 1 < files_of(rebuilt)[0] < 6
    assert contents(out) == contents(pack(folder, tmp_path / "again", workers=1).store.folder)


def test_a_file_that_changes_after_a_kill_is_not_taken_from_what_was_packed(tmp_path, monkeypatch):
    folder = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b"))
    monkeypatch.setattr("ds_rvqvae.data.store.builder.StoreBuilder.finish", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "store", workers=1)
    monkeypatch.undo()
    replace_by("cp -p", folder / "1_b.npz", write_beat2(tmp_path / "other.npz", seed=9).read_bytes())
    done = pack(folder, tmp_path / "store", workers=1)
    assert files_of(done)[0] == 2
    assert contents(tmp_path / "store") == contents(pack(folder, tmp_path / "again").store.folder)


def test_strict_leaves_nothing_out(tmp_path):
    folder = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b"))
    poses = beat2_arrays()["poses"]
    poses[40] = np.nan
    write_beat2(folder / "1_c.npz", poses=poses)
    with pytest.raises(UserError, match=r"--strict: 1_c\.npz: "):
        pack(folder, tmp_path / "store", strict=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cache", "motion"]
    store = pack(folder, tmp_path / "store").store
    assert store.clip_names == ["1_a", "1_b", "1_c#0", "1_c#1"]
    with pytest.raises(UserError, match=r"--strict: 1_c\.npz: "):
        pack(folder, tmp_path / "store", strict=True)


def test_a_clip_called_like_a_piece_is_left_out(tmp_path):
    folder = write_beat2_folder(tmp_path / "motion", ("1_a", "1_a#0", "1_b#1"))
    store = pack(folder, tmp_path / "store").store
    assert store.clip_names == ["1_a", "1_b#1"] and "name is that of a piece of 1_a" in store.left_out[0].reason


def test_the_report_names_every_file_and_span(tmp_path):
    folder = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b"))
    trans = beat2_arrays()["trans"]
    trans[30:] += 5
    write_beat2(folder / "1_c.npz", trans=trans)
    write_beat2(folder / "1_d.npz", poses=None)
    store = pack(folder, tmp_path / "store").store
    found = json.loads((store.folder / "report.json").read_text())
    assert found == store.report() and found["clips"] == 4 and found["frames"] == store.num_frames
    jump, unreadable = found["quarantine"]
    assert jump["file"] == "1_c.npz" and jump["rule"] == "max_root_step" and jump["frames"] == [29, 31]
    assert unreadable["frames"] is None and "no key poses" in unreadable["reason"]
    assert open_store(store.folder).left_out[0].file == "1_d.npz"


def test_one_clip_of_other_columns_does_not_rule_out_the_others(tmp_path):
    folder = tmp_path / "motion"
    folder.mkdir()
    for index in range(12):
        np.savez(
            folder / f"clip{index:02}.npz", motion=np.random.default_rng(index).normal(size=(40, 4 if index else 5))
        )
    store = prepare(DataConfig(path=str(folder)), tmp_path / "store").store
    assert store.layout[-1].stop == 4 and len(store.clip_names) == 11
    assert [left.file for left in store.left_out] == ["clip00.npz"]
