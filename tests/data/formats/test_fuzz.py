"""Hundreds of damaged files in every format: none is unpickled, crashes, exhausts the memory or is not reported."""

import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

from ds_rvqvae.cli import main
from ds_rvqvae.config import data as config_data
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.data.store.report import report_text
from ds_rvqvae.data.store.verify import verify_store
from ds_rvqvae.errors import ExitStatus, UserError
from tests.data.formats.damaged import (
    FORMATS,
    Format,
    Marker,
    bomb,
    broken_bytes,
    broken_headers,
    broken_keys,
    broken_values,
    cut,
    npy,
    npz,
)
from tests.data.motion import packed_arrays

GOOD = 3
MOST_BYTES = 64 << 20
"""The most bytes that reading damaged files may take; their bombs hold four times as much."""
UNTRIED = {"packed"}
"""Formats whose files are damaged in tests of their own."""
HOLE = 72 << 20
"""Bytes of a file that was never written to; its size makes several processes worthwhile."""
LIMITED = """
import resource, sys
from ds_rvqvae.cli import main
if __name__ == "__main__":  # which the processes that pack are not
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    status = main(sys.argv[1:])
    # Not of RUSAGE_SELF, which remembers the process that this one was before it became Python.
    own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024, "MiB", file=sys.stderr)
    sys.exit(status)
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Returns the working folder, deep enough in the test's own folder that a path with `../../` stays in that."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def write_damaged(form: Format, folder: Path) -> dict[str, bool]:
    """Writes damaged and good files of a format; returns for each damaged stem whether nothing in it is usable."""
    clips = write_good(form, folder)
    damaged = form.damaged(folder.parent / "made")
    for name, one in damaged.items():
        (clips / f"{name}{form.suffix}").write_bytes(one.content)
    os.mkfifo(clips / f"pipe{form.suffix}")
    (clips / f"loop{form.suffix}").symlink_to(f"loop{form.suffix}")
    (clips / f"dangling{form.suffix}").symlink_to("nowhere")
    (clips / f"device{form.suffix}").symlink_to("/dev/zero")
    others = dict.fromkeys(("pipe", "loop", "dangling", "device"), True)
    return others | {name: one.is_certain for name, one in damaged.items()}


def write_good(form: Format, folder: Path) -> Path:
    """Writes only good files; returns their folder."""
    clips = folder / form.folder
    clips.mkdir(parents=True)
    for seed in range(GOOD):
        (clips / f"good_{seed}{form.suffix}").write_bytes(form.content(seed))
    return clips


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns everything in a folder and below, except files of prepare in the tests' cache."""
    entries = {entry.relative_to(folder): entry for entry in folder.rglob("*")}
    return {
        str(relative): entry.read_bytes() if entry.is_file() else None
        for relative, entry in entries.items()
        if relative.parts[0] != "cache"
    }


def stem(name: str) -> str:
    return re.sub(r"#\d+$", "", name).rpartition("/")[2]


def test_there_are_two_thousand(tmp_path):
    assert sum(len(form.damaged(tmp_path / "made")) for form in FORMATS.values()) > 2000


@pytest.mark.timeout(60)
def test_every_format_is_tried():
    missing = set(config_data.FORMATS) - {kind.key for kind in FORMATS.values()} - UNTRIED
    assert not missing, f"{missing}: give tests/data/formats/damaged.py files of it"


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_left_out_by_name(tmp_path, place, name):
    form = FORMATS[name]
    damaged = write_damaged(form, place / "data")
    write_good(form, place / "good")
    before = contents(tmp_path)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store = prepare(DataConfig(path="data", format=form.key, **form.settings), Path("store"), workers=1).store
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES
    assert {
        name: content for name, content in contents(tmp_path).items() if not name.startswith("a/b/c/store")
    } == before

    assert verify_store(open_store(place / "store", check_files=False)) == []
    report = json.loads((place / "store" / "report.json").read_text(encoding="utf-8"))
    assert report == store.report() and report_text(report)
    reported = {Path(entry["file"]).name.removesuffix(form.suffix) for entry in report["quarantine"]}
    there = {stem(clip) for clip in store.clip_names}
    good = {f"good_{seed}" for seed in range(GOOD)}
    assert there | reported == damaged.keys() | good
    assert there.isdisjoint(name for name, is_certain in damaged.items() if is_certain)
    assert good.isdisjoint(reported)
    assert all(np.isfinite(store.clip(clip)).all() for clip in store.clip_names)
    alone = prepare(DataConfig(path="good", format=form.key, **form.settings), Path("alone"), workers=1).store
    clips = {stem(clip): clip for clip in alone.clip_names}
    assert clips.keys() == good
    for clip in clips.values():
        assert np.array_equal(store.clip(clip), alone.clip(clip))


@pytest.mark.parametrize("name", ["smpl", "beat2"])
def test_of_a_thousand_damaged_files_none_is_unreported(place, name):
    form = FORMATS[name]
    clips = write_good(form, place / "data")
    rng = np.random.default_rng(7)
    whole = form.content(0)
    damaged = [one.content for one in broken_bytes(rng, whole, 700)] + [cut(rng, whole) for _ in range(300)]
    for index, content in enumerate(damaged):
        (clips / f"damaged_{index:04}.npz").write_bytes(content)
    (place / "data" / "notes.txt").touch()
    report = prepare(DataConfig(path="data"), Path("store"), workers=1).store.report()
    left_out = {entry["file"] for entry in report["quarantine"] if entry["frames"] is None}
    assert report["files_seen"] == 1000 + GOOD + 1 and report["files_passed_over"] == 1
    assert report["files_read"] + report["files_left_out"] == 1000 + GOOD
    assert report["files_left_out"] == len(left_out) > 500
    assert sum(rate["files"] for rate in report["frame_rates"]) == report["files_read"]


@pytest.mark.parametrize("name", ["npy", "npz", "humanml3d"])
def test_good_files_beside_damaged_ones_are_stored_as_they_are(place, name):
    form = FORMATS[name]
    write_damaged(form, place / "data")
    store = prepare(DataConfig(path="data", format=form.key), Path("store"), workers=1).store
    for seed in range(GOOD):
        assert np.array_equal(store.clip(f"good_{seed}"), form.arrays(seed)["motion"])


@pytest.mark.processes
@pytest.mark.parametrize("name", ["beat2", "bvh"])
def test_the_command_takes_little_memory_and_makes_the_same_store_in_one_process_and_two(tmp_path, place, name):
    form = FORMATS[name]
    write_damaged(form, place / "data")
    hole = place / "data" / form.folder / f"hole{form.suffix}"
    hole.touch()
    os.truncate(hole, HOLE)
    (place / "run.py").write_text(LIMITED)
    stores = []
    for workers, processes in ((1, "by 1 process:"), (2, "by 2 processes:")):
        flags = ["prepare", "data", "--out", f"store_{workers}", "--workers", str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "run.py", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == ExitStatus.PARTLY_DONE, done.stderr
        assert processes in done.stdout and "Traceback" not in done.stderr
        assert int(done.stderr.split()[-2]) < 256, done.stderr  # a third is the libraries'; a bomb takes 256 more
        stores.append(contents(place / f"store_{workers}"))
    assert stores[0] == stores[1]
    quarantine = json.loads((place / "store_1" / "report.json").read_text(encoding="utf-8"))["quarantine"]
    assert hole.name in {Path(entry["file"]).name for entry in quarantine}
    assert sorted(entry.name for entry in place.iterdir()) == ["data", "run.py", "store_1", "store_2"]
    assert [len(list(folder.iterdir())) for folder in (tmp_path / "a", tmp_path / "a" / "b")] == [1, 1]


ODD_NAMES = (
    b"caf\xe9",
    b"\xff\xfe",
    b"line\nbreak",
    b"\x1b[31mred",
    b"a..b",
    b"a'b\"c",
    b"~",
    b"-rf",
    b" space ",
    b"{x}",
    b"$\\no_mathematics$",
    b"%s",
)


def test_names_of_any_bytes_are_stored_reported_shown_and_drawn(place, capsys):
    form = FORMATS["npy"]
    (place / "data").mkdir()
    for index, name in enumerate(ODD_NAMES):
        for content, what in ((form.content(index), b"good"), (b"broken", b"bad")):
            (place / "data" / os.fsdecode(name + b"." + what + b".npy")).write_bytes(content)
    # Output is UTF-8 here, as in most terminals, and bytes that are not text cannot be encoded in it.
    assert main(["prepare", "data", "--out", "store"]) == ExitStatus.PARTLY_DONE
    assert main(["store", "show", "store", "--clips"]) == ExitStatus.DONE
    assert main(["data", "plot", "store", "--out", "picture.png"]) == ExitStatus.DONE
    assert "\x1b" not in "".join(capsys.readouterr())
    assert main(["store", "verify", "store", "--json"]) == ExitStatus.DONE
    assert json.loads(capsys.readouterr().out)["damaged"] == []

    store = open_store(place / "store")
    names = {os.fsdecode(name) for name in ODD_NAMES}
    assert set(store.clip_names) == {f"{name}.good" for name in names}
    assert {entry["file"] for entry in store.report()["quarantine"]} == {f"{name}.bad.npy" for name in names}
    text = report_text(store.report(), most=100)
    assert text.encode() and "\x1b" not in text
    assert sorted(entry.name for entry in place.iterdir()) == ["data", "picture.png", "store"]


def packed_faults(marker: Path) -> dict[str, bytes]:
    """Damaged packed npz files: one file is all there is, so that nothing can be stored."""
    arrays = packed_arrays()
    found = {name: npz({**arrays, "motion": one.content}) for name, one in broken_headers(arrays["motion"]).items()}
    found |= {
        name: npz({**arrays, "motion": one.content})
        for name, one in broken_values(arrays["motion"], marker).items()
        if one.is_certain and name not in ("narrow", "wider", "one_frame", "short", "many_short")
    }
    found |= {name: one.content for name, one in broken_keys(arrays, "motion", marker).items() if one.is_certain}
    objects = npy(np.array([Marker(marker)] * 3, object), pickles=True)
    texts = npy(np.array(["clip0"] * 3))
    starts = {
        "back": [0, 70, 40, 120],
        "outside": [0, 40, 999],
        "negative": [-5, 40, 120],
        "none": [],
        "text": ["a", "b"],
    }
    found |= {f"starts_{name}": npz({**arrays, "clip_start": np.array(values)}) for name, values in starts.items()}
    found |= {
        "names_pickled": npz({**arrays, "clip_name": objects}),
        "names_twice": npz({**arrays, "clip_name": texts}),
        "names_broken": npz({**arrays, "clip_name": texts[:-60] + b"\xff" * 60}),
        "layout": npz({**arrays, "layout": np.array("[" * 5000)}),
        "layout_text": npz({**arrays, "layout": np.array("{}")}),
        "split": npz({**arrays, "split": np.array(["train", "nowhere", "test"])}),
        "split_short": npz({**arrays, "split": np.array(["train"])}),
        "bomb": bomb(5),
        "nothing": b"",
        "cut": npz(arrays)[:-200],
    }
    return found


def test_a_damaged_packed_file_is_refused_and_leaves_nothing(tmp_path, place):
    faults = packed_faults(place / "made")
    assert len(faults) > 70
    accepted = set()
    for name, content in faults.items():
        (place / "packed.npz").write_bytes(content)
        try:
            store = prepare(DataConfig(path="packed.npz"), Path("store"), workers=1).store
            assert name == "fortran" or store.left_out, name
            accepted.add(name)
            shutil.rmtree(place / "store")
        except UserError as error:
            assert error.status == ExitStatus.BAD_INPUT, name
            assert "packed.npz" in str(error) and "\n" not in str(error), (name, str(error))
        assert contents(tmp_path) == {"a": None, "a/b": None, "a/b/c": None, "a/b/c/packed.npz": content}, name
    # From these, single clips are left out, or none is damaged.
    assert accepted <= {"fortran", "names_twice", "split"}


def test_clips_in_a_packed_file_may_be_called_anything(tmp_path, place):
    names = ["../../out", str(tmp_path / "out"), "a\nb\ud800"]
    (place / "packed.npz").write_bytes(npz({**packed_arrays(), "clip_name": np.array(names)}))
    before = contents(tmp_path)
    store = prepare(DataConfig(path="packed.npz"), Path("store"), workers=1).store
    assert store.clip_names == open_store(place / "store").clip_names == names
    assert verify_store(store) == []
    assert {
        name: content for name, content in contents(tmp_path).items() if not name.startswith("a/b/c/store")
    } == before


@pytest.mark.parametrize("file", ["Mean.npy", "Std.npy", "train.txt"])
def test_damaged_files_beside_the_motion_are_refused_or_harmless(tmp_path, place, file):
    form = FORMATS["humanml3d"]
    write_good(form, place / "data")
    for name in ("Mean.npy", "Std.npy"):
        (place / "data" / name).write_bytes(npy(np.ones(263, np.float32)))
    faults = {name: one.content for name, one in broken_headers(np.ones((263, 1), np.float32)).items()}
    values = broken_values(np.ones((1, 263), np.float32), place / "made")
    faults |= {name: one.content for name, one in values.items()}
    outside = b"../../etc/passwd\n" * 9
    faults |= {"nothing": b"", "zeros": bytes(4096), "outside": outside, "long": b"a" * 100_000}
    refused = 0
    for name, content in faults.items():
        (place / "data" / file).write_bytes(content)
        before = contents(tmp_path)
        try:
            store = prepare(DataConfig(path="data"), Path("store"), workers=1).store
            assert np.isfinite(store.mean).all() and np.isfinite(store.std).all(), name
            assert store.clip_names == [f"good_{seed}" for seed in range(GOOD)], name
            shutil.rmtree(place / "store")
        except UserError as error:
            refused += 1
            assert error.status == ExitStatus.BAD_INPUT, name
            assert file in str(error) and "\n" not in str(error), (name, str(error))
        assert contents(tmp_path) == before, name
    assert refused > len(faults) // 2
