"""Supervision of a real tree of processes: runner, deepspeed's rank launcher under it, ranks under that."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest

from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.launch.supervise import Ending, Job, signals_noted, supervise
from ds_rvqvae.runs.heartbeat import HEARTBEAT_VARIABLE, Cause, Watch
from tests.ranks import ROOT

pytestmark = pytest.mark.processes

DRIVER = """
import os, sys
from pathlib import Path
from ds_rvqvae.runs.heartbeat import HEARTBEAT_VARIABLE, Watch
from ds_rvqvae.launch.supervise import Job, signals_noted, supervise
grace, limit, *command = sys.argv[1:]
watch = Watch(Path(os.environ[HEARTBEAT_VARIABLE]), 2, float(limit))
with signals_noted() as signals:
    sys.exit(supervise(Job(command, os.environ, watch), signals, stop_grace=float(grace)).status)
"""


def run(job):
    with signals_noted() as signals:
        return supervise(job, signals)


def test_ranks_that_start_slowly_are_spoken_for_until_they_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ds_rvqvae.process.progress.SECONDS_OF_SILENCE", 0.2)
    heartbeats = tmp_path / "heartbeats"
    heartbeats.touch()
    # The one rank writes its sign after a while.
    code = (
        "import time\ntime.sleep(1)\nfrom ds_rvqvae.runs.heartbeat import Heartbeat as H\n"
        "H.start(0)\ntime.sleep(3)\nH.end(0)"
    )
    environment = {**os.environ, HEARTBEAT_VARIABLE: str(heartbeats), "PYTHONPATH": str(ROOT)}
    job = Job([sys.executable, "-c", code], environment, Watch(heartbeats, 1, 0.0))
    before = time.monotonic()
    assert run(job).status is ExitStatus.DONE
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("still starting the ranks, ") for line in lines)
    # At most five per second, and none in the three seconds that it ran; a busy machine notices its start late.
    assert len(lines) <= (time.monotonic() - before - 1.5) / 0.2


def ranks(folder):
    return [int(file.name.removeprefix("rank-")) for file in folder.glob("rank-*")]


def alive(folder):
    """Running processes of the tree below its supervisor."""
    scripts = {f"{folder}/parent.py", f"{folder}/rank.py"}
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and scripts & set((process.info["cmdline"] or [])[1:2])
    ]


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def driven(tree, tmp_path):
    """Starts a supervised tree in a process of its own, to be signalled once both ranks run."""
    (tmp_path / "driver.py").write_text(DRIVER)
    started = []

    def start(mode, grace=20.0, limit=0.0):
        process = subprocess.Popen(
            [
                *(sys.executable, str(tmp_path / "driver.py")),
                *(str(grace), str(limit), *tree(mode)),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        wait_until(lambda: len(ranks(tmp_path)) == 2)
        return process

    yield start
    for process in started:
        process.kill()
        for orphan in alive(tmp_path):
            orphan.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("mode", "status", "said"),
    [
        ("done", ExitStatus.DONE, ""),
        ("silent", ExitStatus.FAILED, "before a rank reported that the run is done"),
        ("2", ExitStatus.BAD_INPUT, ""),
        ("3", ExitStatus.CARD_NOT_IDLE, ""),
        ("4", ExitStatus.NO_DRIVER, ""),
        ("70", ExitStatus.FAILED, ""),
        ("75", ExitStatus.STOPPED, ""),
        ("1", ExitStatus.FAILED, "ended with status 1"),
        ("killed", ExitStatus.FAILED, "training failed: rank 1 (process "),
        # Its sibling ends with another status, by the SIGTERM that deepspeed sends it.
        ("first-75", ExitStatus.STOPPED, "stopped"),
    ],
)
def test_how_the_ranks_end_is_the_exit_status(job, tmp_path, capfd, mode, status, said):
    assert run(job(mode)).status is status
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == bool(said)
    assert not alive(tmp_path)


@pytest.mark.parametrize(("mode", "by_ranks"), [("70", True), ("1", True), ("killed", False), ("silent", False)])
def test_an_ending_tells_ranks_that_gave_up_from_those_that_were_killed(job, mode, by_ranks):
    assert run(job(mode)) == Ending(ExitStatus.FAILED, by_ranks, step=7)


@pytest.mark.parametrize(
    ("mode", "said", "by_ranks", "cause"),
    [
        ("memory", "", True, Cause.OUT_OF_MEMORY),  # the rank has said it
        ("killed-deaf", "training failed: rank 1 (process ", False, Cause.OTHER),
    ],
)
def test_ranks_that_wait_for_one_that_is_gone_are_ended(job, tmp_path, monkeypatch, capfd, mode, said, by_ranks, cause):
    # The rank launcher of this tree waits for them for ever, and the time without a step would be over soon.
    monkeypatch.setattr("ds_rvqvae.launch.supervise.FAILURE_GRACE", 3.0)
    waited = job(mode)
    watch = Watch(waited.watch.file, waited.watch.local_ranks, limit=1.0)
    assert run(replace(waited, watch=watch)) == Ending(ExitStatus.FAILED, by_ranks, step=7, cause=cause)
    error = capfd.readouterr().err
    assert error.startswith(said) and error.count("\n") == bool(said)
    assert not alive(tmp_path)


def test_blocked_ranks_end_before_the_grace_and_the_older_checkpoint_is_named(job, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("ds_rvqvae.runs.heartbeat.BLOCKED", 1.0)
    monkeypatch.setattr("ds_rvqvae.runs.heartbeat._LATER", 0.5)
    deaf = replace(job("deaf"), log=tmp_path / "run" / "run.log")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.log").touch()
    threading.Thread(target=lambda: (wait_until(deaf.watch.begun), os.kill(os.getpid(), signal.SIGTERM))).start()
    began = time.monotonic()
    assert run(deaf).status is ExitStatus.FAILED
    assert time.monotonic() - began < 60.0  # of the 120 s for ranks that save
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("training failed: the ranks did not end within ")
    assert line.endswith(f"there is no complete checkpoint in {tmp_path / 'run' / 'checkpoints'}")
    assert line in (tmp_path / "run" / "run.log").read_text()
    assert not alive(tmp_path)


def test_the_last_step_of_ranks_that_end_between_two_looks_is_known(job):
    class Seldom(Watch):
        """A supervisor that sleeps from its fourth check on until the ranks have ended."""

        asked = 0

        def ended(self):
            self.asked += 1
            if self.asked == 4:
                wait_until(lambda: Watch.ended(self) is not None)
            return super().ended()

    failing = job("70")
    watch = Seldom(failing.watch.file, failing.watch.local_ranks, 0)
    assert run(replace(failing, watch=watch)) == Ending(ExitStatus.FAILED, by_ranks=True, step=7)


def test_a_killed_rank_is_named(driven, tmp_path):
    process = driven("wait")
    victim = next(pid for pid in ranks(tmp_path) if psutil.Process(pid).environ()["RANK"] == "1")
    os.kill(victim, signal.SIGKILL)
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.FAILED
    assert (
        error == f"training failed: rank 1 (process {victim}) was ended by SIGKILL; the usual reason is that the host "
        "is out of memory\n"
    )
    assert not alive(tmp_path)


def test_a_stopped_rank_ends_the_job_and_is_named(driven, tmp_path):
    process = driven("wait", limit=3.0)
    victim = next(pid for pid in ranks(tmp_path) if psutil.Process(pid).environ()["RANK"] == "1")
    os.kill(victim, signal.SIGSTOP)
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.FAILED
    assert error.startswith(f"training failed: rank 1 (process {victim}) has been stopped for ")
    assert not alive(tmp_path)


def test_ranks_that_finish_no_step_end_the_job(driven, tmp_path):
    process = driven("deaf", limit=2.0)
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.FAILED
    assert "rank 0" in error and "rank 1" in error and "after step 7" in error and "--hang_timeout" in error
    assert not alive(tmp_path)


def test_a_request_to_save_reaches_the_ranks_that_take_it_and_no_other_process(driven, tmp_path):
    process = driven("wait")
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: list(tmp_path.glob("saved-*")))
    # The other rank has no handler, as before training starts, and would have died from it.
    time.sleep(0.5)
    assert process.poll() is None and len(alive(tmp_path)) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_every_rank_and_no_process_is_left(driven, tmp_path, number):
    process = driven("wait")
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.STOPPED
    assert len(list(tmp_path.glob("stopped-*"))) == 2
    assert error == "stopping the ranks; Ctrl-C once more kills them\n"  # the ranks print the rest
    assert not alive(tmp_path)


def test_ranks_that_do_not_stop_are_killed_after_the_grace(driven, tmp_path):
    process = driven("deaf", grace=1.0)
    began = time.monotonic()
    process.terminate()
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.FAILED  # nothing was saved
    assert time.monotonic() - began > 1.0
    assert "did not end within 1 s" in error
    assert not alive(tmp_path)


def test_a_second_interrupt_kills_at_once(driven, tmp_path):
    process = driven("deaf", grace=100.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None and len(alive(tmp_path)) == 4
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == ExitStatus.STOPPED
    assert not alive(tmp_path)


def test_a_killed_rank_launcher_leaves_no_orphans_and_is_a_failure(driven, tmp_path):
    process = driven("deaf", grace=1.0)
    launcher = psutil.Process(ranks(tmp_path)[0]).parent()
    launcher.kill()
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.FAILED
    assert "SIGKILL" in error
    assert not alive(tmp_path)


@pytest.mark.parametrize("place", ["runner", "launch.py", "rank"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_below_the_launcher_stops_every_rank(driven, tmp_path, place, number):
    process = driven("wait")
    rank = psutil.Process(ranks(tmp_path)[1])
    os.kill({"rank": rank, "launch.py": rank.parent(), "runner": rank.parent().parent()}[place].pid, number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.STOPPED, error
    assert len(list(tmp_path.glob("stopped-*"))) == 2
    assert not alive(tmp_path)


def test_signals_that_ask_for_nothing_end_no_process(driven, tmp_path):
    process = driven("wait")
    above = psutil.Process(ranks(tmp_path)[0]).parents()[:2]
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        for each in (*above, *map(psutil.Process, ranks(tmp_path))):
            each.send_signal(number)
    time.sleep(1.0)
    assert process.poll() is None and len(alive(tmp_path)) == 4


@pytest.mark.parametrize("place", ["runner", "launch.py"])
def test_ranks_are_let_stop_where_a_process_above_them_was_killed(driven, tmp_path, place):
    process = driven("wait")
    above = psutil.Process(ranks(tmp_path)[0]).parent()
    (above if place == "launch.py" else above.parent()).kill()
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.FAILED and "SIGKILL" in error
    assert len(list(tmp_path.glob("stopped-*"))) == 2
    assert not alive(tmp_path)


def test_a_stop_before_the_ranks_start_waits_for_nothing(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    with signals_noted() as signals:
        signals.stops.append(signal.SIGTERM)
        watch = Watch(tmp_path / "heartbeats", 1, 0)
        began = time.monotonic()
        ending = supervise(Job([sys.executable, str(tmp_path / "slow.py")], os.environ, watch), signals)
    assert ending.status is ExitStatus.STOPPED and time.monotonic() - began < 10


def test_the_runner_ends_with_its_supervisor(driven, tmp_path):
    process = driven("wait")
    runner = psutil.Process(process.pid).children()[0]
    process.kill()
    wait_until(lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE)


def test_handlers_are_put_back(job):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    run(job("done"))
    assert [signal.getsignal(number) for number in numbers] == before
