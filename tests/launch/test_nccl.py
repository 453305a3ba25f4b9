"""NCCL's flags, from the command line to the environment of ranks on this machine and on hosts reached by pdsh."""

import json
import shlex
import socket
import subprocess
import sys

import psutil
import pytest

from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.process.interfaces import loopback_interface, usable_interfaces
from tests.e2e.running import LAUNCHER
from tests.ranks import ROOT, bare_environment
from tests.train.small import SMALL

pytestmark = pytest.mark.processes

FLAGS = ["--nccl_debug", "--nccl_socket_ifname", "--nccl_ib_disable", "--nccl_p2p_disable"]
# Every rank notes its environment as its interpreter starts, and ends.
_NOTE = """import json, os
if "LOCAL_RANK" in os.environ:
    rank = os.environ["RANK"]
    names = [name for name in os.environ if name.startswith(("NCCL", "GLOO", "DS_", "OMP", "MINE", "LOCAL_S"))]
    with open(os.path.join({folder!r}, f"rank{{rank}}.json"), "w") as file:
        json.dump({{name: os.environ[name] for name in names}}, file)
    os._exit(9)
"""
# Runs the command in a shell per host, which has only what a login has, with the host's number in place of %n.
_PDSH = """#!{python}
import subprocess, sys
words = sys.argv[sys.argv.index("-w") + 1 :]
hosts, command = words[0].split(","), " ".join(words[1:])
bare = {environment!r}
started = [subprocess.Popen(["sh", "-c", command.replace("%n", str(n))], env=bare) for n in range(len(hosts))]
sys.exit(max(abs(one.wait()) for one in started))
"""


@pytest.fixture
def variables_of_ranks(tmp_path, demo_folder):
    """Runs the launcher and returns the environment of each rank."""
    (tmp_path / "note").mkdir()
    (tmp_path / "note" / "sitecustomize.py").write_text(_NOTE.format(folder=str(tmp_path)))
    (tmp_path / "bin").mkdir()
    bare = bare_environment(tmp_path)
    pdsh = tmp_path / "bin" / "pdsh"
    pdsh.write_text(_PDSH.format(python=sys.executable, environment={name: bare[name] for name in ("PATH", "HOME")}))
    pdsh.chmod(0o755)

    def run(*flags):
        environment = bare_environment(tmp_path, DS_ACCELERATOR="cpu", LOCAL_SIZE="2", NCCL_MINE="kept")
        environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"
        environment["PYTHONPATH"] = f"{tmp_path / 'note'}:{ROOT}"
        line = [*LAUNCHER, *SMALL, f"--data_path={demo_folder}", "--batch_size=4", "--name=one", *flags]
        ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert ran.returncode == ExitStatus.FAILED, ran.stderr
        found = sorted(tmp_path.glob("rank*.json"))
        return [json.loads(file.read_text()) for file in found]

    return run


def others():
    """This machine's interfaces except loopback, and except those that the flag's own value leaves out."""
    return [name for name in usable_interfaces() if not name.startswith(("lo", "docker0"))]


needs_a_network = pytest.mark.skipif(not others(), reason="this machine has no network but loopback")


@needs_a_network
def test_each_flag_reaches_the_ranks_of_this_machine(variables_of_ranks):
    first, second = variables_of_ranks("--include=localhost:0,1", *FLAGS)
    assert first == second
    assert first.pop("GLOO_SOCKET_IFNAME") in others()
    wanted = {"NCCL_DEBUG": "INFO", "NCCL_IB_DISABLE": "1", "NCCL_P2P_DISABLE": "1", "NCCL_MINE": "kept"}
    assert {name: value for name, value in first.items() if name.startswith("NCCL")} == {
        **wanted,
        "NCCL_SOCKET_IFNAME": "^docker0,lo",
    }


@needs_a_network
def test_each_flag_reaches_hosts_that_pdsh_starts_and_counts_more_than_their_environment_file(
    variables_of_ranks, tmp_path
):
    (tmp_path / "hosts").write_text("one slots=1\ntwo slots=1\n")
    (tmp_path / "home" / ".deepspeed_env").write_text(
        "# of this user\n\nNCCL_DEBUG=WARN\nMINE=a b\nOMP_NUM_THREADS=3\n"
    )
    at = ["--hostfile=hosts", "--no_ssh_check", "--master_addr=127.0.0.1"]
    found = variables_of_ranks(*at, *FLAGS)
    assert len(found) == 2
    for of_rank in found:
        wanted = {"NCCL_DEBUG": "INFO", "NCCL_IB_DISABLE": "1", "NCCL_P2P_DISABLE": "1", "MINE": "a b"}
        # gloo's interface is chosen on each host: see settle_interfaces.
        wanted |= {"NCCL_SOCKET_IFNAME": "^docker0,lo", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "3"}
        assert of_rank == {**wanted, "LOCAL_SIZE": "1"}


def test_a_line_of_the_environment_file_that_is_none_is_named(tmp_path, demo_folder):
    (tmp_path / "hosts").write_text("one slots=1\ntwo slots=1\n")
    (tmp_path / ".deepspeed_env").write_text("MINE=1\nexport NCCL_DEBUG=INFO\n")
    line = [*LAUNCHER, *SMALL, f"--data_path={demo_folder}", "--hostfile=hosts", "--launcher=openmpi"]
    environment = bare_environment(tmp_path, DS_ACCELERATOR="cpu", LOCAL_SIZE="2")
    ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == ExitStatus.BAD_INPUT
    assert ran.stderr.splitlines()[-1] == "error: .deepspeed_env:2: write one variable per line, as NAME=value"


def test_a_dry_run_shows_the_variables_and_bad_values_are_refused_before_a_start(launch):
    ran = launch("--dry_run", "--include=localhost:0", "--nccl_debug=WARN", "--nccl_ib_disable")
    assert ran.returncode == 0, ran.stderr
    (shown,) = [line for line in ran.stderr.splitlines() if line.startswith("environment: ")]
    lo = loopback_interface()
    wanted = {"NCCL_DEBUG=WARN", "NCCL_IB_DISABLE=1", *([f"NCCL_SOCKET_IFNAME={lo}"] if lo else [])}
    assert wanted <= set(shlex.split(shown)) and not any("P2P" in word for word in shlex.split(shown))
    for flags, said in (
        (["--nccl_debug=LOUD"], "--nccl_debug: invalid choice: 'LOUD'"),
        (["--nccl_ib_disable=1"], "--nccl_ib_disable: ignored explicit argument '1'"),
        (
            ["--nccl_socket_ifname=nowhere7"],
            "--nccl_socket_ifname nowhere7: names no network interface of this machine",
        ),
    ):
        ran = launch("--dry_run", "--include=localhost:0", *flags)
        assert ran.returncode == ExitStatus.BAD_INPUT and said in ran.stderr, ran.stderr
        assert len(ran.stderr.splitlines()) == 1
    there = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(one.family == socket.AF_INET for one in addresses)
    ]
    assert any(name in ran.stderr for name in there)
