"""Network interfaces by which ranks reach each other: chosen as NCCL chooses them, and named for gloo.

NCCL takes beginnings of names, exact names after `=`, and exclusions after `^`; gloo takes only an interface's name.
"""

import re
import socket
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ds_rvqvae.errors import UserError

NCCL_INTERFACE, GLOO_INTERFACE = "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"
"""Variables with the network interfaces of NCCL and of gloo."""
INTERFACE_FLAG = "--nccl_socket_ifname"
_ANY_PORT = 9


def usable_interfaces() -> dict[str, list[str]]:
    """Returns the IP addresses of each network interface that is up and has one; empty if a container hides them."""
    with suppress(OSError, psutil.Error):
        up = {name for name, state in psutil.net_if_stats().items() if state.isup}
        found = {
            # An IPv6 address of a link has its interface's name after a percent sign.
            name: [
                one.address.partition("%")[0] for one in addresses if one.family in (socket.AF_INET, socket.AF_INET6)
            ]
            for name, addresses in psutil.net_if_addrs().items()
            if name in up
        }
        return {name: addresses for name, addresses in found.items() if addresses}
    return {}


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine, by a name that every machine has for itself."""
    return re.fullmatch(r"localhost|127(\.\d+){3}|::1", host) is not None


def loopback_interface() -> str | None:
    """Returns the name of the loopback interface; None if it cannot be found."""
    if not sys.platform.startswith("linux"):
        return None
    for folder in sorted(Path("/sys/class/net").glob("*")):
        try:
            if int((folder / "flags").read_text(), 16) & 0x8:  # IFF_LOOPBACK
                return folder.name
        except (OSError, ValueError):
            continue
    return None


def chosen_interfaces(wanted: str, names: Sequence[str]) -> list[str]:
    """Returns those of `names` that NCCL takes for its variable's value `wanted` (`eth`, `=eth0`, `^docker0,lo`)."""
    excludes, exact, text = re.fullmatch(r"(\^?)(=?)(.*)", wanted, re.DOTALL).groups()  # type: ignore[union-attr]
    # NCCL knows a port after a colon.
    asked = list(filter(None, (entry.partition(":")[0] for entry in text.split(","))))

    def is_asked(name: str) -> bool:
        return not asked or any(name == one if exact else name.startswith(one) for one in asked)

    return [name for name in names if is_asked(name) != bool(excludes)]


def resolved_interfaces(wanted: str, said: str, here: str = "this machine") -> list[str]:
    """Returns this machine's interfaces that NCCL takes for `wanted`; empty if they cannot be listed.

    Args:
        said: the flag or variable with its value, for the error.
        here: what the error calls this machine.

    Raises:
        UserError: none is left.
    """
    there = list(usable_interfaces())
    found = chosen_interfaces(wanted, there)
    if there and not found:
        what = "excludes every" if wanted.startswith("^") else "names no"
        raise UserError(f"{said}: {what} network interface of {here}, which has {', '.join(there)}; name one of them")
    return found


def check_interfaces(wanted: str | None) -> None:
    """Raises UserError if `--nccl_socket_ifname` names no interface of this machine."""
    if wanted is not None:
        resolved_interfaces(wanted, f"{INTERFACE_FLAG} {wanted}")


def interfaces_of_one_machine(wanted: str | None) -> dict[str, str]:
    """Returns variables for ranks that all run on this machine: its loopback interface, or those of the flag.

    Args:
        wanted: the value of `--nccl_socket_ifname`.
    """
    loopback = loopback_interface()
    names = chosen_interfaces(wanted, list(usable_interfaces())) if wanted is not None else []
    chosen = ((NCCL_INTERFACE, wanted or loopback), (GLOO_INTERFACE, _for_gloo(names, None) if names else loopback))
    return {variable: interface for variable, interface in chosen if interface}


def settle_interfaces(environment: MutableMapping[str, str], several: bool) -> None:
    """Sets the interfaces of a rank where nothing has set them. gloo's is one of NCCL's; without these it is loopback
    on one machine, and on several the one that leads to rank 0. gloo alone would take the one that the machine's name
    resolves to, which on many systems is loopback.

    Args:
        several: whether the ranks run on several machines.

    Raises:
        UserError: NCCL's variable names no interface of this machine, and ranks need it.
    """
    loopback = loopback_interface()
    if loopback and not several:
        environment.setdefault(NCCL_INTERFACE, loopback)
    if GLOO_INTERFACE in environment:
        return
    names = _of_nccl(environment)
    if not names and not several:
        names = [loopback] if loopback else []
    elif not names:
        there = list(usable_interfaces())
        names = [name for name in there if name != loopback] or there
    if names:
        environment[GLOO_INTERFACE] = _for_gloo(names, environment.get("MASTER_ADDR"))


def _of_nccl(environment: Mapping[str, str]) -> list[str]:
    """Returns the interfaces that NCCL's variable names; empty if it is not set, or CPU ranks, which do not need it,
    have none of them."""
    wanted = environment.get(NCCL_INTERFACE)
    if not wanted:
        return []
    try:
        return resolved_interfaces(wanted, f"{NCCL_INTERFACE}={wanted}", socket.gethostname())
    except UserError:
        if environment.get("DS_ACCELERATOR") == "cpu":
            return []
        raise


def _for_gloo(names: Sequence[str], towards: str | None) -> str:
    """Returns the one of `names` that leads to the host `towards`, else the one that leads out, else the first.

    It is one, although gloo takes several: it connects the first of each rank, the second of each, and so on, so all
    hosts would need equally many.
    """
    for name in (_interface_to(towards), _way_out()):
        if name in names:
            return str(name)
    return names[0]


def _interface_to(host: str | None) -> str | None:
    """Returns the interface by which this machine reaches a host; that of its address if it is this machine."""
    if not host:
        return None
    with suppress(OSError, UnicodeError):
        family, _, _, _, address = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0].partition("%")[0]
        return next((name for name, addresses in usable_interfaces().items() if own in addresses), None)
    return None


def _way_out() -> str | None:
    """Returns the interface of the system's default route; None if there is none."""
    with suppress(OSError, IndexError):
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            name, destination, *_ = line.split()
            if int(destination, 16) == 0:
                return name
    return None
