"""The places of ranks: hosts, slots, and the port at which they meet."""

import shlex
import socket

import pytest

from ds_rvqvae.errors import ExitStatus


def test_each_start_finds_a_port_of_its_own(launch):
    commands = [shlex.split(launch("--dry_run").stdout) for _ in range(2)]
    ports = {command[command.index("--master_port") + 1] for command in commands}
    assert len(ports) == 2


def test_a_taken_port(launch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = launch("--dry_run", "--master_port", str(port))
    assert ran.returncode == ExitStatus.BAD_INPUT
    assert f"--master_port {port}: address already in use" in ran.stderr


@pytest.mark.parametrize(
    ("flags", "include"),
    [
        (["--exclude", "localhost:0,3"], "localhost:1,2,4,5,6,7"),
        (["-e", "localhost:7"], "localhost:0,1,2,3,4,5,6"),
        (["--num_gpus", "2"], "localhost:0,1"),
        (["--num_accelerators=1", "--quiet"], "localhost:0"),
    ],
)
def test_slots_chosen_as_deepspeed_lets_one(launch, flags, include):
    ran = launch("--dry_run", *flags)
    assert ran.returncode == 0, ran.stderr
    command = shlex.split(ran.stdout)
    assert command[command.index("--include") + 1] == include
    assert ("--quiet" in command) == ("--quiet" in flags)
    assert not {"--exclude", "-e", "--num_gpus"} & set(command)


@pytest.mark.parametrize(
    ("flags", "include"),
    [
        (["--exclude", "host-a:0@host-b"], "host-a:1"),
        (["--num_gpus", "1"], "host-a:0@host-b:0"),
        (["--num_gpus", "2", "--num_nodes", "1"], "host-a:0,1"),
    ],
)
def test_slots_of_hosts_chosen_as_deepspeed_lets_one(launch, flags, include):
    (launch.folder / "hosts").write_text("host-a slots=2\nhost-b slots=1\n")
    at = ["--hostfile", "hosts", "--no_ssh", "--master_addr", "127.0.0.1", "--node_rank", "0"]
    ran = launch("--dry_run", *at, *flags)
    assert ran.returncode == 0, ran.stderr
    command = shlex.split(ran.stdout)
    assert command[command.index("--include") + 1] == include
    assert not any(word.startswith(("--num_nodes", "--num_gpus", "--exclude")) for word in command)


def test_two_hosts_started_one_by_one(launch):
    (launch.folder / "hosts").write_text("# two nodes\nhost-a slots=2\nhost-b slots=1\n")
    flags = ["--dry_run", "--hostfile", "hosts", "--no_ssh", "--master_addr", "127.0.0.1"]
    for rank in ("0", "1"):
        ran = launch(*flags, "--node_rank", rank)
        assert ran.returncode == 0, ran.stderr
        command = shlex.split(ran.stdout)
        assert "--include" not in command
        assert {"--hostfile=hosts", f"--node_rank={rank}", "--no_ssh"} <= set(command)
        assert command[command.index("--master_port") + 1] == "29500"
    ran = launch(*flags, "--node_rank", "2")
    assert ran.returncode == ExitStatus.BAD_INPUT and "--node_rank, from 0 to 1" in ran.stderr


def test_what_a_shell_of_another_host_would_take_apart_is_refused(launch):
    (launch.folder / "hosts").write_text("host-a slots=2\nhost-b slots=1\n")
    at = ["--dry_run", "--hostfile", "hosts", "--launcher", "openmpi"]
    for flags, status in (([], 0), (["--name", "my run"], 0), (["--name", "it's"], 2), (["--name", "a;b"], 2)):
        ran = launch(*at, *flags)
        assert ran.returncode == status, ran.stderr
        assert not status or f"which would change {flags[1]}" in ran.stderr
    one_by_one = ["--no_ssh", "--master_addr", "127.0.0.1", "--node_rank", "0"]
    assert launch(*at, *one_by_one, "--name", "it's").returncode == 0
