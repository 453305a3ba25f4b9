"""Signs of life: what a rank writes, and which rank is stuck."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ds_rvqvae.runs.heartbeat import (
    BLOCKED,
    HEARTBEAT_VARIABLE,
    PATIENCE,
    Cause,
    Heartbeat,
    Sign,
    Watch,
    find_stuck,
    is_blocked,
    read_heartbeats,
)
from tests.ranks import ROOT

NOW = 10_000.0


@pytest.fixture
def signs(tmp_path, monkeypatch):
    file = tmp_path / "signs"
    file.touch()
    monkeypatch.setenv(HEARTBEAT_VARIABLE, str(file))
    return file


def sign(rank, step=5, alive=0.5, progress=0.5, patient=False, pid=None):
    """A rank's sign, with ages in seconds; of this process by default."""
    return Sign(rank, rank, pid or os.getpid(), step, NOW - alive, NOW - progress, patient)


def stuck(*signs, ranks=2, started=NOW - 5000, limit=120.0):
    return find_stuck(signs, ranks, started, NOW, limit)


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_rank_writes_who_and_where_it_is(signs, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    heartbeat = Heartbeat.start(3)
    (first,) = read_heartbeats(signs)
    assert (first.rank, first.local_rank, first.pid, first.step, first.patient) == (3, 1, os.getpid(), 0, True)
    heartbeat.beat(12)
    (second,) = read_heartbeats(signs)
    assert second.step == 12 and second.progress > first.progress and not second.patient
    wait_until(lambda: read_heartbeats(signs)[0].alive > second.alive)
    assert read_heartbeats(signs)[0].progress == second.progress
    with heartbeat.long_work():
        wait_until(lambda: read_heartbeats(signs)[0].patient)
    wait_until(lambda: not read_heartbeats(signs)[0].patient)


def test_nothing_is_written_unless_a_launcher_asks(tmp_path, monkeypatch):
    monkeypatch.delenv(HEARTBEAT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    heartbeat = Heartbeat.start(0)
    heartbeat.beat(1)
    with heartbeat.long_work():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone_does_not_end_the_rank(signs):
    signs.unlink()
    Heartbeat.start(0).beat(1)
    assert read_heartbeats(signs) == []


def test_ranks_that_wrote_nothing_or_half_a_sign_are_passed_over(signs, monkeypatch):
    assert read_heartbeats(signs) == []
    monkeypatch.setenv("LOCAL_RANK", "2")
    Heartbeat.start(5).beat(1)
    with signs.open("ab") as file:
        file.write(b"half")
    assert [(sign.rank, sign.local_rank) for sign in read_heartbeats(signs)] == [(5, 2)]


def test_ranks_that_get_on_are_not_stuck():
    assert stuck(sign(0), sign(1)) is None
    assert stuck(sign(0, progress=119), sign(1, progress=119)) is None


def test_a_silent_rank_is_named_before_those_that_wait_for_it():
    text = stuck(sign(0, progress=130), sign(1, alive=125, progress=130))
    assert text == f"rank 1 (process {os.getpid()}) has given no sign of life for 125 s"


def test_a_stopped_process_is_called_that():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        text = stuck(sign(0), sign(1, alive=121, pid=process.pid))
        assert text == f"rank 1 (process {process.pid}) has been stopped for 121 s"
    finally:
        process.kill()
        process.wait()


def test_a_rank_that_has_ended_is_not_stuck():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert stuck(sign(0), sign(1, alive=1000, progress=1000, pid=process.pid)) is None


def test_where_no_rank_gets_on_the_one_behind_is_named():
    text = stuck(sign(0, step=8, progress=140), sign(1, step=7, progress=150))
    assert text.startswith(f"rank 1 (process {os.getpid()}) has not finished a step for 140 s, after step 7")
    text = stuck(sign(0, progress=140), sign(1, progress=140))
    assert text.startswith("rank 0") and ", rank 1" in text and "have not finished" in text


def test_one_rank_that_gets_on_is_waited_for():
    assert stuck(sign(0, progress=500), sign(1, progress=10)) is None


def test_long_work_and_the_start_have_more_time():
    assert stuck(sign(0, progress=500), sign(1, progress=PATIENCE - 1, patient=True)) is None
    assert stuck(sign(0, progress=700), sign(1, progress=PATIENCE + 1, patient=True)) is not None


def test_ranks_that_never_wrote_have_the_time_of_the_start():
    assert stuck(sign(0), started=NOW - PATIENCE + 1) is None
    assert stuck(sign(0), started=NOW - PATIENCE - 1) == "local rank 1 did not start within 600 s"
    assert stuck(started=NOW - PATIENCE - 1) == "local rank 0, 1 did not start within 600 s"
    assert stuck(sign(0), started=NOW - 700, limit=900) is None


def test_a_pause_of_the_watcher_does_not_count_as_silence(signs, monkeypatch):
    watch = Watch(signs, 1, limit=60)
    Heartbeat.start(0).beat(4)
    assert watch.look() is None and watch.step == 4
    later = time.monotonic() + 1000
    monkeypatch.setattr("ds_rvqvae.runs.heartbeat.time.monotonic", lambda: later)
    assert watch.look() is None


def test_a_process_ends_as_it_first_said(signs):
    Heartbeat.start(0)
    assert [Heartbeat.end(status) for status in (75, 70)] == [75, 75]
    assert read_heartbeats(signs)[0].ended == 75


def test_a_rank_is_blocked_if_no_step_ends_after_it_was_asked_to_stop():
    asked = NOW - 2 * BLOCKED
    assert not is_blocked(sign(0, progress=500), NOW - BLOCKED + 1, NOW)  # it may have been blocked for long
    assert is_blocked(sign(0, progress=500), NOW - BLOCKED - 1, NOW)
    assert not is_blocked(sign(0, progress=BLOCKED - 1), asked, NOW)  # it goes on
    slow = sign(0, progress=BLOCKED + 1)
    slow.slowest = 0.75 * BLOCKED
    assert not is_blocked(slow, asked, NOW)
    slow.slowest = 0.25 * BLOCKED
    assert is_blocked(slow, asked, NOW)


def test_a_save_is_not_blocked_but_a_first_step_may_be():
    asked = NOW - 2 * BLOCKED
    assert not is_blocked(sign(0, progress=500, patient=True), asked, NOW)
    assert is_blocked(sign(0, step=0, progress=500, patient=True), asked, NOW)


def test_the_longest_of_the_last_steps_is_told_without_the_work_between_them(signs, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("ds_rvqvae.runs.heartbeat.time.monotonic", lambda: now[0])
    heartbeat = Heartbeat(signs, 0)
    for step, seconds in enumerate((50.0, 3.0, 2.0), 1):
        now[0] += seconds
        heartbeat.beat(step)
    assert read_heartbeats(signs)[0].slowest == 3.0  # the first step does not count
    with heartbeat.long_work():
        now[0] += 400.0
    for step in range(4, 12):
        now[0] += 1.0
        heartbeat.beat(step)
    assert read_heartbeats(signs)[0].slowest == 1.0


FAILING = """
import sys, time
from pathlib import Path
from ds_rvqvae.runs.heartbeat import Cause, Heartbeat
rank, how = int(sys.argv[1]), sys.argv[2]
Heartbeat.start(rank)
while not Path("go").exists():
    time.sleep(0.005)
if how == "fails":
    print(Heartbeat.fail(Cause.OUT_OF_MEMORY), flush=True)
elif how == "follows":
    print(Heartbeat.fail(patience=20.0), flush=True)
"""


def fail_together(signs, folder, *ways):
    """Processes that do as they are told at the same moment; returns what `Heartbeat.fail` told each."""
    (folder / "fails.py").write_text(FAILING)
    processes = []
    for rank, how in enumerate(ways):
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "fails.py", str(rank), how]
        processes.append(subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True))
    wait_until(lambda: len(read_heartbeats(signs)) == len(ways), seconds=60.0)
    (folder / "go").touch()
    return [process.communicate(timeout=60)[0].strip() for process in processes]


def test_one_of_the_ranks_that_fail_at_once_says_why(signs, tmp_path):
    assert sorted(fail_together(signs, tmp_path, *["fails"] * 4)) == ["False"] * 3 + ["True"]
    causes = sorted(sign.cause for sign in read_heartbeats(signs))
    assert causes == [Cause.OUT_OF_MEMORY] + [Cause.FOLLOWED] * 3
    watch = Watch(signs, 4, limit=0)
    assert watch.one_failed() and watch.ended() == 70 and watch.last_word().cause == Cause.OUT_OF_MEMORY


def test_a_rank_that_fails_because_another_was_killed_says_nothing(signs, tmp_path):
    assert fail_together(signs, tmp_path, "is gone", "follows") == ["", "False"]
    assert Watch(signs, 2, limit=0).last_word() is None
