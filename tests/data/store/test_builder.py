import json

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.builder import StoreBuilder, quarantine_of
from ds_rvqvae.data.store.prepare import settings_of
from ds_rvqvae.data.store.shards import plan_shards
from ds_rvqvae.data.store.splits import split_by_hash
from ds_rvqvae.data.store.store import open_store
from ds_rvqvae.errors import UserError
from tests.data.motion import write_matrices


@pytest.fixture
def folder(tmp_path):
    folder, rng = tmp_path / "motion", np.random.default_rng(0)
    folder.mkdir()
    for number in range(4):
        np.save(folder / f"{number}.npy", rng.normal(number, 1, size=(40, 5)))
    broken = rng.normal(size=(60, 5))
    broken[30] = np.nan
    np.save(folder / "4.npy", broken)
    np.save(folder / "5.npy", broken[:10])
    return folder


def builder_for(folder, out, **settings) -> StoreBuilder:
    config = DataConfig(path=str(folder), **settings)
    reader = open_reader(folder, config)
    return StoreBuilder(reader, reader.take(reader.clip_names()[0]).layout, out, settings_of(config))


def build(builder, sources=("here", "there")):
    names = builder.reader.clip_names()
    packed = builder.pack(plan_shards(names, [1] * len(names)), workers=1, progress=False)
    builder.finish(packed.facts, "fingerprint", sources)
    return packed


def test_a_store_is_its_shards_its_report_and_its_table(folder, tmp_path):
    builder = builder_for(folder, tmp_path / "store", split="time")
    packed = build(builder)
    store = open_store(tmp_path / "store")
    assert store.clip_names == ["0", "1", "2", "3", "4#0", "4#1"] and store.starts.tolist()[-2:] == [190, 219]
    assert (store.layout, store.fps, store.settings) == (builder.layout, 30.0, builder.settings)
    assert (store.fingerprint, store.sources, store.num_parts) == ("fingerprint", ["here", "there"], 1)
    assert [entry.file for entry in store.left_out] == ["5.npy"]
    assert [entry.file for entry in quarantine_of(packed.facts)] == ["4.npy", "5.npy"]
    parts = [store.clip(part.name)[part.start : part.stop] for part in store.segments if part.split == "train"]
    assert np.allclose(store.mean, np.concatenate(parts).mean(axis=0), atol=1e-6)
    report = store.report()
    assert (report["source"], report["clips"], report["frames"]) == ("here, there", 6, 219)
    assert report["rules"].keys() == {"not_finite", "too_short"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_statistics_are_of_the_numbers_as_they_are_stored(folder, tmp_path, dtype):
    build(builder_for(folder, tmp_path / "store", split="time", store_dtype=dtype))
    store = open_store(tmp_path / "store")
    parts = [store.clip(part.name)[part.start : part.stop] for part in store.segments if part.split == "train"]
    assert store.dtype == dtype and np.allclose(store.std, np.concatenate(parts).std(axis=0), atol=1e-6)


def test_the_datas_own_statistics_come_first_and_have_to_fit(folder, tmp_path):
    np.save(folder / "Mean.npy", np.arange(5.0))
    np.save(folder / "Std.npy", np.ones(5))
    build(builder_for(folder, tmp_path / "store"), ["here"])
    table = json.loads((tmp_path / "store" / "store.json").read_text())
    assert (table["mean"], table["std"]) == ([0, 1, 2, 3, 4], [1] * 5)
    np.save(folder / "Std.npy", np.ones(6))
    with pytest.raises(UserError, match=r"Mean.npy and Std.npy have 5 and 6 columns, the motion 5$"):
        builder_for(folder, tmp_path / "other").own_statistics()


def test_statistics_of_one_data_set_are_not_those_of_several(folder, tmp_path):
    np.save(folder / "Mean.npy", np.arange(5.0))
    np.save(folder / "Std.npy", np.ones(5))
    build(builder_for(folder, tmp_path / "store", split="time"))
    store = open_store(tmp_path / "store")
    parts = [store.clip(part.name)[part.start : part.stop] for part in store.segments if part.split == "train"]
    assert np.allclose(store.mean, np.concatenate(parts).mean(axis=0), atol=1e-6)
    note = "Mean.npy and Std.npy: not used, mean and std are those of the training clips of all data"
    assert note in store.report()["notes"]


def test_a_store_of_before_keeps_the_hash_that_it_was_split_by(tmp_path):
    folder = write_matrices(
        tmp_path / "motion", tuple(f"{mark}{number:06}" for mark in ("", "M") for number in range(9)), 5
    )
    builder = builder_for(folder, tmp_path / "store", reading_version=1)
    del builder.settings["reading_version"]  # which settings of then do not have
    build(StoreBuilder(builder.reader, builder.layout, builder.folder, builder.settings))
    store = open_store(tmp_path / "store")
    assert {part.name: part.split for part in store.segments} == split_by_hash(store.clip_names, 1)
    parts = [store.clip(part.name) for part in store.segments if part.split == "train"]
    assert np.allclose(store.mean, np.concatenate(parts).mean(axis=0), atol=1e-6)
