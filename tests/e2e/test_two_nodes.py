"""Two launchers side by side on this machine, as on two machines."""

import signal
import socket

import psutil
import pytest

from tests.e2e.running import Launched
from tests.ranks import free_port
from tests.train.small import read_metrics

pytestmark = pytest.mark.processes


def own_address() -> str:
    """Returns the address where other machines reach this one, or else its loopback address."""
    addresses = [address for found in psutil.net_if_addrs().values() for address in found]
    others = [one.address for one in addresses if one.family == socket.AF_INET and not one.address.startswith("127.")]
    return next(iter(others), "127.0.0.1")


@pytest.fixture
def start_nodes(tmp_path, demo_folder):
    """Starts a run of two nodes with one rank each."""
    started = []

    def start(*flags):
        # The file as an editor on Windows saves it.
        (tmp_path / "hosts").write_bytes("\ufefflocalhost slots=1\r\n127.0.0.1 slots=1\r\n".encode())
        nodes = ["--hostfile=hosts", "--no_ssh", f"--master_port={free_port()}"]
        for rank, first in enumerate(("localhost", own_address())):  # names that the first node may use for itself
            line = [*nodes, f"--master_addr={first}", f"--node_rank={rank}", "--name=both", *flags]
            started.append(Launched(tmp_path, demo_folder, *line, slots=1))
        return started

    yield start
    for node in started:
        node.end()


def test_two_nodes_train_one_run(start_nodes, tmp_path):
    # As the founding document has it: no loopback, which each node leaves out of its own interfaces.
    flags = ["--nccl_socket_ifname"] if own_address() != "127.0.0.1" else []
    nodes = start_nodes("--total_iter=3", *flags)
    for node in nodes:
        assert node.process.wait(timeout=200) == 0, node.said()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["both"]
    lines = read_metrics(tmp_path / "runs" / "both")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(len(line["memory_gib"]) == 2 for line in lines)
    assert "2 ranks" in nodes[0].said() and "2 ranks" not in nodes[1].said()


def test_a_signal_to_one_node_stops_both_at_a_saved_step(start_nodes, tmp_path):
    nodes = start_nodes("--total_iter=1000000")
    run = tmp_path / "runs" / "both"
    nodes[0].wait_for(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_text())
    nodes[1].process.send_signal(signal.SIGTERM)
    for node in nodes:
        assert node.process.wait(timeout=60) == 75, node.said()
    assert (run / "checkpoints" / "latest").read_text() == f"global_step{read_metrics(run)[-1]['step']}"
