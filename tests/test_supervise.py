"""Supervision of a real tree of processes: runner, deepspeed's rank launcher under it, ranks under that."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.supervise import supervise

pytestmark = pytest.mark.processes

# Stands in for the runner and for the rank launcher: starts what comes after its own two words and passes on the
# status of whichever rank ends first, after SIGTERM to the others, as deepspeed does.
PARENT = """
import subprocess, sys, time
count, _name, *command = sys.argv[1:]
children = [subprocess.Popen(command) for _ in range(int(count))]
while not (ended := [child for child in children if child.poll() is not None]):
    time.sleep(0.02)
for child in children:
    child.terminate()
sys.exit(ended[0].returncode)
"""

# A rank: writes its pid, then does what its first word says.
RANK = """
import os, signal, sys, time
from pathlib import Path
mode, folder = sys.argv[1], Path(sys.argv[2])
def stop(*_):
    (folder / f"stopped-{os.getpid()}").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else stop)
if mode == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
(folder / f"rank-{os.getpid()}").touch()
if mode == "done":
    (folder / "outcome").write_text("done")
elif mode == "silent":
    pass
elif mode.isdecimal():
    sys.exit(int(mode))
elif mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    time.sleep(120)
"""

DRIVER = """
import os, sys
from pathlib import Path
from ds_rvqvae.supervise import supervise
outcome, grace, *command = sys.argv[1:]
sys.exit(supervise(command, os.environ, Path(outcome), stop_grace=float(grace), end_grace=1.0))
"""


@pytest.fixture
def tree(tmp_path):
    """Command lines of a supervised tree with two ranks, by what the ranks do."""
    for name, text in (("parent", PARENT), ("rank", RANK), ("driver", DRIVER)):
        (tmp_path / f"{name}.py").write_text(text)

    def command(mode):
        parent = [sys.executable, str(tmp_path / "parent.py")]
        rank = [sys.executable, str(tmp_path / "rank.py"), mode, str(tmp_path)]
        return [*parent, "1", "runner", *parent, "2", "deepspeed.launcher.launch", *rank]

    return command


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
    started = []

    def start(mode, grace=20.0):
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "outcome"), str(grace), *tree(mode)],
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
        ("silent", ExitStatus.FAILED, "without a rank saying that the run is done"),
        ("2", ExitStatus.BAD_INPUT, ""),
        ("3", ExitStatus.CARD_NOT_IDLE, ""),
        ("4", ExitStatus.NO_DRIVER, ""),
        ("70", ExitStatus.FAILED, ""),
        ("75", ExitStatus.STOPPED, "--resume"),
        ("1", ExitStatus.FAILED, "a rank ended with status 1"),
        ("killed", ExitStatus.FAILED, "a rank was ended by SIGKILL"),
    ],
)
def test_how_the_ranks_end_is_the_exit_status(tree, tmp_path, capfd, mode, status, said):
    assert supervise(tree(mode), os.environ, tmp_path / "outcome", end_grace=1.0) is status
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == bool(said)
    assert not alive(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_every_rank_and_no_process_is_left(driven, tmp_path, number):
    process = driven("wait")
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.STOPPED
    assert len(list(tmp_path.glob("stopped-*"))) == 2
    assert "--resume" in error
    assert not alive(tmp_path)


def test_ranks_that_do_not_stop_are_killed_after_the_grace(driven, tmp_path):
    process = driven("deaf", grace=1.0)
    began = time.monotonic()
    process.terminate()
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.STOPPED
    assert 1.0 < time.monotonic() - began < 10
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
    process = driven("deaf")
    launcher = psutil.Process(ranks(tmp_path)[0]).parent()
    launcher.kill()
    _, error = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.FAILED
    assert "SIGKILL" in error
    assert not alive(tmp_path)


def test_the_runner_ends_with_its_supervisor(driven, tmp_path):
    process = driven("wait")
    runner = psutil.Process(process.pid).children()[0]
    process.kill()
    wait_until(lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE)


def test_handlers_are_put_back(tree, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    supervise(tree("done"), os.environ, Path(tmp_path / "outcome"))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
