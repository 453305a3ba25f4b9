"""Starts in unusual surroundings: odd folders, variables left by other programs, a package that is not installed."""

import subprocess
import sys
import venv
from pathlib import Path

import psutil
import pytest
import torch

from tests.e2e.running import LAUNCHER, Launched
from tests.ranks import bare_environment
from tests.train.small import SMALL, read_metrics

pytestmark = pytest.mark.processes
ODD = "a folder's 100%, ä {b} $c"
GBK = "\udcc4\udce3"
"""Not UTF-8; Python's own `venv` does not accept it."""
LEFTOVERS = {
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "none",
    "GROUP_RANK": "0",
    "ROLE_RANK": "3",
    "RANK": "3",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "9",
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "29500",
    "OMPI_COMM_WORLD_LOCAL_RANK": "5",
    "DEEPSPEED_TIMEOUT": "",
    "TORCH_DISTRIBUTED_USE_TORCHCOMMS": "1",
    "NCCL_SOCKET_IFNAME": "none0",
    "GLOO_SOCKET_IFNAME": "none0",
    "PYTHONSTARTUP": "/nowhere.py",
    "DS_RVQVAE_RUN": "/nowhere",
    "DS_RVQVAE_STORE": "/nowhere",
    "DS_RVQVAE_HEARTBEAT": "/nowhere",
}


@pytest.fixture
def bare_python(tmp_path) -> str:
    """Returns an interpreter in a folder with an odd name; it has the dependencies, but not this package."""
    folder = tmp_path / ODD / "venv"
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    python = str(folder / "bin" / "python")
    if subprocess.run([python, "-I", "-c", "import ds_rvqvae"], capture_output=True).returncode == 0:
        pytest.skip("the package is installed beside its dependencies")
    return python


def test_a_run_amid_leftovers_in_an_odd_folder_by_an_interpreter_without_the_package(
    tmp_path, demo_folder, bare_python
):
    here = tmp_path / ODD / GBK
    here.mkdir()
    # Python 3.10 cannot be kept from importing from there first.
    for name in ("random", "types", "json", "torch", "socket") if sys.version_info >= (3, 11) else ():
        (here / f"{name}.py").write_text("raise RuntimeError('not the module that was meant')\n")
    motion = here / "motion"
    motion.symlink_to(demo_folder)
    variables = [f"{name}={value}" for name, value in {**LEFTOVERS, "PYTHONPATH": ""}.items()]
    # In the place of the tests' own interpreter.
    by = ["env", *variables, "bash", "-c", 'shift; exec "$0" "$@"', bare_python]
    run = Launched(
        here, motion, "--include=localhost:0,1", "--total_iter=1000000", "--name=one", f"--out={here}/runs", by=by
    )
    try:
        metrics = here / "runs" / "one" / "metrics.jsonl"
        run.wait_for(lambda: metrics.is_file() and metrics.read_text(), seconds=300)
        ranks = run.ranks()
        assert len(ranks) == 2
        listening = [
            connection.laddr.ip
            for process in [psutil.Process(run.process.pid), *run.family.values()]
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening and set(listening) == {"127.0.0.1"}
        run.process.terminate()
        assert run.process.wait(150) == 75, run.said()
        assert len(read_metrics(metrics.parent)) >= 1
    finally:
        run.end()


def test_without_a_home_or_a_name_a_start_asks_for_the_cache_and_trains_with_it(tmp_path, demo_folder):
    environment = bare_environment(tmp_path, DS_ACCELERATOR="cpu", LOCAL_SIZE="1", OMP_NUM_THREADS="1")
    nobody = ["unshare", "--user", "--map-user=54321", "--map-group=54321", "env", "-u", "HOME"]
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        nobody += ["-u", name]
    if subprocess.run([*nobody, "id"], capture_output=True).returncode:
        pytest.skip("this system lets no process become a user without a name")
    line = [*nobody, *LAUNCHER, *SMALL, "--include=localhost:0", f"--data_path={demo_folder}", "--batch_size=4"]
    line += ["--total_iter=2", "--name=one"]
    for variables, status, said in (
        ({"DS_RVQVAE_CACHE": ""}, 2, "error: ~/.cache/ds_rvqvae: HOME is not set and the system knows no home of user"),
        ({}, 0, "memory of each rank"),
    ):
        ran = subprocess.run(
            line, cwd=tmp_path, env={**environment, **variables}, capture_output=True, text=True, timeout=120
        )
        assert ran.returncode == status and said in ran.stderr, ran.stderr
        assert (tmp_path / "runs").exists() == (status == 0)
    assert [line["step"] for line in read_metrics(tmp_path / "runs" / "one")] == [1, 2]
