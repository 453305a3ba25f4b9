"""Hundreds of damaged files in every format: none is unpickled, crashes, takes the memory or goes unreported."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from ds_rvqvae.data import open_store
from ds_rvqvae.data.prepare import prepare
from ds_rvqvae.data.report import report_text
from ds_rvqvae.data.verify import verify_store
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import DataConfig
from tests.data.damaged import FORMATS, Marker, bomb, broken_headers, broken_keys, broken_values, npy, npz
from tests.data.motion import packed_arrays

GOOD = 3
MOST_SECONDS = 60
"""Of one format's files, which take under one: what does not end is a fault, a slow machine is not."""
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from ds_rvqvae.cli import main
sys.exit(main(sys.argv[1:]))
"""


def write_damaged(form, folder: Path) -> dict:
    """A format's damaged and good files below `folder`; gives the damaged ones by stem."""
    place = folder / form.folder
    place.mkdir(parents=True)
    damaged = form.damaged(folder.parent / "made")
    for name, one in damaged.items():
        (place / f"{name}{form.suffix}").write_bytes(one.content)
    for seed in range(GOOD):
        (place / f"good_{seed}{form.suffix}").write_bytes(form.content(seed))
    return damaged


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the cache, which holds prepare's locks."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("cache/")}


def stem(name: str) -> str:
    return re.sub(r"#\d+$", "", name).rpartition("/")[2]


def test_there_are_hundreds(tmp_path):
    assert sum(len(form.damaged(tmp_path / "made")) for form in FORMATS.values()) > 900


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_left_out_by_name(tmp_path, name):
    form = FORMATS[name]
    damaged = write_damaged(form, tmp_path / "data")
    before = files_of(tmp_path)
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = prepare(DataConfig(path=str(tmp_path / "data"), format=form.key), tmp_path / "store", workers=1).store
    assert time.monotonic() - began < MOST_SECONDS
    assert not (tmp_path / "made").exists()
    assert {name: content for name, content in files_of(tmp_path).items() if not name.startswith("store/")} == before

    assert verify_store(open_store(tmp_path / "store", check_files=False)) == []
    report = json.loads((tmp_path / "store" / "report.json").read_text(encoding="utf-8"))
    assert report == store.report() and report_text(report)
    reported = {Path(entry["file"]).name.removesuffix(form.suffix) for entry in report["quarantine"]}
    there = {stem(clip) for clip in store.clip_names}
    assert there | reported == set(damaged) | {f"good_{seed}" for seed in range(GOOD)}
    assert there.isdisjoint(name for name, one in damaged.items() if one.is_certain)
    assert all(np.isfinite(store.clip(clip)).all() for clip in store.clip_names)
    assert not any(name.startswith("good") for name in reported)


def test_good_files_beside_damaged_ones_are_stored_as_ever(tmp_path):
    form = FORMATS["npz"]
    write_damaged(form, tmp_path / "data")
    store = prepare(DataConfig(path=str(tmp_path / "data"), format="features"), tmp_path / "store", workers=1).store
    for seed in range(GOOD):
        assert np.array_equal(store.clip(f"good_{seed}"), form.arrays(seed)["motion"])


@pytest.mark.processes
def test_the_command_leaves_damaged_files_out_within_its_memory_with_any_number_of_workers(tmp_path):
    write_damaged(FORMATS["beat2"], tmp_path / "data")
    for workers in (1, 2):
        flags = ["prepare", tmp_path / "data", "--out", tmp_path / f"store_{workers}", "--workers", workers]
        command = [sys.executable, "-c", LIMITED, *map(str, flags)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 1, done.stderr  # done in part
        assert "unreadable" in done.stdout and "Traceback" not in done.stderr
    assert files_of(tmp_path / "store_1") == files_of(tmp_path / "store_2")
    assert not (tmp_path / "made").exists()


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
)


def test_names_of_any_bytes_are_stored_and_reported(tmp_path):
    form = FORMATS["npy"]
    (tmp_path / "data").mkdir()
    for index, name in enumerate(ODD_NAMES):
        for content, what in ((form.content(index), b"good"), (b"broken", b"bad")):
            (tmp_path / "data" / os.fsdecode(name + b"." + what + b".npy")).write_bytes(content)
    store = prepare(DataConfig(path=str(tmp_path / "data"), format="features"), tmp_path / "store").store
    names = {os.fsdecode(name) for name in ODD_NAMES}
    assert set(open_store(tmp_path / "store").clip_names) == {f"{name}.good" for name in names}
    report = store.report()
    assert {entry["file"] for entry in report["quarantine"]} == {f"{name}.bad.npy" for name in names}
    text = report_text(report, most=100)
    assert text.encode() and "\x1b" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data", "store"]


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


def test_a_damaged_packed_file_is_refused_and_leaves_nothing(tmp_path):
    faults = packed_faults(tmp_path / "made")
    assert len(faults) > 70
    accepted = []
    for name, content in faults.items():
        file = tmp_path / "packed.npz"
        file.write_bytes(content)
        try:
            store = prepare(DataConfig(path=str(file)), tmp_path / "store", workers=1).store
            assert name == "fortran" or store.left_out, name
            accepted.append(name)
            shutil.rmtree(tmp_path / "store")
        except UserError as error:
            assert "packed.npz" in str(error) and "\n" not in str(error), (name, str(error))
    # Of these single clips are left out, or none is damaged.
    assert set(accepted) <= {"fortran", "names_twice", "split"}
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["packed.npz"]


@pytest.mark.parametrize("file", ["Mean.npy", "Std.npy", "train.txt"])
def test_damaged_files_beside_the_motion_are_refused_or_harmless(tmp_path, file):
    form = FORMATS["humanml3d"]
    place = tmp_path / "data" / form.folder
    place.mkdir(parents=True)
    for seed in range(GOOD):
        (place / f"{seed}.npy").write_bytes(form.content(seed))
    for name in ("Mean.npy", "Std.npy"):
        (tmp_path / "data" / name).write_bytes(npy(np.ones(263, np.float32)))
    faults = {name: one.content for name, one in broken_headers(np.ones((263, 1), np.float32)).items()}
    faults |= {
        name: one.content for name, one in broken_values(np.ones((1, 263), np.float32), tmp_path / "made").items()
    }
    faults |= {"nothing": b"", "zeros": bytes(4096), "outside": b"../../etc/passwd\n" * 9, "long": b"a" * 100_000}
    refused = 0
    for name, content in faults.items():
        (tmp_path / "data" / file).write_bytes(content)
        try:
            store = prepare(DataConfig(path=str(tmp_path / "data")), tmp_path / "store" / name, workers=1).store
            assert np.isfinite(store.mean).all() and np.isfinite(store.std).all(), name
        except UserError as error:
            refused += 1
            assert "\n" not in str(error), (name, str(error))
    assert refused > len(faults) // 2
    assert not (tmp_path / "made").exists() and not (tmp_path / "etc").exists()
