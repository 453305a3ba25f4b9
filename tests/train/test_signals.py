"""Signals that end a run or make it save, and ranks whose launcher has died."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ds_rvqvae.process.signals import left_to_a_thread
from ds_rvqvae.runs.checkpoints import checkpoints, damage_of
from ds_rvqvae.train.signals import Agreement, Wanted
from tests.ranks import ROOT, start_ranks, train_ranks
from tests.train.small import SMALL, read_metrics, wait_until


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_saves_on_all(tmp_path, demo_folder, number):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    command = ["-m", "ds_rvqvae.train", *flags, "--total_iter=100000"]
    ranks = start_ranks(2, command, new_interpreters=number == signal.SIGTERM)
    run = tmp_path / "run"
    wait_until(lambda: (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) > 3)
    ranks[1].send_signal(number)
    wait_until(lambda: checkpoints(run / "checkpoints"))
    if number == signal.SIGUSR1:
        saved = len(read_metrics(run))
        wait_until(lambda: len((run / "metrics.jsonl").read_text().splitlines()) > saved + 3)
        ranks[0].send_signal(signal.SIGTERM)
    printed = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], printed
    newest = checkpoints(run / "checkpoints")[-1]
    assert damage_of(newest) is None
    assert f"stopped at step {int(newest.name[11:]):,}; --resume goes on from step" in printed[0]
    assert "Traceback" not in "".join(printed)
    step = int(newest.name[11:])
    train_ranks(2, *flags, f"--total_iter={step + 2}", "--resume")
    assert [line["step"] for line in read_metrics(run)] == list(range(1, step + 3))


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_rank_that_waits_for_another_before_it_trains_ends_at_once(tmp_path, demo_folder, number):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    first, second = start_ranks(2, ["-m", "ds_rvqvae.train", *flags])
    second.send_signal(signal.SIGSTOP)
    try:
        # The rank then waits inside gloo, where Python runs no handler.
        wait_until(lambda: "pt_tcpstore_uv" in threads_of(first.pid))
        time.sleep(1.0)
        for harmless in (signal.SIGUSR1, signal.SIGUSR2):
            first.send_signal(harmless)
        first.send_signal(number)
        printed = first.communicate(timeout=15)[0]
    finally:
        second.kill()
        first.kill()
    assert first.returncode == 75
    assert f"stopped by {signal.Signals(number).name} before this start's first step" in printed
    assert "Traceback" not in printed


def threads_of(pid):
    return [file.read_text().strip() for file in Path(f"/proc/{pid}/task").glob("*/comm")]


LATE = """
import os, signal, sys
from ds_rvqvae.train import rank, trainer
close, leave = trainer.Trainer.close, rank._leave
def signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
def late_close(self):
    signals()
    close(self)
def late_leave(status):
    signals()
    return leave(status)
trainer.Trainer.close, rank._leave = late_close, late_leave
sys.exit(rank.main(sys.argv[1:]))
"""


@pytest.mark.processes
def test_signals_after_the_last_step_change_nothing(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    (rank,) = start_ranks(1, ["-c", LATE, *flags, "--total_iter=2"])
    printed = rank.communicate(timeout=90)[0]
    assert rank.returncode == 0, printed
    assert (tmp_path / "run" / "tokenizer" / "model.safetensors").is_file()


SECOND_SLEEPS = """
import sys, time
from ds_rvqvae.runs import heartbeat
from ds_rvqvae.train import rank, trainer
heartbeat.BLOCKED = 2.0
step, at = trainer.Trainer.step, int(sys.argv[1])
def sleeps(self):
    if self.steps_done == at and self.rank == 1:
        time.sleep(600)
    if self.steps_done == at:
        print("not alone", flush=True)
    return step(self)
trainer.Trainer.step = sleeps
sys.exit(rank.main(sys.argv[2:]))
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("at", "status", "said"),
    [
        (0, 75, "stopped by SIGTERM before this start's first step; nothing is lost"),
        (3, 70, "error: SIGTERM asked to stop, but no step was finished for "),
    ],
)
def test_a_rank_that_waits_in_a_step_hears_signals(tmp_path, demo_folder, at, status, said):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    first, second = start_ranks(2, ["-c", SECOND_SLEEPS, str(at), *flags])
    try:
        wait_until(lambda: "not alone" in first.said())
        time.sleep(0.5)  # it then waits inside gloo, where Python runs no handler
        first.send_signal(signal.SIGTERM)
        printed = first.communicate(timeout=30)[0]
    finally:
        second.kill()
        first.kill()
    assert first.returncode == status and said in printed, printed
    assert ("there is no complete checkpoint in" in printed) == (status == 70)


STOPPED_AT_WORK = """
import os, signal, subprocess, sys
from ds_rvqvae.train import rank
rank.HEARTBEAT_VARIABLE = "PATH"  # as below a launcher: it waits until the others are stopped too
def work(*_):
    os.killpg(0, signal.SIGTERM)
    raise RuntimeError("a process of its own was ended by the same signal")
rank._open_run = work
os.setpgid(0, 0)
sys.exit(rank.main(sys.argv[1:]))
"""


@pytest.mark.processes
def test_what_fails_because_of_a_signal_does_not_change_what_the_rank_ends_with(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    (rank,) = start_ranks(1, ["-c", STOPPED_AT_WORK, *flags])
    printed = rank.communicate(timeout=90)[0]
    assert rank.returncode == 75, printed


@pytest.fixture
def agreement(one_rank):
    found = Agreement()
    with found.listening():
        yield found
    found.close()


@pytest.mark.parametrize(
    ("numbers", "request_"),
    [
        ([signal.SIGUSR1], Wanted.SAVE),
        ([signal.SIGTERM], Wanted.STOP),
        ([signal.SIGINT], Wanted.STOP),
        ([signal.SIGHUP], Wanted.STOP),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1], Wanted.STOP),
    ],
)
def test_a_request_is_agreed_on_by_the_step_after_the_next_and_only_once(agreement, numbers, request_):
    assert agreement.after_step() is Wanted.NONE
    for number in numbers:
        signal.raise_signal(number)
    assert [agreement.after_step() for _ in range(4)] == [Wanted.NONE, request_, Wanted.NONE, Wanted.NONE]


NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def test_handlers_are_installed_only_while_somebody_listens(one_rank):
    before = [signal.getsignal(number) for number in NUMBERS]
    agreement = Agreement()
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with agreement.listening():
        assert all(signal.getsignal(number) not in before for number in NUMBERS)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    agreement.close()


def test_a_signal_that_came_just_before_is_heard(one_rank):
    agreement = Agreement()
    before = signal.signal(signal.SIGTERM, left_to_a_thread)
    try:
        signal.raise_signal(signal.SIGTERM)  # the thread reads it only after the handler has changed
        with agreement.listening():
            assert [agreement.after_step() for _ in range(2)] == [Wanted.NONE, Wanted.STOP]
    finally:
        signal.signal(signal.SIGTERM, before)
        agreement.close()


def test_a_signal_that_is_ignored_at_the_start_stays_ignored(one_rank):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        agreement = Agreement()
        with agreement.listening():
            signal.raise_signal(signal.SIGHUP)
            assert [agreement.after_step() for _ in range(3)] == [Wanted.NONE] * 3
        agreement.close()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_containers_first_process_has_lost_no_launcher():
    first = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*first, "true"], capture_output=True).returncode:
        pytest.skip("this system gives no process such a place")
    code = "import os; from ds_rvqvae.train.signals import launchers_above; print(os.getpid(), launchers_above())"
    environment = {name: value for name, value in os.environ.items() if name != "CROSS_RANK"}
    line = [*first, sys.executable, "-c", code]
    ran = subprocess.run(line, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ran.stdout == "1 []\n", ran.stderr
