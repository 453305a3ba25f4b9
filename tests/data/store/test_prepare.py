import multiprocessing
import os

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store.prepare import prepare as prepare_with_cost
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.data.store.verify import verify_store
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import LeftOut
from tests.data.motion import packed_arrays, write_beat2, write_beat2_folder, write_packed
from tests.replacing import WAYS, files_of, npy_bytes, replace_by, touch_all


def prepare(path, out=None, **settings):
    return prepare_store(DataConfig(path=str(path), **settings), out)


def test_a_store_gives_back_every_clip(tmp_path):
    store = prepare(write_packed(tmp_path / "all.npz"), tmp_path / "store")
    again = open_store(tmp_path / "store")
    assert again.clip_names == ["clip0", "clip1", "clip2"] and again.fps == 30 and again.layout == store.layout
    assert again.clip("clip1")[:, 0].tolist() == list(range(40, 70))
    assert again.clip("clip1").dtype == np.float32 and not again.clip("clip1").flags.writeable
    with pytest.raises(UserError, match="no clip clip9"):
        again.clip("clip9")


def test_mean_and_std_are_of_the_training_split(tmp_path):
    split = np.array(["train", "val", "train"])
    store = prepare(write_packed(tmp_path / "all.npz", split=split))
    training = np.concatenate([store.clip("clip0"), store.clip("clip2")]).astype(np.float64)
    assert np.allclose(store.mean, training.mean(axis=0), rtol=1e-6)
    assert np.allclose(store.std, training.std(axis=0), rtol=1e-6)


def test_a_store_is_reused_until_a_file_or_a_setting_changes(tmp_path, cache):
    folder = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b", "2_c"))
    first = prepare(folder)
    unchanged = prepare(folder)
    assert unchanged.folder == first.folder and _inode(unchanged) == _inode(first)
    assert first.folder.parent == cache
    assert prepare(folder, fps=15.0).folder != first.folder
    assert prepare(folder, split="time").folder != first.folder
    assert prepare(folder, speakers=[1]).clip_names == ["1_a", "1_b"]
    write_beat2(folder / "2_c.npz", frames=80)
    changed = prepare(folder)
    assert changed.fingerprint != first.fingerprint and len(changed.clip("2_c")) == 80
    assert first.folder.exists(), "this process has it open"
    outdated = first.folder
    del first, unchanged
    write_beat2(folder / "2_c.npz", frames=70)
    assert prepare(folder).fingerprint != changed.fingerprint
    assert changed.folder.exists() and not outdated.exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("named", [True, False])
def test_a_file_that_is_replaced_is_read_again_however_that_was_done(tmp_path, way, named):
    folder, out = tmp_path / "motion", tmp_path / "store" if named else None
    folder.mkdir()
    for name in "abc":
        np.save(folder / f"{name}.npy", np.full((20, 3), ord(name), np.float32))
    first = prepare(folder, out)
    replace_by(way, folder / "b.npy", npy_bytes(np.arange(60, dtype=np.float32).reshape(20, 3)))
    touch_all(folder)
    prepared = prepare_with_cost(DataConfig(path=str(folder)), out)
    assert prepared.store.clip("b").tolist() == np.load(folder / "b.npy").tolist()
    assert prepared.store.fingerprint != first.fingerprint
    assert files_of(prepared) == (1, 2)
    touch_all(folder)
    assert prepare_with_cost(DataConfig(path=str(folder)), out).packed is None


def test_a_packed_file_that_is_replaced_is_read_again(tmp_path):
    (tmp_path / "data").mkdir()
    file = write_packed(tmp_path / "data" / "all.npz")
    first = prepare(file)
    motion = np.asarray(first.clip("clip1")).copy()
    replace_by("cp -p", file, write_packed(tmp_path / "other.npz", motion=packed_arrays()["motion"] + 1).read_bytes())
    assert prepare(file).clip("clip1").tolist() == (motion + 1).tolist()


def test_files_that_change_nothing_but_their_splits_are_not_read_again(tmp_path):
    folder, out = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b", "2_c")), tmp_path / "store"
    prepare(folder, out)
    (folder / "train_test_split.csv").write_text("id,type\n1_a,train\n1_b,train\n2_c,test\n")
    listed = prepare_with_cost(DataConfig(path=str(folder)), out)
    assert files_of(listed)[0] == 0
    assert {part.name: part.split for part in listed.store.segments} == {"1_a": "train", "1_b": "train", "2_c": "test"}
    (folder / "train_test_split.csv").write_text("id,type\n1_a,train\n1_b,nowhere\n2_c,test\n")
    odd = prepare_with_cost(DataConfig(path=str(folder)), out)
    assert files_of(odd)[0] == 1 and "its split is 'nowhere'" in odd.store.left_out[0].reason
    (folder / "train_test_split.csv").write_text("id,type\n1_a,train\n1_b,val\n2_c,test\n")
    again = prepare_with_cost(DataConfig(path=str(folder)), out)
    assert files_of(again)[0] == 1 and not again.store.left_out


def test_a_file_that_cannot_be_read_is_tried_again(tmp_path):
    folder = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b"))
    (folder / "2_c.npz").symlink_to(tmp_path / "nowhere.npz")
    assert [left.file for left in prepare(folder).left_out] == ["2_c.npz"]
    write_beat2(tmp_path / "nowhere.npz")
    assert prepare(folder).clip_names == ["1_a", "1_b", "2_c"]


def test_a_named_store_is_replaced_when_its_files_change(tmp_path):
    folder, out = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b")), tmp_path / "store"
    first = prepare(folder, out)
    assert _inode(prepare(folder, out)) == _inode(first)
    write_beat2(folder / "2_c.npz")
    assert prepare(folder, out).clip_names == ["1_a", "1_b", "2_c"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cache", "motion", "store"]


def test_a_folder_of_the_users_is_never_replaced(tmp_path):
    folder, out = write_beat2_folder(tmp_path / "motion", ("1_a",)), tmp_path / "thesis"
    out.mkdir()
    for name in ("store.json", "thesis.tex"):
        (out / name).write_text("{}")
    with pytest.raises(UserError, match="exists and is not a store"):
        prepare(folder, out)
    assert (out / "thesis.tex").read_text() == "{}"


def test_a_damaged_store_in_the_cache_is_built_again(tmp_path):
    file = write_packed(tmp_path / "all.npz")
    first = prepare(file)
    (first.folder / "store.json").write_text("{")
    assert prepare(file).clip_names == first.clip_names


def test_a_prepared_store_is_data(tmp_path):
    file, out = write_packed(tmp_path / "all.npz"), tmp_path / "store"
    prepare(file, out)
    assert prepare(out).folder == out
    with pytest.raises(UserError, match=r'split: .* was prepared with "auto", not "time"'):
        prepare(out, split="time")


def test_clips_left_out_are_listed(tmp_path):
    folder = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b"))
    write_beat2(folder / "1_short.npz", frames=9)
    store = prepare(folder)
    assert store.clip_names == ["1_a", "1_b"]
    reason = "9 frames at 30 fps, fewer than the 16 a clip needs"
    assert store.left_out == [LeftOut("1_short.npz", reason)] == open_store(store.folder).left_out


def test_a_name_that_stands_twice_is_taken_once(tmp_path):
    store = prepare(write_packed(tmp_path / "all.npz", clip_name=np.array(["a", "b", "a"])))
    assert store.clip_names == ["a", "b"] and len(store.clip("a")) == 40
    assert "occurs twice" in store.left_out[0].reason


def test_no_clip_left_names_the_first_file_and_leaves_nothing_behind(tmp_path, cache):
    folder = tmp_path / "motion"
    for name in ("1_a", "1_b"):
        write_beat2(folder / f"{name}.npz", poses=None)
    with pytest.raises(UserError, match=r"no usable clip; 1_a\.npz: no key poses; it has .* \(and 1 more left out\)"):
        prepare(folder)
    assert [entry.name for entry in cache.iterdir()] == ["locks"]


def test_no_path_names_the_ways_to_give_one():
    with pytest.raises(UserError, match=r"--data_path.*DS_RVQVAE_DATA.*--demo"):
        prepare_store(DataConfig())


def test_a_cache_that_cannot_be_written_is_named(tmp_path, cache):
    cache.write_text("a file in the way")
    with pytest.raises(UserError, match="DS_RVQVAE_CACHE moves it"):
        prepare(write_packed(tmp_path / "all.npz"))


def _prepare_in_process(path, start, results):
    start.wait()
    store = prepare(path)
    results.put((str(store.folder), _inode(store)))


def _inode(store) -> int:
    return (store.folder / "shards/00000.npy").stat().st_ino


@pytest.mark.processes
def test_processes_at_the_same_time_build_once(tmp_path, cache):
    folder = write_beat2_folder(tmp_path / "motion", tuple(f"1_{index}" for index in range(20)), frames=300)
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=_prepare_in_process, args=(folder, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert len([entry for entry in cache.iterdir() if entry.name != "locks"]) == 1


def test_the_files_of_the_report_add_up_also_after_clips_were_added(tmp_path):
    data, more = tmp_path / "data", tmp_path / "more"
    write_beat2_folder(data, ("1_a", "1_b"))
    (data / "1_c.npz").write_bytes(b"PK")
    (data / "notes.txt").touch()
    write_beat2_folder(more, ("1_a", "2_d"))
    (more / "2_e.npz").write_bytes(b"PK")
    store = prepare(data, data / "store")  # the store's own files are not counted
    keys = ("files_seen", "files_read", "files_left_out", "files_passed_over")
    assert [store.report()[key] for key in keys] == [4, 2, 1, 1]
    again = prepare_with_cost(DataConfig(path=str(data)), data / "store").packed
    assert again is None
    store = prepare_with_cost(DataConfig(path=str(more)), data / "store", append=True).store
    report = store.report()
    assert [report[key] for key in keys] == [7, 3, 2, 2] and report["notes"] == {}
    assert [count["source"] for count in report["file_counts"]] == [str(data), str(more)]
    assert report["file_counts"][1]["passed_over"][0]["reason"] == "its clips are in the store already"


def test_added_files_of_which_none_is_usable_are_reported_once(tmp_path):
    write_beat2_folder(tmp_path / "data", ("1_a",))
    (tmp_path / "more").mkdir()
    write_beat2_folder(tmp_path / "more" / "smplxflame_30", ())
    (tmp_path / "more" / "smplxflame_30").mkdir()
    (tmp_path / "more" / "smplxflame_30" / "2_e.npz").write_bytes(b"PK")
    prepare(tmp_path / "data", tmp_path / "store")
    for _ in range(2):
        store = prepare_with_cost(DataConfig(path=str(tmp_path / "more")), tmp_path / "store", append=True).store
        assert [left.file for left in store.left_out] == ["2_e.npz"] and store.report()["files_seen"] == 2
    assert np.isfinite(store.clip("1_a")).all()


def test_a_store_read_by_the_rules_of_before_says_how_it_is_added_to_and_made_again(tmp_path):
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old" / "a.npy", np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))
    old, new = tmp_path / "store", tmp_path / "new"
    prepare(tmp_path / "old", old, reading_version=1, up_axis="y")  # as a store of that version has it
    prepare(tmp_path / "old", new)
    config = DataConfig(path=str(tmp_path / "old"))
    with pytest.raises(
        UserError, match=r"version 0\.2 and earlier .*; append with --set rvqvae\.data\.reading_version=1, or"
    ):
        prepare_with_cost(config, old, append=True)
    # No axis meant y.
    assert prepare_with_cost(config.with_values({"reading_version": 1}), old, append=True).packed.work.clips == 0
    with pytest.raises(UserError, match=r'rvqvae\.data\.up_axis "y", not "z"; append with the same'):
        prepare_with_cost(config.with_values({"reading_version": 1, "up_axis": "z"}), old, append=True)
    with pytest.raises(UserError, match=r"reading_version: .* prepared with 2, not 1; .*reading_version=1 and another"):
        prepare(new, reading_version=1, up_axis="y")
    again = prepare(tmp_path / "old", tmp_path / "again", reading_version=1)
    assert prepare(again.folder, reading_version=1, up_axis="y").clip_names == ["a"]
    (said,) = prepare_with_cost(config, old).notes
    assert "by the rules of version 0.2 and earlier; to continue, runs" in said and said.endswith(
        "--set rvqvae.data.reading_version=1"
    )
    assert prepare_with_cost(config, old).notes == ()


def _add_in_process(data, out, cache, start):
    os.environ["DS_RVQVAE_CACHE"] = str(cache)
    start.wait()
    prepare_with_cost(DataConfig(path=str(data)), out, append=True, workers=1)


@pytest.mark.processes
def test_processes_with_other_caches_add_to_a_store_one_after_the_other(tmp_path):
    first, out = write_packed(tmp_path / "first.npz"), tmp_path / "stores" / "all"
    prepare(first, out)
    for at_once in range(3):
        context = multiprocessing.get_context("fork")
        start, processes = context.Event(), []
        for side in "ab":
            names = np.array([f"{side}{at_once}_{clip}" for clip in range(2)])
            motion = np.full((80, 5), ord(side) + at_once, np.float32) + np.arange(80, dtype=np.float32)[:, None]
            added = write_packed(tmp_path / f"{side}{at_once}.npz", (40, 40), 5, motion=motion, clip_name=names)
            arguments = added, out, tmp_path / f"cache-{side}", start
            processes.append(context.Process(target=_add_in_process, args=arguments))
        for process in processes:
            process.start()
        start.set()
        for process in processes:
            process.join()
            assert process.exitcode == 0
    store = open_store(out)
    assert not verify_store(store)
    for name in store.clip_names:
        if name[0] in "ab":
            assert store.clip(name)[0, 0] == ord(name[0]) + int(name[1]) + 40 * int(name[3])
    assert sum(name[0] in "ab" for name in store.clip_names) == 12
    assert [entry.name for entry in out.parent.iterdir()] == ["all"]
