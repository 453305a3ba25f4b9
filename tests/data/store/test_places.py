"""The places of stores: names in the cache, what may be replaced or removed, and building beside them."""

import json

import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.store.places import (
    begin,
    cache_folder,
    cached_folder,
    cached_place,
    cached_stores,
    folder_to_build_in,
    may_replace,
    mend,
    open_in_use,
    put_in_place,
    remove_outdated,
    stores_there,
)
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.data.store.store import open_store
from ds_rvqvae.data.store.verify import verify_store
from ds_rvqvae.errors import UserError
from tests.data.motion import write_packed


def test_stores_of_the_same_data_and_settings_share_a_place(tmp_path, cache):
    place = cached_place(tmp_path / "walk.npz", {"fps": 30.0})
    assert place.parent == cache == cache_folder() and place.name.startswith("walk-")
    assert place == cached_place(tmp_path / "." / "walk.npz", {"fps": 30.0})
    assert place != cached_place(tmp_path / "walk.npz", {"fps": 20.0})
    assert place != cached_place(tmp_path / "other" / "walk.npz", {"fps": 30.0})
    assert cached_folder(place, "0123456789abcdef0123").name == f"{place.name}-0123456789abcdef"


def test_outdated_stores_of_a_place_go_and_no_others(tmp_path, cache):
    place = cached_place(tmp_path / "walk.npz", {})
    folders = [cached_folder(place, digit * 16) for digit in "12"]
    other = cached_folder(cached_place(tmp_path / "run.npz", {}), "1" * 16)
    for folder in (*folders, other):
        folder.mkdir(parents=True)
        (folder / "store.json").write_text("{")
    no_store = cached_folder(place, "3" * 16)
    no_store.mkdir()
    assert cached_stores(place) == folders and list(stores_there(place, None)) == []
    remove_outdated(place, folders[1])
    assert sorted(cache.iterdir()) == sorted([folders[1], other, no_store])


def test_the_store_at_a_place_is_one_that_opens(tmp_path):
    out = tmp_path / "store"
    assert list(stores_there(out, out)) == [] and may_replace(out)
    store = prepare_store(DataConfig(path=str(write_packed(tmp_path / "all.npz"))), out)
    assert [found.fingerprint for found in stores_there(out, out)] == [store.fingerprint] and may_replace(out)
    (out / "thesis.tex").write_text("")
    assert not may_replace(out) and not may_replace(out / "thesis.tex")


def test_what_a_network_file_system_keeps_for_readers_and_strangers_do_not_hinder_mending(tmp_path):
    out = tmp_path / "store"
    prepare_store(DataConfig(path=str(write_packed(tmp_path / "all.npz"))), out)
    (kept := out / "shards" / ".nfs00000000012f4c3e00000001").write_bytes(b"frames of before")
    assert may_replace(out)
    (stranger := out / "shards" / "notes.txt").write_text("mine")
    assert not may_replace(out)
    for suffix in (".npy", ".json"):  # as left by a process that is killed after it replaced the table
        (out / "shards" / f"00000{suffix}").rename(out / "shards" / f"00001{suffix}")
    table = json.loads((out / "store.json").read_text())
    table["first_part"], table["shards"][0]["file"] = 1, "shards/00001.npy"
    (out / "store.json").write_text(json.dumps(table))
    store = mend(open_store(out))
    assert (store.first_part, store.shards[0].file) == (0, "shards/00000.npy") and not verify_store(store)
    assert (kept.read_bytes(), stranger.read_text()) == (b"frames of before", "mine")
    assert len(list((out / "shards").iterdir())) == 4


def test_what_was_built_in_another_way_is_removed(tmp_path):
    building = folder_to_build_in(tmp_path / "store")
    assert building == tmp_path / ".store.building"
    begin(building, "key", {"train.txt": "1-a"})
    (building / "new").mkdir()
    begin(building, "key", {"train.txt": "1-a"})
    assert (building / "new").is_dir()
    for key, others in (("key", {"train.txt": "1-b"}), ("other", {"train.txt": "1-b"}), ("other", {})):
        begin(building, key, others)
        assert [entry.name for entry in building.iterdir()] == ["plan.json"]
        (building / "new").mkdir()
    (building / "plan.json").write_text("{")
    begin(building, "other", {})
    assert not (building / "new").exists() and json.loads((building / "plan.json").read_text())["key"] == "other"


def test_what_is_not_of_a_store_stays_where_another_store_takes_its_place(tmp_path):
    """Also files that come into the folder after it was checked, a link to the folder, and its mode."""
    real, out = tmp_path / "disk" / "store", tmp_path / "store"
    first = prepare_store(DataConfig(path=str(write_packed(tmp_path / "a.npz"))), real)
    made = prepare_store(DataConfig(path=str(write_packed(tmp_path / "b.npz", (50, 40)))), tmp_path / "made")
    out.symlink_to(real)
    real.chmod(0o750)
    for name in ("thesis.tex", "shards/00000.npy.bak", "shards/notes.txt"):
        (real / name).write_text(name)
    (real / "drafts").mkdir()
    put_in_place(made.folder, out)
    assert open_store(out).content == made.content and verify_store(open_store(out)) == []
    assert out.is_symlink() and real.stat().st_mode & 0o777 == 0o750
    assert sorted(file.name for file in real.iterdir()) == [
        "drafts",
        "report.json",
        "shards",
        "store.json",
        "thesis.tex",
    ]
    assert {(real / "shards" / name).read_text() for name in ("00000.npy.bak", "notes.txt")} == {
        "shards/00000.npy.bak",
        "shards/notes.txt",
    }
    assert first.clip("clip2")[0, 0] == 70 and open_store(out).clip_names == ["clip0", "clip1"]


def test_a_table_of_another_program_is_not_replaced(tmp_path):
    (tmp_path / "store.json").write_text('{"version": 2}')
    assert not may_replace(tmp_path)


def test_a_store_in_use_is_not_removed_from_the_cache(tmp_path, cache):
    config = DataConfig(path=str(write_packed(tmp_path / "all.npz")))
    folder = prepare_store(config).folder
    place = folder.with_name(folder.name.rpartition("-")[0])
    in_use, elsewhere = open_in_use(folder), cached_folder(place, "0" * 16)
    remove_outdated(place, elsewhere)
    assert open_store(folder).content == in_use.content
    del in_use
    remove_outdated(place, elsewhere)
    assert not folder.exists()
    with pytest.raises(UserError, match="not a prepared store"):
        open_in_use(folder)


def test_data_that_may_be_in_a_damaged_store_are_not_replaced(tmp_path):
    config = DataConfig(path=str(write_packed(tmp_path / "all.npz")))
    folder = prepare_store(config, tmp_path / "store").folder
    (folder / "shards" / "00000.npy").write_bytes(b"")
    assert prepare_store(config, folder).clip_names == ["clip0", "clip1", "clip2"]
    (folder / "store.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"store\.json: damaged, so it is not known which data"):
        prepare_store(config, folder)
    assert (folder / "shards" / "00000.npy").is_file()
