"""Ranks that srun or torchrun starts train as under our launcher; Slurm is played, torchrun is the real one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import Launched
from tests.e2e.slurm import Job
from tests.e2e.test_two_nodes import own_address
from tests.ranks import ROOT, bare_environment, train_ranks
from tests.train.small import EXACT, SMALL, read_metrics

pytestmark = pytest.mark.processes

SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run)]


@pytest.fixture
def submit(tmp_path, demo_folder):
    """Submits the example's batch script for a small run on two nodes of two CPU ranks."""
    jobs = []

    def start(*flags):
        folder = tmp_path / f"job{len(jobs)}"
        folder.mkdir()
        data = [f"--data_path={demo_folder}", "--batch_size=2"]
        jobs.append(Job(folder, SCRIPT, *SMALL, *EXACT, *data, *flags, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1"))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def test_a_job_is_stopped_before_its_limit_requeued_and_computes_what_one_without_a_stop_does(
    submit, tmp_path, demo_folder, monkeypatch
):
    job = submit("--total_iter=40")
    run = job.folder / "runs" / "job"
    job.wait_for(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_text())
    job.signal(signal.SIGTERM)
    assert job.process.wait(timeout=60) == 75, job.said()
    assert job.requeued() == ["4711"]
    stopped = int((run / "checkpoints" / "latest").read_text().removeprefix("global_step"))
    assert 0 < stopped < 40 and losses(run)[-1][0] == stopped
    job.start()
    assert job.process.wait(timeout=200) == 0, job.said()
    assert job.requeued() == ["4711"]

    monkeypatch.chdir(tmp_path)
    train_ranks(4, *SMALL, *EXACT, f"--data_path={demo_folder}", "--batch_size=2", "--total_iter=40", "--name=whole")
    assert [step for step, _ in losses(run)] == list(range(1, 41))
    assert losses(run) == losses(tmp_path / "runs" / "whole")
    said = job.said()
    # Only rank 0 prints, once per start.
    assert said.count("4 ranks, ZeRO stage 2") == said.count("building the engine\n") == 2
    assert said.count(f"stopped at step {stopped};") == 1 and "Traceback" not in said


def test_a_job_with_bad_flags_ends_at_once_and_is_not_requeued(submit):
    job = submit("--total_iter=-3")
    assert job.process.wait(timeout=60) == 2
    assert "total_iter" in job.said() and not job.requeued()


def test_torchruns_ranks_compute_what_ours_do(tmp_path, demo_folder):
    flags = [*SMALL, *EXACT, f"--data_path={demo_folder}", "--batch_size=4", "--total_iter=3"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = bare_environment(tmp_path, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    command = [*torchrun, "-m", "ds_rvqvae.train", *flags, "--name=torchrun"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    # Over another network interface, which changes no number.
    interface = ["--nccl_socket_ifname"] if own_address() != "127.0.0.1" else []
    ours = Launched(
        tmp_path, demo_folder, *interface, "--include=localhost:0,1", *EXACT, "--total_iter=3", "--name=ours"
    )
    assert ours.process.wait(timeout=200) == 0, ours.said()
    runs = [tmp_path / "runs" / name for name in ("torchrun", "ours")]
    assert len(losses(runs[0])) == 3 and losses(runs[0]) == losses(runs[1])
