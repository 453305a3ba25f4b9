"""From a checked run to its ranks: the folder of a run, and its removal if no rank has opened it."""

import json
import os
import shutil
import subprocess
from contextlib import ExitStack

import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.request import read_launch_flags
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.launch.check import check_run
from ds_rvqvae.launch.command import _in_memory, _job, _opened_folder, train
from ds_rvqvae.launch.supervise import Signals
from ds_rvqvae.process.relay import Relay
from tests.e2e.running import LAUNCHER
from tests.ranks import bare_environment
from tests.train.small import SMALL, read_metrics

pytestmark = pytest.mark.processes


@pytest.fixture
def checked(tmp_path, demo_folder, monkeypatch):
    """Checks a run of one CPU rank, as the launcher does before it trains it."""
    monkeypatch.chdir(tmp_path)
    for name, value in bare_environment(tmp_path, DS_ACCELERATOR="cpu", LOCAL_SIZE="1", OMP_NUM_THREADS="1").items():
        monkeypatch.setenv(name, value)
    line = [*SMALL, "--include=localhost:0", f"--data_path={demo_folder}", "--batch_size=4"]
    return lambda *flags: check_run(read_launch_flags([*line, *flags]).request())[0]


@pytest.mark.parametrize("where", ["interpreter", "system", "folder"])
def test_what_ranks_write_into_needs_neither_this_interpreters_function_nor_the_systems(where, monkeypatch):
    if where != "interpreter":  # as it was built for older systems by uv and conda
        monkeypatch.delattr(os, "memfd_create", raising=False)
    if where == "folder":
        monkeypatch.setattr("ds_rvqvae.launch.command._made_by_system", lambda _name: os.open("/nowhere", os.O_RDWR))
    with ExitStack() as shared:
        file = _in_memory("signs", shared)
        subprocess.run(["sh", "-c", 'printf here >"$0"', file], check=True)
        assert file.read_bytes() == b"here"
        assert file.is_relative_to("/proc") == (where != "folder")
    assert not file.exists()


def steps_of(run):
    return [line["step"] for line in read_metrics(run)]


def test_two_starts_that_were_checked_at_once_do_not_share_a_folder(checked, tmp_path):
    unnamed, named = checked("--total_iter=2", "--width=16"), checked("--total_iter=2", "--name=demo-demo-upper")
    first = tmp_path / "runs" / "demo-demo-upper"
    assert unnamed.folder.absolute() == named.folder.absolute() == first
    # Another start, checked at the same time, has trained in it meanwhile.
    first.mkdir(parents=True)
    (first / "profile.json").write_text("{}")
    (first / "metrics.jsonl").write_text("its own")
    assert train(unnamed, Signals()) is ExitStatus.DONE
    assert sorted(path.name for path in first.parent.iterdir()) == ["demo-demo-upper", "demo-demo-upper-2"]
    second = first.with_name("demo-demo-upper-2")
    assert steps_of(second) == [1, 2]
    assert json.loads((second / "profile.json").read_text())["rvqvae"]["model"]["width"] == 16
    with pytest.raises(
        UserError, match="--name demo-demo-upper: runs/demo-demo-upper exists; continue it with --resume"
    ):
        train(named, Signals())
    assert (first / "profile.json").read_text() == "{}" and (first / "metrics.jsonl").read_text() == "its own"


def test_a_folder_that_cannot_be_made_is_named_and_leaves_nothing(checked, tmp_path):
    run = checked("--out=here/runs", "--total_iter=1")
    (tmp_path / "here").write_text("a file")
    with pytest.raises(UserError, match="--out: here/runs/demo-demo-upper cannot be made: Not a directory"):
        train(run, Signals())
    assert (tmp_path / "here").read_text() == "a file"


def test_a_run_that_no_rank_has_opened_leaves_no_folder(tmp_path, demo_folder):
    (tmp_path / "broken").mkdir()
    # Every rank ends as its interpreter starts.
    (tmp_path / "broken" / "sitecustomize.py").write_text("import os\nif 'LOCAL_RANK' in os.environ: os._exit(9)\n")
    line = [*LAUNCHER, *SMALL, "--include=localhost:0", f"--data_path={demo_folder}", "--name=none", "--total_iter=2"]
    environment = bare_environment(tmp_path, DS_ACCELERATOR="cpu", LOCAL_SIZE="1", OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = f"{tmp_path / 'broken'}:{environment.get('PYTHONPATH', '')}"
    ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 70, ran.stderr
    assert not (tmp_path / "runs").exists()


def test_ranks_take_the_store_that_was_checked_and_read_no_files(checked, tmp_path, demo_folder):
    # Motion that changes after the check is that of the next start.
    shutil.copytree(demo_folder, tmp_path / "motion")
    run = checked(f"--data_path={tmp_path / 'motion'}", "--name=mine", "--total_iter=2")
    for file in (tmp_path / "motion").rglob("*.npz"):
        file.write_bytes(b"no motion")
    assert train(run, Signals()) is ExitStatus.DONE
    assert steps_of(run.folder) == [1, 2]
    with pytest.raises(UserError, match="no usable clip"):
        checked(f"--data_path={tmp_path / 'motion'}", "--name=other")


def test_ranks_are_not_handed_the_variable_that_named_their_gpus(checked, monkeypatch):
    # deepspeed counts the GPUs that it leaves: none, where it is empty.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with ExitStack() as shared, _opened_folder(checked()) as run, Relay() as relay:
        assert "CUDA_VISIBLE_DEVICES" not in _job(run, shared, relay, 0).environment


def test_a_store_that_is_gone_before_the_ranks_start_is_named(checked, capfd):
    run = checked("--name=mine", "--total_iter=2")
    shutil.rmtree(run.data.store.folder)
    assert train(run, Signals()) is ExitStatus.BAD_INPUT
    assert f"{run.data.store.folder}: the motion that this run was started with is gone" in capfd.readouterr().err


def test_a_store_that_is_renewed_before_the_ranks_start_is_refused(checked, tmp_path, demo_folder, capfd):
    shutil.copytree(demo_folder, tmp_path / "motion")
    store = prepare_store(DataConfig(path=str(tmp_path / "motion")), tmp_path / "store").folder
    run = checked(f"--data_path={store}", "--name=mine", "--total_iter=2")
    next((tmp_path / "motion").rglob("*.npz")).unlink()
    prepare_store(DataConfig(path=str(tmp_path / "motion")), store)
    assert train(run, Signals()) is ExitStatus.BAD_INPUT
    assert f"{store}: was prepared again or added to since this run was started" in capfd.readouterr().err
