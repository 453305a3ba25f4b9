"""A prepared store: clips are views of it, and a damaged or foreign one is refused."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.data.store.report import report_text
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


def _other_header(folder):
    with (folder / "shards/00000.npy").open("r+b") as file:
        file.write(bytes(64))


def _gone(file):
    file.unlink()
    return file


def _cut_frames(folder):
    os.truncate(folder / "shards/00000.npy", 1000)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "store.json").unlink(), "not a prepared store"),
        (lambda folder: (folder / "store.json").write_text("{"), "damaged store"),
        (lambda folder: (folder / "store.json").write_bytes(b"\xff"), "damaged store"),
        (lambda folder: (folder / "store.json").write_text("[" * 100_000), "damaged store"),
        (lambda folder: (folder / "store.json").write_text("[]"), "not the table of a ds_rvqvae store"),
        (_edit(format="something else"), "not the table of a ds_rvqvae store"),
        (_edit(version=1), "version 1, but 2 is needed"),
        (_edit(clips=[]), "damaged store"),
        (_edit(clips=[{"name": "a", "stop": 120}, {"name": "b", "stop": 10}]), "damaged store"),
        (_edit(segments=[{"name": "clip0", "start": 0, "stop": 900, "split": "train"}]), "damaged store"),
        (_edit(segments=[{"name": "nobody", "start": 0, "stop": 9, "split": "train"}]), "damaged store"),
        (_edit(layout=[]), "damaged store"),
        (_edit(fps=None), "damaged store"),
        (_edit(fps=0), "fps is 0"),
        (_edit(dtype="float8"), "damaged store"),
        (_edit(mean=[0.0] * 3), "are not equally many"),
        (_edit(std=["x"] * 5), "damaged store"),
        (
            _edit(shards=[{"file": "../../etc/passwd", "rows": 120, "sha256": ""}]),
            "not a valid shard: '../../etc/passwd'",
        ),
        (_edit(shards=[{"file": "shards/00000.npy", "rows": 60, "sha256": ""}]), "do not hold complete clips"),
        (_edit(fps=float("nan")), "fps is nan"),
        (_edit(fps=float("inf")), "fps is inf"),
        (_edit(mean=[1e39] * 5), "are not equally many finite"),
        (_edit(std=[-1.0] * 5), "std holds a negative number"),
        (_edit(mean=[0.0] * 5, std=[float("nan")] * 5), "are not equally many finite"),
        (_edit(num_parts=10**12), "num_parts is 1000000000000 from 0 on"),
        (_edit(num_parts=1e12), "not a whole number"),
        (_edit(num_parts=0), "num_parts is 0"),
        (_edit(first_part=-1), "num_parts is 1 from -1 on"),
        (_edit(first_part=1), "num_parts is 1 from 1 on, but a shard is outside of it"),
        (_edit(clips=[{"name": "a", "stop": 10**30}]), "damaged store"),
        (_edit(clips=[{"name": "a", "stop": 119.5}, {"name": "b", "stop": 120}]), "119.5 is not a whole number"),
        (_edit(clips=[{"name": "a", "stop": -5}, {"name": "b", "stop": 120}]), "clip a ends at row -5"),
        (_edit(clips=None), "damaged store"),
        (_edit(shards=[{"file": "shards/00000.npy", "rows": 10**18, "sha256": ""}]), "do not hold complete clips"),
        (_edit(shards=[{"file": "shards/00000.npy", "rows": 70, "sha256": ""}] * 2), "damaged store"),
        (
            _edit(layout=[{"name": "a", "kind": "rotation_6d", "columns": [0, 6 * 10**9]}]),
            "columns 0 to 6000000000, but there are 5",
        ),
        (_edit(segments=[{"name": "clip0", "start": 0.5, "stop": 9, "split": "train"}]), "0.5 is not a whole number"),
        (_edit(segments=[{"name": "clip0", "start": 0, "stop": 9, "split": "mine"}]), "in no split"),
        (_edit(skeleton={"joint_names": ["a"], "parents": [7], "offsets": [[0, 0, 0]]}), "parents are not its joints"),
        (_edit(skeleton=[1]), "damaged store"),
        (_edit(settings={"reading_version": "2"}), "not a whole number"),
        (_edit(settings=[]), "damaged store"),
        (_other_header, "does not begin as an array of 120 x 5"),
        (lambda folder: os.mkfifo(_gone(folder / "shards/00000.npy")), "0 bytes, not those of 120 frames"),
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


def test_a_report_is_that_of_the_table_whatever_lies_beside_it(store):
    report = store.report()
    for content in (b"", b"{", b"[" * 100_000, b'{"notes": {}}'):
        (store.folder / "report.json").write_bytes(content)
        assert open_store(store.folder).report() == report
    assert report["frames"] == 120


def _values(value, path=()):
    """Yields every value in JSON objects, with its path."""
    yield path, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _values(entry, (*path, key))


def test_a_report_of_other_values_is_damage_or_can_be_shown(store):
    table = json.loads((store.folder / "store.json").read_text())
    entry = {"file": "caf\udce9.npz", "rule": "name", "frames": [0, 4], "reason": "stands twice"}
    table["report"] |= {"quarantine": [entry], "rules": {"name": {"files": 1, "spans": 1, "frames": 4}}}
    table["report"]["notes"] = {"a note": 1}
    shown = 0
    for path, before in [*_values(table["report"])]:
        for value in (None, -1, "x", [], {}, [5]):
            changed = copy.deepcopy(table)
            place = changed
            for key in ("report", *path)[:-1]:
                place = place[key]
            place[("report", *path)[-1]] = value
            (store.folder / "store.json").write_text(json.dumps(changed))
            try:
                report = open_store(store.folder).report()
            except UserError as error:
                assert "report.json: damaged" in str(error), (path, value)
            else:
                assert report_text(report), (path, before, value)
                shown += 1
    assert shown > 10
    (store.folder / "store.json").write_text(json.dumps(table))
    assert open_store(store.folder).report()["quarantine"] == [entry]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"notes": [], "files": 1, "rules": {}}', "[" * 100_000])
def test_a_store_of_before_without_its_report_still_opens(store, content):
    table = json.loads((store.folder / "store.json").read_text())
    report = table.pop("report")
    (store.folder / "store.json").write_text(json.dumps(table))
    assert open_store(store.folder).report() == report
    (store.folder / "report.json").write_text(content)
    opened = open_store(store.folder)
    assert np.array_equal(opened.clip("clip1"), store.clip("clip1"))
    with pytest.raises(UserError, match=r"report\.json: damaged.*prepare the store again"):
        opened.report()
    config = DataConfig(path=store.sources[0])
    assert any("report.json: damaged" in line for line in MotionData(opened, config).warnings())
    assert prepare_store(config, store.folder).report() == report


def test_thousands_of_shards_open_whatever_this_process_may_open_now(store):
    """A child process has a limit of its own."""
    table = json.loads((store.folder / "store.json").read_text())
    (store.folder / "shards/00000.npy").unlink()
    rows = np.arange(3000 * 5, dtype="<f4").reshape(3000, 1, 5)
    for part in range(3000):
        np.save(store.folder / f"shards/{part:05d}.npy", rows[part])
    names = [{"file": f"shards/{part:05d}.npy", "rows": 1, "sha256": ""} for part in range(3000)]
    clips = [{"name": f"c{part}", "stop": part + 1} for part in range(3000)]
    table |= {"shards": names, "clips": clips, "num_parts": 3000, "segments": []}
    (store.folder / "store.json").write_text(json.dumps(table))
    code = (
        "import resource, sys; from ds_rvqvae.data import open_store\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[2])))\n"
        "print(open_store(sys.argv[1]).clip('c2999').tolist())"
    )
    for hard, said in ((20_000, str(rows[2999].tolist())), (1000, "raise the limit with ulimit -n")):
        done = subprocess.run([sys.executable, "-c", code, store.folder, str(hard)], capture_output=True, text=True)
        assert said in done.stdout + done.stderr
