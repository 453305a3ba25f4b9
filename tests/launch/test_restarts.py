"""Which jobs are started again after a failure, how often, and how the pause before it ends."""

import os
import signal
import threading

import pytest

from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.launch.restarts import run_with_restarts
from ds_rvqvae.launch.supervise import signals_noted

pytestmark = pytest.mark.processes


def test_a_killed_run_is_started_again_until_it_is_done(job, capfd):
    starts = []

    def make_job(restart):
        starts.append(restart)
        return job("done" if restart == 2 else "killed")

    with signals_noted() as signals:
        assert run_with_restarts(make_job, 5, signals, first_pause=0.1) is ExitStatus.DONE
    assert starts == [0, 1, 2]
    error = capfd.readouterr().err
    assert "restart 1 of 5" in error and "restart 2 of 5" in error


@pytest.mark.parametrize(
    ("mode", "restarts", "starts", "status"),
    [
        ("killed", 0, 1, ExitStatus.FAILED),
        ("killed", 2, 3, ExitStatus.FAILED),
        ("70", 5, 2, ExitStatus.FAILED),  # at the same step twice
        ("memory", 5, 1, ExitStatus.FAILED),
        ("2", 5, 1, ExitStatus.BAD_INPUT),
        ("75", 5, 1, ExitStatus.STOPPED),
    ],
)
def test_what_is_not_started_again(job, monkeypatch, mode, restarts, starts, status):
    monkeypatch.setattr("ds_rvqvae.launch.supervise.FAILURE_GRACE", 1.0)
    made = []

    def make_job(restart):
        made.append(restart)
        return job(mode)

    with signals_noted() as signals:
        assert run_with_restarts(make_job, restarts, signals, first_pause=0.1) is status
    assert len(made) == starts


def test_a_signal_ends_the_pause_before_a_restart(job, capfd):
    threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    # A pause that the signal did not end would outlast the test.
    with signals_noted() as signals:
        assert run_with_restarts(lambda _: job("70"), 1, signals, first_pause=3600.0) is ExitStatus.STOPPED
    assert "stopped before the restart" in capfd.readouterr().err
