"""Network interfaces: chosen as NCCL chooses them, and named for gloo."""

import psutil
import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.process import interfaces

NAMES = ["lo", "eth0", "eth1", "docker0", "enp5s0"]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("^docker0,lo", ["eth0", "eth1", "enp5s0"]),
        ("eth", ["eth0", "eth1"]),
        ("eth1,enp", ["eth1", "enp5s0"]),
        ("=eth,enp5s0", ["enp5s0"]),
        ("^=eth,lo", ["eth0", "eth1", "docker0", "enp5s0"]),
        ("eth0:4000", ["eth0"]),
        ("", NAMES),
        ("^", []),
        ("ib", []),
    ],
)
def test_names_are_taken_as_nccl_takes_them(wanted, chosen):
    assert interfaces.chosen_interfaces(wanted, NAMES) == chosen


@pytest.fixture
def machine(monkeypatch):
    """A machine with two networks, whose default route leads out of the second."""
    there = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.5"], "ib0": ["10.1.0.5"], "docker0": ["172.17.0.1"]}
    monkeypatch.setattr(interfaces, "usable_interfaces", lambda: there)
    monkeypatch.setattr(interfaces, "loopback_interface", lambda: "lo")
    monkeypatch.setattr(interfaces, "_way_out", lambda: "ib0")
    monkeypatch.setattr(interfaces, "_interface_to", lambda host: {"first": "eth0", "localhost": "lo"}.get(host))
    return there


def settled(several, **environment):
    interfaces.settle_interfaces(environment, several)
    return environment.get("NCCL_SOCKET_IFNAME"), environment.get("GLOO_SOCKET_IFNAME")


def test_gloo_takes_one_of_ncclss_on_one_machine_and_on_several(machine):
    assert settled(False) == ("lo", "lo")
    assert settled(False, NCCL_SOCKET_IFNAME="^docker0,lo") == ("^docker0,lo", "ib0")
    assert settled(False, GLOO_SOCKET_IFNAME="eth0") == ("lo", "eth0")
    # NCCL chooses by itself between machines; gloo takes the way to rank 0, or out if that is this machine.
    assert settled(True, MASTER_ADDR="first") == (None, "eth0")
    assert settled(True, MASTER_ADDR="localhost") == (None, "ib0")
    assert settled(True, MASTER_ADDR="first", NCCL_SOCKET_IFNAME="^docker0,lo") == ("^docker0,lo", "eth0")
    assert settled(True, MASTER_ADDR="first", NCCL_SOCKET_IFNAME="=docker0") == ("=docker0", "docker0")
    del machine["eth0"], machine["ib0"], machine["docker0"]
    assert settled(True, MASTER_ADDR="localhost") == (None, "lo")


def test_what_no_interface_is_named_is_refused_unless_cpu_ranks_do_without(machine):
    with pytest.raises(UserError, match=r"^--nccl_socket_ifname wlan: names no network interface .* has lo, eth0, ib0"):
        interfaces.check_interfaces("wlan")
    with pytest.raises(UserError, match=r"\^: excludes every network interface of this machine"):
        interfaces.check_interfaces("^")
    with pytest.raises(UserError, match=r"^NCCL_SOCKET_IFNAME=wlan: names no network interface"):
        settled(True, MASTER_ADDR="first", NCCL_SOCKET_IFNAME="wlan")
    assert settled(True, MASTER_ADDR="first", NCCL_SOCKET_IFNAME="wlan", DS_ACCELERATOR="cpu") == ("wlan", "eth0")
    assert settled(False, NCCL_SOCKET_IFNAME="wlan", DS_ACCELERATOR="cpu") == ("wlan", "lo")
    machine.clear()  # a container that hides them: nothing is known, so nothing is refused
    interfaces.check_interfaces("wlan")


def test_ranks_of_one_machine_listen_on_loopback_unless_told_otherwise(machine):
    for wanted, nccl, gloo in ((None, "lo", "lo"), ("^docker0,lo", "^docker0,lo", "ib0"), ("eth", "eth", "eth0")):
        found = interfaces.interfaces_of_one_machine(wanted)
        assert found == {"NCCL_SOCKET_IFNAME": nccl, "GLOO_SOCKET_IFNAME": gloo}


def test_this_machines_own_interfaces():
    lo = interfaces.loopback_interface()
    there = interfaces.usable_interfaces()
    if lo is None or lo not in there:
        pytest.skip("no interface is known to be the loopback")
    assert set(there) <= set(psutil.net_if_addrs()) and "127.0.0.1" in there[lo]
    assert interfaces._interface_to("127.0.0.1") == interfaces._interface_to("localhost") == lo
    assert interfaces._interface_to("no.such.host.invalid") is None and interfaces._interface_to(None) is None
    out = interfaces._way_out()
    for name, addresses in there.items():
        if name == out:
            assert interfaces._interface_to(addresses[0]) == name


def test_where_interfaces_cannot_be_listed_the_loopback_is_taken(monkeypatch):
    def refused():
        raise OSError("no netlink here")

    monkeypatch.setattr(psutil, "net_if_stats", refused)
    lo = interfaces.loopback_interface()
    found = interfaces.interfaces_of_one_machine("eth0")
    assert found == {"NCCL_SOCKET_IFNAME": "eth0", **({"GLOO_SOCKET_IFNAME": lo} if lo else {})}
