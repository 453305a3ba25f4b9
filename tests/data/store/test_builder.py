import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.builder import StoreBuilder, quarantine_of
from ds_rvqvae.data.store.prepare import prepare, settings_of
from ds_rvqvae.data.store.shards import plan_shards
from ds_rvqvae.data.store.splits import split_by_hash
from ds_rvqvae.data.store.store import open_store
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import layout_to_json, smplx_layout
from tests.data.formats.bvh_files import write_bvh_motion
from tests.data.formats.smpl.test_poses import write_smpl
from tests.data.motion import write_beat2, write_lists, write_matrices, write_packed


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
    with pytest.raises(UserError, match=r"Mean.npy and Std.npy have 5 and 6 columns, but the motion has 5$"):
        builder_for(folder, tmp_path / "other").own_statistics()


def _wide(folder, seed, width, own, clips="", lists=True):
    """Writes matrices into a folder; `own` is the value of their own statistics, None for no such files."""
    rng = np.random.default_rng(seed)
    (folder / clips).mkdir(parents=True, exist_ok=True)
    for number in range(3):
        np.save(folder / clips / f"{seed}_{number}.npy", rng.normal(size=(20, width)).astype(np.float32))
    if lists:
        write_lists(folder, train=f"{seed}_0 {seed}_1", val=f"{seed}_2")
    if own is not None:
        np.save(folder / "Mean.npy", np.full(width, own, np.float32))
        np.save(folder / "Std.npy", np.full(width, own + 1, np.float32))


def _beat2(folder, seed):
    for number in range(3):
        write_beat2(folder / f"{seed}_{number}.npz", 20, 10 * seed + number)


def _packed_like_beat2(folder, seed):
    rng, folder = np.random.default_rng(seed), Path(folder)
    layout = json.dumps(layout_to_json(smplx_layout()))
    names = np.array([f"{seed}_{number}" for number in range(3)])
    motion = rng.normal(size=(60, 433)).astype(np.float32)
    folder.mkdir(parents=True)
    write_packed(folder / "all.npz", (20, 20, 20), 433, motion=motion, clip_name=names, layout=np.array(layout))


def _packed(folder, seed):
    folder.mkdir(parents=True)
    names = np.array([f"{seed}_{number}" for number in range(3)])
    motion = np.random.default_rng(seed).normal(size=(60, 263)).astype(np.float32)
    fps, split = np.array(20.0), np.array(["train", "train", "test"])
    write_packed(folder / "all.npz", (20, 20, 20), motion=motion, clip_name=names, fps=fps, clip_split=split)


DATA = {
    "beat2": ("beat2", _beat2),
    "smpl": ("smpl", lambda folder, seed: write_smpl(folder / f"{seed}.npz", 52, 120 + seed)),
    "bvh": ("bvh", lambda folder, seed: write_bvh_motion(folder / f"{seed}.bvh", 40, seed=seed)),
    "humanml3d": ("humanml3d", lambda folder, seed: _wide(folder, seed, 263, None, "new_joint_vecs")),
    "humanml3d own": ("humanml3d", lambda folder, seed: _wide(folder, seed, 263, float(seed), "new_joint_vecs")),
    "humanml3d_272": ("humanml3d_272", lambda folder, seed: _wide(folder, seed, 272, None, "motion_data")),
    "humanml3d_272 own": ("humanml3d_272", lambda folder, seed: _wide(folder, seed, 272, float(seed), "motion_data")),
    "features": ("features", lambda folder, seed: _wide(folder, seed, 263, None, lists=False)),
    "features own": ("features", lambda folder, seed: _wide(folder, seed, 263, float(seed), lists=False)),
    "features 272 own": ("features", lambda folder, seed: _wide(folder, seed, 272, float(seed), lists=False)),
    "packed": ("packed", _packed),
    "packed like beat2": ("packed", _packed_like_beat2),
}
KIN = [
    {"beat2", "packed like beat2"},
    {"smpl"},
    {"bvh"},
    {"humanml3d", "humanml3d own", "features", "features own", "packed"},
    {"humanml3d_272", "humanml3d_272 own", "features 272 own"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns by name: a store, other data of its kind, and the settings to read them."""
    place, found = tmp_path_factory.mktemp("made"), {}
    for name, (key, write) in DATA.items():
        for seed in (1, 2):
            write(place / name / str(seed), seed)
        paths = [place / name / str(seed) for seed in (1, 2)]
        first, more = (path / "all.npz" if key == "packed" else path for path in paths)
        rules = {"max_joint_step": None, "max_root_step": None, "reference_pose": False}
        config = DataConfig(path=str(first), format=key, rules=rules)
        prepare(config, place / name / "store", workers=1)
        found[name] = (place / name / "store", config.with_values({"path": str(more)}))
    return found


@pytest.mark.parametrize("name", DATA)
def test_a_store_keeps_what_it_was_made_with_whatever_is_added(made, tmp_path, name):
    before = open_store(made[name][0])
    keeps = ("has_own_statistics", "has_body_parts", "skeleton", "layout", "fps", "settings", "dtype")
    for other, (_, config) in made.items():
        folder = tmp_path / other
        shutil.copytree(made[name][0], folder)
        if not any({name, other} <= kin for kin in KIN):
            with pytest.raises(UserError, match=r"columns|frame rate"):
                prepare(config, folder, append=True, workers=1)
            assert _files(folder) == _files(made[name][0])
            continue
        store = prepare(config, folder, append=True, workers=1).store
        assert len(store.clip_names) > len(before.clip_names) and store.sources[-1] == config.path
        assert {key: getattr(store, key) for key in keeps} == {key: getattr(before, key) for key in keeps}
        assert [part for part in store.segments if part.name in before.clip_names] == before.segments
        assert store.report()["format"] == before.report()["format"]
        notes = " ".join(store.report()["notes"])
        assert ("Mean.npy and Std.npy of the added data: not used" in notes) == other.endswith("own")
        assert ("the store keeps the mean and std that it was made with" in notes) == name.endswith("own")
        if name.endswith("own"):
            assert np.array_equal(store.mean, before.mean) and np.array_equal(store.std, before.std)
            continue
        parts = [store.clip(part.name)[part.start : part.stop] for part in store.segments if part.split == "train"]
        frames = np.concatenate(parts).astype(np.float64)
        assert np.allclose(store.mean, frames.mean(axis=0), atol=1e-6)
        assert np.allclose(store.std, frames.std(axis=0), atol=1e-6)


def _files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_data_that_bring_the_statistics_of_the_store_or_damaged_ones_are_added(made, tmp_path):
    for change, is_said in ((None, False), (b"cut", True)):
        folder, more = tmp_path / f"store{is_said}", tmp_path / f"more{is_said}"
        shutil.copytree(made["features own"][0], folder)
        _wide(more, 3, 263, 1.0, lists=False)
        if change is not None:
            (more / "Std.npy").write_bytes(change)
        config = made["features own"][1].with_values({"path": str(more)})
        store = prepare(config, folder, append=True, workers=1).store
        assert np.array_equal(store.mean, np.ones(263)) and store.has_own_statistics
        assert any("Std.npy of the added" in note for note in store.report()["notes"]) == is_said


def test_a_store_of_before_that_did_not_say_whose_its_statistics_are_keeps_them(made, tmp_path):
    for name in ("features own", "features"):
        folder = tmp_path / name
        shutil.copytree(made[name][0], folder)
        table = json.loads((folder / "store.json").read_text())
        del table["has_own_statistics"]
        (folder / "store.json").write_text(json.dumps(table))
        before = open_store(folder)
        store = prepare(made[name][1], folder, append=True, workers=1).store
        assert np.array_equal(store.mean, before.mean) == name.endswith("own") and not store.has_own_statistics


def test_a_store_of_before_keeps_the_hash_that_it_was_split_by(tmp_path):
    folder = write_matrices(
        tmp_path / "motion", tuple(f"{mark}{number:06}" for mark in ("", "M") for number in range(9)), 5
    )
    builder = builder_for(folder, tmp_path / "store", reading_version=1)
    del builder.settings["reading_version"]  # settings of earlier versions do not have it
    build(StoreBuilder(builder.reader, builder.layout, builder.folder, builder.settings))
    store = open_store(tmp_path / "store")
    assert {part.name: part.split for part in store.segments} == split_by_hash(store.clip_names, 1)
    parts = [store.clip(part.name) for part in store.segments if part.split == "train"]
    assert np.allclose(store.mean, np.concatenate(parts).mean(axis=0), atol=1e-6)
