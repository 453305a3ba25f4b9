"""Fixtures for the launcher's tests: the launcher itself, and supervised trees of processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ds_rvqvae.launch.supervise import Job
from ds_rvqvae.runs.heartbeat import HEARTBEAT_VARIABLE, Watch
from tests.launch.launching import CPU, SCRIPT, environment
from tests.launch.trees import PARENT, RANK
from tests.ranks import ROOT


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Command lines of a supervised tree with two ranks, by what the ranks do."""
    (tmp_path / "heartbeats").touch()
    monkeypatch.setenv(HEARTBEAT_VARIABLE, str(tmp_path / "heartbeats"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, text in (("parent", PARENT), ("rank", RANK)):
        (tmp_path / f"{name}.py").write_text(text)

    def command(mode):
        parent = [sys.executable, str(tmp_path / "parent.py")]
        rank = [sys.executable, str(tmp_path / "rank.py"), mode, str(tmp_path)]
        return [*parent, "1", "runner", *parent, "2", "deepspeed.launcher.launch", *rank]

    return command


@pytest.fixture
def job(tree, tmp_path):
    """Jobs of such a tree."""

    def make(mode):
        signs = Path(tempfile.mkdtemp(dir=tmp_path)) / "heartbeats"
        signs.touch()
        variables = {**os.environ, HEARTBEAT_VARIABLE: str(signs)}
        return Job(tree(mode), variables, Watch(signs, 2, limit=0))

    return make


@pytest.fixture
def torch_with_cuda(tmp_path):
    """A folder to import torch from, whose version says that it is built for CUDA 12.8."""
    package = tmp_path / "torch_with_cuda" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('a launcher does not import torch')\n")
    (package / "version.py").write_text("__version__ = '2.13.0+cu128'\ncuda: Optional[str] = '12.8'\nhip = None\n")
    return package.parent


@pytest.fixture
def launch(tmp_path, demo_folder):
    """Runs the launcher in an empty folder; demo motion and eight CPU slots unless told otherwise."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(*flags, data=demo_folder, variables=CPU):
        line = [sys.executable, str(SCRIPT), *flags]
        if data is not None:
            line += ["--data_path", str(data)]
        return subprocess.run(
            line, cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=60
        )

    run.folder = folder
    return run
