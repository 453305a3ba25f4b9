"""`ds-rvqvae prepare`: the packed store, and the printed report."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from ds_rvqvae import cli
from ds_rvqvae.data import open_store
from tests.data.motion import write_beat2, write_beat2_folder
from tests.ranks import ROOT


def test_prepare_packs_a_store_and_says_what_it_left_out(tmp_path, demo_folder, capsys):
    motion = tmp_path / "motion"
    motion.mkdir()
    for clip in sorted((demo_folder / "smplxflame_30").glob("*.npz"))[:2]:
        (motion / clip.name).write_bytes(clip.read_bytes())
    assert cli.main(["prepare", str(motion), "--out", str(tmp_path / "store")]) == 0
    assert "2 clips of 2 files: 320 frames" in capsys.readouterr().out
    store = open_store(tmp_path / "store")
    assert len(store.clip_names) == 2 and store.clip(store.clip_names[0]).dtype == np.float32
    (motion / "3_broken_0_1_1.npz").write_bytes(b"no zip")
    assert cli.main(["prepare", str(motion), "--out", str(tmp_path / "partly"), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["clips"] == 2 and result["left_out"][0]["file"].endswith("3_broken_0_1_1.npz")


def test_the_same_command_again_says_that_the_store_is_there(tmp_path, demo_folder, capsys):
    command = ["prepare", str(demo_folder), "--out", str(tmp_path / "store"), "--workers", "1"]
    assert cli.main([*command, "--json"]) == 0
    packing = json.loads(capsys.readouterr().out)["packing"]
    assert (packing["frames"], packing["workers"], packing["files_of_an_earlier_run"]) == (960, 1, 0)
    assert (packing["files_packed"], packing["files_unchanged"]) == (6, 0)
    assert packing["times_real_time"] == pytest.approx(960 / 30 / packing["seconds"])
    assert cli.main(command) == 0
    assert "the store already exists, from the same files and settings" in capsys.readouterr().out


def test_flags_set_the_keys_that_they_are_called_by_and_set_comes_after_them(tmp_path, demo_folder, capsys):
    flags = ["--fps", "20", "--speakers", "1,2", "--store_dtype", "float16", "--set", "rvqvae.data.fps=15"]
    assert cli.main(["prepare", str(demo_folder), "--out", str(tmp_path / "store"), *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    store = open_store(tmp_path / "store")
    assert store.fps == 15.0 and {name.partition("_")[0] for name in store.clip_names} == {"1", "2"}
    assert result["clips"] == len(store.clip_names) == 4
    assert store.clip(store.clip_names[0]).shape == (80, 433)


def test_there_has_to_be_a_store_to_add_to(tmp_path, demo_folder, capsys):
    assert cli.main(["prepare", str(demo_folder), "--out", str(tmp_path / "store"), "--append"]) == 2
    error = capsys.readouterr().err
    assert "no store to add to; leave --append out" in error and error.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_it_says_how_many_files_had_not_changed(tmp_path, capsys):
    folder = write_beat2_folder(tmp_path / "motion", ("1_a", "1_b", "2_c"))
    command = ["prepare", str(folder), "--out", str(tmp_path / "store")]
    assert cli.main(command) == 0
    (folder / "2_c.npz").unlink()
    capsys.readouterr()
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "unchanged files, taken from the earlier store: 2" in printed
    assert "nothing is new" not in printed
    write_beat2(folder / "1_a.npz", 80)
    assert cli.main([*command, "--json"]) == 0
    packing = json.loads(capsys.readouterr().out)["packing"]
    assert (packing["files_packed"], packing["files_unchanged"], packing["frames"]) == (1, 1, 80)


def test_motion_of_another_rate_is_not_added_to_a_store(tmp_path, capsys):
    for name, fps in {"a": 30, "b": 60}.items():
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / f"{name}.npz", motion=np.ones((40, 5)), fps=np.array(fps))
    prepare = ["prepare", "--out", str(tmp_path / "store")]
    assert cli.main([*prepare, str(tmp_path / "a")]) == 0
    assert cli.main([*prepare, str(tmp_path / "b"), "--append"]) == 2
    error = capsys.readouterr().err
    assert "60 fps, but" in error and "has 30; all motion in a store must" in error
    assert open_store(tmp_path / "store").clip_names == ["a"]


@pytest.mark.processes
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_its_processes_is_one_line_and_the_same_command_goes_on(tmp_path, kind):
    motion, store = tmp_path / "motion", tmp_path / "store"
    write_beat2_folder(motion, ("000",), 600)
    for index in range(1, 60):
        os.link(motion / "000.npz", motion / f"{index:03}.npz")
    code = (
        "import sys\n"
        "from ds_rvqvae import cli\n"
        "from ds_rvqvae.data.store import packing, shards\n"
        "packing._WORTH_PROCESSES, shards.SMALLEST_SHARD = 0, 1\n"
        "sys.exit(cli.main())"
    )
    command = [sys.executable, "-c", code, "prepare", str(motion), "--out", str(store), "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".store.building/new/shards/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, kind)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75 and time.monotonic() - began < 5
    line = rf"stopped by {kind.name}: \d+ of 60 files are packed; the same command continues from there\n"
    assert re.fullmatch(line, errors), errors
    assert not list(tmp_path.rglob(".unfinished-*")) and not store.exists()
    deadline = time.monotonic() + 5
    while living(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert living(process.pid) == []
    assert cli.main(["prepare", str(motion), "--out", str(store)]) == 0
    assert len(open_store(store).clip_names) == 60


def living(group):
    """Processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
