"""What ranks are started with: the run's own profile and what is to differ from it, or flags typed by hand."""

import json
import shlex
import subprocess

import pytest

from tests.e2e.running import LAUNCHER, Launched
from tests.ranks import bare_environment
from tests.train.small import SMALL, read_metrics

pytestmark = pytest.mark.processes
CPU = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "1", "OMP_NUM_THREADS": "1"}


def rank_arguments(launched):
    """The arguments of the run's one rank, once it runs, without deepspeed's; and its run to the end."""
    launched.wait_for(launched.ranks)
    words = launched.ranks()[0].cmdline()
    assert launched.process.wait(timeout=120) == 0, launched.said()
    assert launched.end() == []
    own = words[words.index("ds_rvqvae.train") + 1 :]
    return [word for word in own if not word.startswith("--local_rank")]


def test_ranks_read_the_runs_own_profile_and_what_is_to_differ_from_it(tmp_path, demo_folder):
    run = tmp_path / "runs" / "mine"
    place = ["--profile", str(run / "profile.json"), "--out", str(tmp_path / "runs"), "--name", "mine"]
    flags = ["--include=localhost:0", "--name=mine", "--width=16"]
    assert rank_arguments(Launched(tmp_path, demo_folder, *flags, "--total_iter=2")) == place
    assert json.loads((run / "profile.json").read_text())["rvqvae"]["model"]["width"] == 16

    again = rank_arguments(Launched(tmp_path, demo_folder, *flags, "--total_iter=3", "--resume", "--lr=1e-3"))
    changed = ["--set", "optimizer.params.lr=0.001", "--set", "rvqvae.training.total_iter=3"]
    assert again == [*place, "--resume", *changed]
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3]
    assert json.loads((run / "profile.json").read_text())["optimizer"]["params"]["lr"] == 1e-3
    said = (run / "run.log").read_text()
    assert "changed: rvqvae.training.total_iter: 2 -> 3" in said and "changed: optimizer.params.lr" in said


def test_what_a_dry_run_prints_works_by_hand_and_leaves_nothing(tmp_path, demo_folder):
    line = [*LAUNCHER, *SMALL, "--include=localhost:0", f"--data_path={demo_folder}", "--batch_size=4"]
    line += ["--total_iter=2", "--name=by hand"]
    environment = bare_environment(tmp_path, **CPU)
    before = sorted(tmp_path.iterdir())
    shown = subprocess.run([*line, "--dry_run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    # The motion is checked from its store, which is kept in the user's cache.
    assert sorted(path for path in tmp_path.iterdir() if path.name != "cache") == before
    ran = subprocess.run(shlex.split(shown.stdout), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert [line["step"] for line in read_metrics(tmp_path / "runs" / "by hand")] == [1, 2]


def test_a_run_that_no_rank_has_opened_leaves_no_folder(tmp_path, demo_folder):
    (tmp_path / "broken").mkdir()
    # Every rank ends as its interpreter starts.
    (tmp_path / "broken" / "sitecustomize.py").write_text("import os\nif 'LOCAL_RANK' in os.environ: os._exit(9)\n")
    line = [*LAUNCHER, *SMALL, "--include=localhost:0", f"--data_path={demo_folder}", "--name=none", "--total_iter=2"]
    environment = bare_environment(tmp_path, **CPU)
    environment["PYTHONPATH"] = f"{tmp_path / 'broken'}:{environment.get('PYTHONPATH', '')}"
    ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 70, ran.stderr
    assert not (tmp_path / "runs").exists()
