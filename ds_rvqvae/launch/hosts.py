"""Where the ranks of a run run: on which hosts and slots, and at which port they meet."""

import argparse
import functools
import shutil
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from ds_rvqvae.errors import UserError
from ds_rvqvae.launch.slots import (
    DEFAULT_INCLUDE,
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

DEEPSPEED_HOSTFILE = Path("/job/hostfile")
"""Where deepspeed looks for a hostfile that it was not told of."""
DEEPSPEED_PORT = 29500


@dataclass(frozen=True)
class Ranks:
    """Where the ranks run."""

    include: str | None
    """What deepspeed's --include is given; None for all slots of a hostfile."""
    hosts: dict[str, list[int]]
    """Slots by host."""
    local: list[int] | None
    """This machine's slots, empty for all its cards; None where none of the hosts is known to be this machine."""
    port: int
    cpu: bool
    first_here: bool
    """Whether rank 0 runs on this machine."""
    exclude: str | None = None
    """Of all this machine's cards, those to leave out."""

    @property
    def world_size(self) -> int:
        return sum(map(len, self.hosts.values()))


def place_ranks(args: argparse.Namespace, environment: dict[str, str]) -> Ranks:
    """Where the ranks run, as far as that can be known without looking at cards."""
    _check_choice(args)
    count = cpu_slots(environment)
    if count is not None:
        environment |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(count)}
    hostfile = Path(args.hostfile) if args.hostfile else DEEPSPEED_HOSTFILE
    if args.hostfile or hostfile.is_file():
        return _place_on_hosts(args, read_hostfile(hostfile), cpu=count is not None)
    if args.num_nodes is not None or args.no_ssh:
        raise UserError("--num_nodes and --no_ssh need a --hostfile that names the hosts")
    slots = _slots_here(args)
    if count is not None:
        slots = slots or _all_here(count, args.exclude)
        check_cpu_slots(slots, count)
    port = free_port(args.master_port, here=True)
    cpu = count is not None
    return Ranks(format_include(slots), {LOCAL: slots}, slots, port, cpu, first_here=True, exclude=args.exclude)


def _check_choice(args: argparse.Namespace) -> None:
    """Raises UserError where flags choose slots in two ways, or none."""
    ways = (["include"], ["exclude"], ["num_gpus", "num_nodes"])
    given = [" and ".join(f"--{name}" for name in way if getattr(args, name) is not None) for way in ways]
    given = [flags for flags in given if flags]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: deepspeed takes one of them; leave the other out")
    for name in ("num_gpus", "num_nodes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")


def _slots_here(args: argparse.Namespace) -> list[int]:
    """The slots of this machine that the flags choose without a hostfile; empty for all that it turns out to have."""
    if args.num_gpus is not None:
        return list(range(args.num_gpus))
    flag, text = ("--exclude", args.exclude) if args.exclude else ("--include", args.include or DEFAULT_INCLUDE)
    hosts = parse_include(text, flag)
    if list(hosts) != [LOCAL]:
        raise UserError(f"{flag} {text}: without a --hostfile the only host is {LOCAL}")
    return [] if args.exclude else hosts[LOCAL]


def _all_here(size: int, exclude: str | None) -> list[int]:
    """All of this machine's so many slots, but those that `--exclude` names."""
    return slots_but(exclude, {LOCAL: size})[LOCAL] if exclude else list(range(size))


def _place_on_hosts(args: argparse.Namespace, sizes: dict[str, int], cpu: bool) -> Ranks:
    """Ranks on the hosts of a hostfile, which have so many slots."""
    sizes = dict(list(sizes.items())[: args.num_nodes])
    if args.num_gpus is not None:
        hosts = first_slots(args.num_gpus, sizes)
    elif args.exclude:
        hosts = slots_but(args.exclude, sizes)
    else:
        hosts = slots_of_hosts(args.include, sizes)
    include = format_hosts(hosts) if args.exclude or args.num_gpus is not None else args.include
    local = _this_host(args, list(hosts))
    if local is None and args.launcher in (None, "pdsh") and shutil.which("pdsh") is None:
        raise UserError("--hostfile: pdsh is not installed, which starts the ranks of other hosts; or use --no_ssh")
    first_here = local is not None and local == next(iter(hosts))
    # Hosts that are started one by one have to agree on the port.
    port = free_port(args.master_port or (DEEPSPEED_PORT if len(hosts) > 1 else None), first_here)
    return Ranks(include, hosts, hosts[local] if local else None, port, cpu, first_here)


def _this_host(args: argparse.Namespace, hosts: list[str]) -> str | None:
    """Which of a hostfile's hosts is this machine, where the flags tell."""
    if args.no_ssh:
        if args.node_rank is None or not 0 <= args.node_rank < len(hosts) or not args.master_addr:
            raise UserError(f"--no_ssh: give --node_rank, from 0 to {len(hosts) - 1}, and --master_addr")
        return hosts[args.node_rank]
    return hosts[0] if len(hosts) == 1 and hosts[0] in (LOCAL, socket.gethostname()) else None


def check_cards(ranks: Ranks, environment: dict[str, str]) -> tuple[Ranks, Cards]:
    """Checks that this machine has the cards; gives them, and the ranks with all filled in where none are named."""
    cards = Cards.read()
    if not ranks.local:
        slots = _all_here(len(cards.gpus), ranks.exclude) or [0]
        ranks = replace(ranks, include=format_include(slots), hosts={LOCAL: slots}, local=slots)
    cards.check_there(ranks.local, "--include")
    cards.check_readable(ranks.local)
    if environment.get("CUDA_VISIBLE_DEVICES"):
        warn(f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']} is ignored: flags name the GPUs")
    return ranks, cards


def free_port(wanted: int | None, here: bool) -> int:
    """A free port, or the one wanted; checked where rank 0 listens on this machine."""
    if wanted is not None and not 0 < wanted < 65536:
        raise UserError(f"--master_port {wanted}: a port is a number from 1 to 65535")
    if wanted is not None and not here:
        return wanted
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", wanted or 0))
        except OSError as error:
            raise UserError(
                f"--master_port {wanted}: {error.strerror.lower()}; give another, or leave it out for a free one"
            ) from None
        return listener.getsockname()[1]


@functools.cache
def warn(text: str) -> None:
    """A warning on stderr, once, however many parts of a body it is about."""
    print(f"warning: {text}", file=sys.stderr)
