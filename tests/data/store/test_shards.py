"""The clips that a shard takes, and the files that are written for it."""

import hashlib
import json
from itertools import pairwise

import numpy as np

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.report import TakeFacts
from ds_rvqvae.data.store.shards import TRAINING_SETS, ShardFacts, ShardPacker, ShardPlan, plan_shards
from ds_rvqvae.data.store.splits import by_hash
from ds_rvqvae.data.store.table import shard_files
from ds_rvqvae.motion.clip import Clip, Quarantined
from ds_rvqvae.motion.layout import Channels
from tests.data.motion import write_beat2, write_beat2_folder


def test_shards_take_about_the_same_bytes_and_every_clip_once():
    weights = np.random.default_rng(0).integers(0, 3 << 20, size=1000).tolist()
    plans = plan_shards([str(index) for index in range(1000)], weights, first=7)
    assert [name for plan in plans for name in plan.names] == [str(index) for index in range(1000)]
    assert [plan.index for plan in plans] == list(range(7, 7 + len(plans)))
    filled = [sum(weights[int(name)] for name in plan.names) for plan in plans]
    assert max(filled) <= 8 << 20 and all(sum(pair) > 8 << 20 for pair in pairwise(filled))
    assert [plan.names for plan in plan_shards(["a", "b"], [1 << 40, 5])] == [["a"], ["b"]]


def test_a_shards_facts_say_what_trains_and_survive_their_file(tmp_path):
    layout = (Channels("features", "feature", 0, 2),)
    facts = ShardFacts(2)
    first = np.stack([np.arange(10), -np.arange(10)], axis=1).astype(np.float32)
    facts.add(Clip("a", first, 30.0, layout, "train"))
    facts.add(Clip("b", first + 5, 30.0, layout, "val"))
    assert facts.rows == 20 and facts.clips == [("a", 10, "train"), ("b", 10, "val")]
    assert facts.smallest_in.tolist() == [0, 0] and facts.largest_in.tolist() == [1, 1]
    seen = {name: facts.statistics[name].count for name in TRAINING_SETS}
    hashed = sum(10 for name in "ab" if by_hash(name) == "train")
    # In a split by time, the first eight tenths of each clip are training frames.
    assert seen == {"own": 10, "time": 16, "hash": hashed, "all": 20}
    assert facts.statistics["time"].maximum.tolist() == [12, 5]
    facts.takes.append(TakeFacts("a.npz", 60.0, 20, (("a", 10, "train"),), ("a note",)))
    facts.quarantined.append(Quarantined("c.npz", "unreadable", None, "cut short"))
    facts.quarantined.append(Quarantined("a.npz", "not_finite", (3, 5), "NaN"))
    facts.sha256 = "ab"
    (tmp_path / "00000.json").write_text(json.dumps(facts.to_json()))
    read = ShardFacts.read(tmp_path / "00000.json")
    assert read.to_json() == facts.to_json() and (read.takes, read.quarantined) == (facts.takes, facts.quarantined)


def test_a_packed_shard_holds_its_clips_and_names_what_it_could_not_read(tmp_path):
    motion, out = tmp_path / "motion", tmp_path / "out"
    write_beat2_folder(motion, ("1_a", "2_b"), frames=40)
    write_beat2(motion / "3_bad.npz", poses=None)
    out.mkdir()
    reader = open_reader(motion, DataConfig(path=str(motion)))
    clip = reader.read("1_a")
    seen = []
    work = ShardPacker(reader, clip.layout, out).pack(ShardPlan(3, ["1_a", "3_bad", "2_b"]), seen.append)
    frames_file, facts_file = shard_files(out, 3)
    assert (frames_file.name, facts_file.name) == ("00003.npy", "00003.json")
    frames, facts = np.load(frames_file), ShardFacts.read(facts_file)
    np.testing.assert_array_equal(frames, np.concatenate([clip.motion, reader.read("2_b").motion]))
    assert (work.clips, work.frames, seen) == (3, 80, [40, 0, 40])
    assert work.source_bytes == sum(file.stat().st_size for file in motion.iterdir())
    assert facts.sha256 == hashlib.sha256(frames_file.read_bytes()).hexdigest()
    assert [(entry.file, entry.rule) for entry in facts.quarantined] == [("3_bad.npz", "unreadable")]
    assert [name for name, _, _ in facts.clips] == ["1_a", "2_b"]


def test_a_shard_of_nothing_has_facts_and_no_frames(tmp_path):
    write_beat2(tmp_path / "motion" / "1_bad.npz", poses=None)
    write_beat2(tmp_path / "motion" / "2_good.npz")
    reader = open_reader(tmp_path / "motion", DataConfig(path=str(tmp_path / "motion")))
    ShardPacker(reader, reader.read("2_good").layout, tmp_path).pack(ShardPlan(0, ["1_bad"]))
    frames_file, facts_file = shard_files(tmp_path, 0)
    assert not frames_file.exists() and ShardFacts.read(facts_file).rows == 0
