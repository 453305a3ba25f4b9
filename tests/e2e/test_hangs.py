"""Real runs in which one rank stops, dies, runs out of memory, or lets the others wait for it."""

import os
import re
import signal
import time

import pytest

from tests.e2e import blocked
from tests.e2e.running import Launched
from tests.train.small import read_metrics

pytestmark = pytest.mark.processes


@pytest.fixture
def launch(tmp_path, demo_folder):
    """Starts a run of two ranks and waits until it trains."""
    started = []

    def start(*flags):
        run = Launched(tmp_path, demo_folder, "--include=localhost:0,1", "--name=hurt", *flags)
        started.append(run)
        metrics = tmp_path / "runs" / "hurt" / "metrics.jsonl"
        run.wait_for(lambda: metrics.is_file() and metrics.read_text())
        assert len(run.ranks()) == 2
        return run

    yield start
    for run in started:
        run.end()


def test_a_stopped_rank_ends_the_run_and_is_named(launch):
    run = launch("--total_iter=1000000", "--hang_timeout=5")
    victim = run.ranks()[1]
    os.kill(victim.pid, signal.SIGSTOP)
    assert run.process.wait(timeout=60) == 70
    assert run.end() == []
    assert f"training failed: rank 1 (process {victim.pid}) has been stopped for" in run.said()


def test_a_killed_rank_is_named(launch, tmp_path):
    run = launch("--total_iter=1000000")
    victim = run.ranks()[1]
    os.kill(victim.pid, signal.SIGKILL)
    assert run.process.wait(timeout=60) == 70
    assert run.end() == []
    reason = f"training failed: rank 1 (process {victim.pid}) was "
    assert reason in run.said()
    assert reason in (tmp_path / "runs" / "hurt" / "run.log").read_text()


def test_a_request_to_save_saves_and_the_run_goes_on(launch, tmp_path):
    run = launch("--total_iter=1000000")
    run.process.send_signal(signal.SIGUSR1)
    latest, metrics = (tmp_path / "runs" / "hurt" / name for name in ("checkpoints/latest", "metrics.jsonl"))
    run.wait_for(latest.exists, seconds=30)
    lines = metrics.read_text().count("\n")
    run.wait_for(lambda: metrics.read_text().count("\n") > lines, seconds=30)


def test_a_killed_rank_is_replaced_by_a_restart_that_ends_the_run(launch, tmp_path):
    run = launch("--total_iter=60", "--save_every=5", "--max_restarts=1", "--hang_timeout=60")
    run.wait_for(lambda: (tmp_path / "runs" / "hurt" / "checkpoints" / "latest").exists())
    os.kill(run.ranks()[0].pid, signal.SIGKILL)
    run.wait_for(lambda: "restart 1 of 1 in 5 s" in run.said())
    run.wait_for(run.ranks)
    assert run.process.wait(timeout=120) == 0, run.said()
    assert run.end() == []
    assert [line["step"] for line in read_metrics(tmp_path / "runs" / "hurt")] == list(range(1, 61))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["hurt"]


LIMIT = 40.0
"""Seconds from an event until no process of the run is left."""


@pytest.fixture
def launch_blocked(tmp_path, demo_folder):
    """Starts a run whose ranks wait for one after step 6, and waits until they do."""
    started = []

    def start(ranks, *flags, what, victim=1):
        included = "--include=localhost:" + ",".join(map(str, range(ranks)))
        common = [included, "--name=hurt", "--total_iter=1000000", "--save_every=5", *flags]
        places = tmp_path / "blocked"
        variables = blocked.variables(places, what, victim, step=6)
        run = Launched(tmp_path, demo_folder, *common, slots=ranks, variables=variables)
        started.append(run)
        run.wait_for(lambda: run.ranks() and blocked.waiting(places) == ranks, seconds=600)
        return run

    yield start
    for run in started:
        run.end()


def test_one_of_seven_that_runs_out_of_memory_ends_the_run_though_six_wait(launch_blocked, tmp_path):
    run = launch_blocked(7, "--max_restarts=2", what="memory", victim=3)
    status = run.process.wait(timeout=120)
    seconds = time.time() - float((tmp_path / "blocked" / "event").read_text())
    assert (status, run.end()) == (70, []), run.said()
    assert seconds < LIMIT
    named = [line for line in run.said().splitlines() if re.search(r"\brank \d", line)]
    assert len(named) == 1 and named[0].startswith("error: rank 3: OutOfMemory: micro batch 4 does not fit: ")
    assert "not started again" in run.said() and "in 5 s" not in run.said()


def test_a_stop_of_ranks_that_wait_ends_them_and_names_the_older_checkpoint(launch_blocked, tmp_path):
    run = launch_blocked(3, what="sleep")
    time.sleep(1.0)  # until they wait
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    status = run.process.wait(timeout=120)
    assert time.monotonic() - began < LIMIT
    assert (status, run.end()) == (70, []), run.said()
    (line,) = [line for line in run.said().splitlines() if line.startswith("error: ")]
    folder = tmp_path / "runs" / "hurt" / "checkpoints"
    assert "SIGTERM asked to stop, but no step was finished" in line
    assert line.endswith(f"the newest complete checkpoint is global_step5 (step 5) in {folder}")
    assert line.removeprefix("error: ") in (tmp_path / "runs" / "hurt" / "run.log").read_text()
