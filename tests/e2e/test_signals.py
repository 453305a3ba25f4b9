"""Signals to a real run, without its terminal or behind a pipe; `python -m tests.e2e.signals` sends all of them."""

import signal
import subprocess

import pytest

from tests.e2e.signals import Played, play_harmless, play_stop

pytestmark = pytest.mark.processes


def test_a_signal_to_any_process_saves_and_a_resume_goes_on(tmp_path):
    for number, target, around in (
        (signal.SIGHUP, "process group", "terminal gone"),
        (signal.SIGINT, "process group", "tee"),
        (signal.SIGTERM, "all processes", "terminal"),
    ):
        row = play_stop(tmp_path, number, target, around, ranks=2 if around == "terminal" else 1)
        assert row.faults == [], row


def test_what_asks_for_nothing_or_is_ignored_at_the_start_ends_no_run(tmp_path):
    ignored = (signal.SIGHUP, signal.SIGINT)
    played = Played(tmp_path, "run", "terminal gone", "--total_iter=250", ranks=1, ignoring=ignored)
    try:
        assert played.wait_for(lambda: played.step() > 3), played.said()
        played.hang_up()
        for number in (*ignored, signal.SIGUSR1, signal.SIGUSR2):
            row = play_harmless(played, number, "all processes")
            assert row.faults == [], row
        status = played.launcher.wait(timeout=120)
    finally:
        left = played.end()
    assert (status, left, played.step()) == (0, 0, 250)


def test_a_stop_before_the_ranks_train_is_75(tmp_path):
    played = Played(tmp_path, "run", "terminal")
    try:
        assert played.wait_for(lambda: any("--local_rank=1" in each.cmdline() for each in played.processes()))
        played.send(signal.SIGTERM, "all processes")
        status = played.launcher.wait(timeout=30)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        left = played.end()
    assert (status, left) == (75, 0)
    assert "Traceback" not in played.said() and "\ncontinue with: " in played.said().replace("\r", "")
