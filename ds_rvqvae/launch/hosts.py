"""Place the ranks of a run: their hosts and slots, and the port at which they meet."""

import functools
import re
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ds_rvqvae.config.launch_flags import DEFAULT_INCLUDE
from ds_rvqvae.config.request import LaunchOptions
from ds_rvqvae.errors import UserError, say
from ds_rvqvae.host import VISIBLE, shown_visible
from ds_rvqvae.launch.slots import (
    LOCAL,
    Cards,
    check_cpu_slots,
    cpu_slots,
    first_slots,
    format_hosts,
    format_include,
    parse_include,
    read_hostfile,
    slots_but,
    slots_of_hosts,
)
from ds_rvqvae.launch.visible import entries, numbers_may_differ, visible_slots
from ds_rvqvae.process.interfaces import NCCL_INTERFACE, check_interfaces
from ds_rvqvae.process.slurm import check_one_launcher_per_node

DEEPSPEED_HOSTFILE = Path("/job/hostfile")
"""The hostfile that deepspeed reads by default."""
DEEPSPEED_PORT = 29500
_LOOKS, _PAUSE = 5, 0.2
"""How often GPUs are read again, and the seconds between readings."""
_READ_BY_SHELLS = re.compile(r"[\\'\"`$;&|<>()]")
_SPLIT_BY_SHELLS = re.compile(rf"{_READ_BY_SHELLS.pattern}|[\s{{}}*?#!~%\[\]]")  # pdsh replaces %h and similar


@dataclass(frozen=True)
class Ranks:
    """The places of the ranks."""

    include: str | None
    """The value of deepspeed's --include; None for all slots of a hostfile."""
    hosts: dict[str, list[int]]
    """Slots by host."""
    local: list[int] | None
    """This machine's slots, empty for all its GPUs; None if none of the hosts is known to be this machine."""
    port: int
    cpu_slots: int | None
    """Number of this machine's slots for CPU ranks; None if the slots are GPUs."""
    first_here: bool
    """Whether rank 0 runs on this machine."""
    exclude: str | None = None
    """This machine's GPUs that are not used, as --exclude names them."""
    visible: str | None = None
    """The CUDA_VISIBLE_DEVICES that names this machine's GPUs, if no flag does."""
    chosen_by: str = "--include"
    """The flag, file or variable that chose the slots."""

    @property
    def cpu(self) -> bool:
        """Whether the ranks are CPU ranks."""
        return self.cpu_slots is not None

    @property
    def on_this_machine(self) -> bool:
        """Whether all ranks run here."""
        return self.local is not None and len(self.hosts) == 1

    @property
    def world_size(self) -> int:
        return sum(map(len, self.hosts.values()))


def place_ranks(options: LaunchOptions, environment: Mapping[str, str]) -> Ranks:
    """Returns the places of the ranks, as far as they are known without reading the GPUs.

    Raises:
        UserError: the flags do not fit together, or not to this machine; or srun has started several launchers.
    """
    _check_choice(options)
    check_one_launcher_per_node(environment, options.no_ssh)
    ranks = _placed(options, environment)
    if ranks.local is not None:
        check_interfaces(options.nccl.get(NCCL_INTERFACE))
    return ranks


def _placed(options: LaunchOptions, environment: Mapping[str, str]) -> Ranks:
    count = cpu_slots(environment)
    hostfile = Path(options.hostfile) if options.hostfile else DEEPSPEED_HOSTFILE
    if options.hostfile or hostfile.is_file():
        return _place_on_hosts(options, read_hostfile(hostfile), count)
    if options.num_nodes is not None or options.no_ssh:
        raise UserError("--num_nodes and --no_ssh need a --hostfile that names the hosts")
    visible = environment.get(VISIBLE) if count is None and not options.chooses_devices else None
    if visible is not None:
        entries(visible)  # errors in the text itself are reported before any GPU is read
    slots = _slots_here(options) if visible is None else []
    if count is not None:
        slots = slots or _all_here(count, options.exclude)
        check_cpu_slots(slots, count)
    port = free_port(options.master_port, here=True)
    return Ranks(
        *(format_include(slots), {LOCAL: slots}, slots, port, count, True, options.exclude, visible),
        chosen_by=_chosen_by(options, visible),
    )


def _chosen_by(options: LaunchOptions, visible: str | None) -> str:
    given = [f"--{name}" for name in ("exclude", "num_gpus") if getattr(options, name) is not None]
    return given[0] if given else "--include" if visible is None else shown_visible(visible)


def _check_choice(options: LaunchOptions) -> None:
    """Raises UserError if flags choose slots in two ways, or choose none."""
    ways = (["include"], ["exclude"], ["num_gpus", "num_nodes"])
    given = [" and ".join(f"--{name}" for name in way if getattr(options, name) is not None) for way in ways]
    given = [flags for flags in given if flags]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: deepspeed accepts only one of them; leave the other out")
    for name in ("num_gpus", "num_nodes"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: give 1 or more")


def _slots_here(options: LaunchOptions) -> list[int]:
    """Returns the slots of this machine that the flags choose without a hostfile; empty for all GPUs that it has."""
    if options.num_gpus is not None:
        return list(range(options.num_gpus))
    exclude, include = options.exclude, options.include or DEFAULT_INCLUDE
    flag, text = ("--exclude", exclude) if exclude else ("--include", include)
    hosts = parse_include(text, flag)
    if list(hosts) != [LOCAL]:
        slots = text if text.isdecimal() else "0,1"
        raise UserError(f"{flag} {text}: without a --hostfile the only host is {LOCAL}; write {flag} {LOCAL}:{slots}")
    return [] if options.exclude else hosts[LOCAL]


def _all_here(size: int, exclude: str | None) -> list[int]:
    """Returns all `size` slots of this machine, except those that `--exclude` names."""
    return slots_but(exclude, {LOCAL: size})[LOCAL] if exclude else list(range(size))


def _place_on_hosts(options: LaunchOptions, sizes: dict[str, int], cpu_slots: int | None) -> Ranks:
    """Returns the places of ranks on the hosts of a hostfile; `sizes` has the number of slots per host."""
    sizes = dict(list(sizes.items())[: options.num_nodes])
    if options.num_gpus is not None:
        hosts = first_slots(options.num_gpus, sizes)
    elif options.exclude:
        hosts = slots_but(options.exclude, sizes)
    else:
        hosts = slots_of_hosts(options.include, sizes)
    include = format_hosts(hosts) if options.exclude or options.num_gpus is not None else options.include
    local = _this_host(options, list(hosts))
    if local is None and options.launcher in (None, "pdsh") and shutil.which("pdsh") is None:
        raise UserError(
            "--hostfile: pdsh, which starts the ranks of other hosts, is not installed; install it, or use --no_ssh"
        )
    first_here = local is not None and local == next(iter(hosts))
    # Hosts that are started one by one must have the same port.
    port = free_port(options.master_port or (DEEPSPEED_PORT if len(hosts) > 1 else None), first_here)
    slots = hosts[local] if local else None
    return Ranks(include, hosts, slots, port, cpu_slots, first_here, chosen_by="the hostfile")


def _this_host(options: LaunchOptions, hosts: list[str]) -> str | None:
    """Returns which of a hostfile's hosts is this machine; None if the flags do not tell."""
    if options.no_ssh:
        if options.node_rank is None or not 0 <= options.node_rank < len(hosts) or not options.master_addr:
            raise UserError(f"--no_ssh: give --node_rank, from 0 to {len(hosts) - 1}, and --master_addr")
        return hosts[options.node_rank]
    return hosts[0] if len(hosts) == 1 and hosts[0] in (LOCAL, socket.gethostname()) else None


def check_shells(ranks: Ranks, options: LaunchOptions, arguments: Sequence[str]) -> None:
    """Raises UserError if deepspeed would start ranks through a shell that splits or changes the command. deepspeed
    quotes only words with a space, and these only in part."""
    if options.no_ssh or not (options.force_multi or len(ranks.hosts) > 1):
        return
    places = [place for place in (sys.executable, str(Path.cwd())) if _SPLIT_BY_SHELLS.search(place)]
    words = [word for word in arguments if _READ_BY_SHELLS.search(word)]
    if places or words:
        raise UserError(
            "--hostfile: deepspeed starts ranks on other hosts through shells, which would change "
            f"{(places + words)[0]}; use plain names, or start each host with --no_ssh"
        )


def check_cards(ranks: Ranks, environment: Mapping[str, str]) -> tuple[Ranks, Cards]:
    """Checks that this machine has the GPUs. Returns them, and the ranks with all GPUs filled in if none are named."""
    cards = Cards.read()
    if not ranks.local:
        if ranks.visible is not None:
            slots = visible_slots(ranks.visible, cards.gpus)
        else:
            slots = _all_here(len(cards.gpus), ranks.exclude) or [0]
        ranks = replace(ranks, include=format_include(slots), hosts={LOCAL: slots}, local=slots)
    slots = ranks.local or []
    cards.check_there(slots, ranks.chosen_by)
    cards.check_readable(slots)
    cards = _without_ended(cards, slots)
    _tell_of_variable(ranks, cards, environment)
    return ranks, cards


def _without_ended(cards: Cards, slots: Sequence[int]) -> Cards:
    """Reads the GPUs again while one of `slots` has a process that the system does not list: the driver lists a killed
    process for a moment longer than the system does."""
    for _ in range(_LOOKS):
        if not cards.any_unseen(slots):
            break
        time.sleep(_PAUSE)
        again = Cards.read()
        if len(again.gpus) < len(cards.gpus) or any(again.gpus[slot].error for slot in slots):
            break
        cards = again
    return cards


def _tell_of_variable(ranks: Ranks, cards: Cards, environment: Mapping[str, str]) -> None:
    """Prints the effect of CUDA_VISIBLE_DEVICES if it is set: it names the GPUs, or a flag overrides it."""
    text = environment.get(VISIBLE)
    if text is None:
        return
    slots = ranks.local or []
    if ranks.visible is None:
        with suppress(UserError):
            if visible_slots(text, cards.gpus) == slots:
                return
        why = "a flag of this start overrides a variable that was set before"
        warn(f"{shown_visible(text)} has no effect: {ranks.chosen_by} chooses the GPUs, and {why}")
        return
    names = " and ".join(sorted({cards.gpus[slot].name for slot in slots}))
    note(
        f"GPU {', '.join(map(str, slots))} ({names or 'without a name'}), as {shown_visible(text)} says; --include "
        "chooses others"
    )
    if numbers_may_differ(text, cards.gpus, environment.get("CUDA_DEVICE_ORDER")):
        warn(
            f"{shown_visible(text)}: the GPUs of this machine differ; its numbers are read as nvidia-smi's, in order "
            "of PCI bus, but CUDA without CUDA_DEVICE_ORDER=PCI_BUS_ID counts the fastest first"
        )


def free_port(wanted: int | None, here: bool) -> int:
    """Returns a free port, or the wanted one; it is checked if rank 0 listens on this machine."""
    if wanted is not None and not 0 < wanted < 65536:
        raise UserError(f"--master_port {wanted}: a port is a number from 1 to 65535")
    if wanted is not None and not here:
        return wanted
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", wanted or 0))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"--master_port {wanted}: {reason}; give another, or leave the flag out for a free one"
            ) from None
        return int(listener.getsockname()[1])


@functools.cache
def warn(text: str) -> None:
    """Prints a warning on stderr, once even if it concerns several parts of a body."""
    say(f"warning: {text}")


@functools.cache
def note(text: str) -> None:
    """Prints a message on stderr, once even if it concerns several parts of a body."""
    say(text)
