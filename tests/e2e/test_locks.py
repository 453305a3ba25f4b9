"""Two starts in one run's folder, on a file system without locks."""

import signal
import sys

import pytest

from ds_rvqvae.locks import LOCK_FILE
from tests.e2e.running import Launched
from tests.train.small import read_metrics
from tests.without_locks import can_refuse

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not can_refuse(), reason="the kernel cannot refuse locks to a process"),
]


@pytest.fixture
def start(tmp_path, demo_folder):
    """Starts the run named `one` and waits for a step."""
    started = []

    def start_until(step):
        by = [sys.executable, "-m", "tests.without_locks", "flock,fcntl"]
        flags = ["--include=localhost:0", "--name=one", "--resume", f"--total_iter={step}"]
        started.append(Launched(tmp_path, demo_folder, *flags, slots=1, by=by))
        return started[-1]

    yield start_until
    for one in started:
        one.end()


def test_the_second_start_is_refused_by_name_and_a_killed_one_keeps_nobody_out(start, tmp_path):
    run = tmp_path / "runs" / "one"
    first = start(1_000_000)
    first.wait_for(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_text())
    (rank,) = first.ranks()
    second = start(1_000_000)
    assert second.process.wait(timeout=100) == 2
    assert f"error: runs/one: process {rank.pid} of this machine" in second.said().replace(f"{tmp_path}/", "")
    for process in first.family.values():
        process.send_signal(signal.SIGKILL)
    first.process.kill()
    assert (run / LOCK_FILE).is_file()
    third = start(2)
    assert third.process.wait(timeout=100) == 0, third.said()
    assert len(read_metrics(run)) == 2 and not (run / LOCK_FILE).exists()
