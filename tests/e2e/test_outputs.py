"""Runs whose terminal, pipes or standard streams are closed, full, gone or not read: each trains to its end."""

import fcntl
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.running import LAUNCHER
from tests.ranks import ROOT, bare_environment
from tests.train.small import SMALL, read_metrics, wait_until

pytestmark = pytest.mark.processes
FULL = Path("/dev/full")
STEPS = ["--batch_size=4", "--total_iter=6", "--include=localhost:0"]


@contextmanager
def pipe_that_nobody_reads():
    """Yields the writing end of a full pipe."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"." * 4096)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def closed(command, streams):
    """Returns the command as a shell starts it, with some of its streams closed."""
    return ["sh", "-c", f'exec "$@" {streams}', "sh", *command]


def check_finished(run):
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert (run / "checkpoints" / "latest").read_text() == "global_step6"
    assert (run / "tokenizer" / "config.json").is_file()
    assert (run / "eval" / "scores.json").is_file()


def lost_lines(run):
    lines = (run / "run.log").read_text(encoding="utf-8").splitlines()
    return [line.partition(" WARNING ")[2] for line in lines if "of messages were lost" in line]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_reader_that_quits_and_a_full_disk(tmp_path, demo_folder):
    cpu = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "1", "OMP_NUM_THREADS": "1"}
    command = [*LAUNCHER, *SMALL, *STEPS, f"--data_path={demo_folder}", "--demo", "--name=one"]
    with FULL.open("w") as full:
        launcher = subprocess.Popen(
            command, cwd=tmp_path, env=bare_environment(tmp_path, **cpu), stdout=full, stderr=subprocess.PIPE
        )
    try:
        assert launcher.stderr.readline().startswith(b"motion ")
        launcher.stderr.close()
        assert launcher.wait(timeout=300) == 0
    finally:
        launcher.kill()
    run = tmp_path / "runs" / "one"
    check_finished(run)
    (line,) = lost_lines(run)
    assert line.startswith("launcher: standard error: ") and line.endswith(": Broken pipe")


def test_a_pipe_that_nobody_reads_and_streams_that_are_closed(tmp_path, demo_folder):
    cpu = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "1", "OMP_NUM_THREADS": "1"}
    variables = bare_environment(tmp_path, **cpu, LC_ALL="C", PYTHONIOENCODING="ascii")
    command = [*LAUNCHER, *SMALL, *STEPS, f"--data_path={demo_folder}", "--name=動"]
    with pipe_that_nobody_reads() as pipe:
        done = subprocess.run(closed(command, "0<&- 1>&-"), cwd=tmp_path, env=variables, stderr=pipe, timeout=300)
    assert done.returncode == 0
    run = tmp_path / "runs" / "動"
    check_finished(run)
    (line,) = lost_lines(run)
    assert line.startswith("launcher: standard error: ") and line.endswith(": nobody reads it")
    assert f"run: {run}\n1 rank, " in (run / "run.log").read_text(encoding="utf-8")


def by_hand(folder, data):
    """Returns the command of a rank without the launcher, and its environment variables."""
    variables = bare_environment(folder, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    flags = [*SMALL, "--batch_size=4", "--total_iter=6", f"--data_path={data}", "--name=one"]
    command = [sys.executable, "-m", "ds_rvqvae.train", *flags]
    return command, {**variables, "PYTHONPATH": str(ROOT)}


def test_files_of_a_rank_take_no_place_of_a_closed_stream(tmp_path, demo_folder):
    command, variables = by_hand(tmp_path, demo_folder)
    rank = subprocess.Popen(closed(command, "0<&- 1>&- 2>&-"), cwd=tmp_path, env=variables)
    try:
        wait_until(lambda: (tmp_path / "runs" / "one" / "run.log").exists())
        assert [str(Path(f"/proc/{rank.pid}/fd/{number}").readlink()) for number in range(3)] == ["/dev/null"] * 3
    finally:
        rank.kill()
        rank.wait()


def test_a_rank_whose_pipe_nobody_reads_says_so_in_its_log(tmp_path, demo_folder):
    """It also says that it trains on the CPU, which nobody has asked for."""
    command, variables = by_hand(tmp_path, demo_folder)
    variables["CUDA_VISIBLE_DEVICES"] = ""
    del variables["DS_ACCELERATOR"]
    with pipe_that_nobody_reads() as pipe:
        done = subprocess.run(command, cwd=tmp_path, env=variables, stdout=pipe, stderr=pipe, timeout=300)
    assert done.returncode == 0
    run = tmp_path / "runs" / "one"
    check_finished(run)
    (line,) = lost_lines(run)
    assert line.startswith("rank 0: standard error: ") and line.endswith(": nobody reads it")
    assert " INFO rank 0: training on the CPU: torch " in (run / "run.log").read_text(encoding="utf-8")
