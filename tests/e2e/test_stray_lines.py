"""Lines of torch and DeepSpeed between ours: none on a played box with GPUs and without a CUDA toolkit, by our launcher
or by hand; and no compiler is called."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import LAUNCHER
from tests.e2e.stray import stray_lines
from tests.ranks import ROOT, bare_environment
from tests.train.small import SMALL, read_metrics

pytestmark = pytest.mark.processes
COMPILERS = ("gcc", "cc", "g++", "c++", "clang", "ninja")
NEEDED = ("bash", "sh", "env", "uname", "hostname", "lscpu")
STEPS = ["--batch_size=4", "--total_iter=2"]


@pytest.fixture
def box(tmp_path, stand_in):
    """Environment variables of a box with eight RTX 4090s and no CUDA toolkit, whose compilers note each call in the
    file `compiled`; DeepSpeed's accelerator is CUDA's, as far as that can be played."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in NEEDED:
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    for name in COMPILERS:
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path / "compiled"}\nexit 1\n')
        (programs / name).chmod(0o755)
    stand_in.play()
    played = {name: stand_in.environment[name] for name in ("LD_LIBRARY_PATH", "NVML_STAND_IN")}
    path = f"{ROOT / 'tests' / 'launch' / 'played_cuda'}:{ROOT}"
    return {**bare_environment(tmp_path, OMP_NUM_THREADS="1"), **played, "PATH": str(programs), "PYTHONPATH": path}


def train(command: list[str], folder: Path, box: dict[str, str], data: Path) -> str:
    """Trains to the end and returns all that was printed: lines of ours only. No compiler was called."""
    command = [*command, *SMALL, *STEPS, f"--data_path={data}", "--name=one"]
    done = subprocess.run(command, cwd=folder, env=box, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in read_metrics(folder / "runs" / "one")] == [1, 2]
    compiled = folder / "compiled"
    said = done.stdout + done.stderr
    assert (stray_lines(said), compiled.read_text() if compiled.exists() else "") == ([], "")
    return said


def test_by_our_launcher_on_gpus_without_a_toolkit(tmp_path, demo_folder, box):
    said = train([*LAUNCHER, "--include=localhost:1,2"], tmp_path, box, demo_folder)
    assert "starting 2 ranks on GPU 1, 2" in said
    log = (tmp_path / "runs" / "one" / "run.log").read_text()
    assert not re.search(" (WARNING|ERROR) ", log), log


def test_by_hand_on_a_gpu_named_by_its_uuid(tmp_path, demo_folder, box):
    """DeepSpeed's CUDA accelerator reads the number, and with it the GPU's free memory."""
    box = {**box, "CUDA_VISIBLE_DEVICES": "GPU-00000003"}
    said = train([sys.executable, "-m", "ds_rvqvae.train"], tmp_path, box, demo_folder)
    assert "training on the CPU" not in said
