"""The flags that only the launcher has, beside those of training."""

import argparse
import math

from ds_rvqvae.config.flags import PLACES, START, group_of

DEFAULT_INCLUDE = "localhost:1,2,3,4,5,6,7"
"""The GPUs of a machine whose GPU 0 drives the display."""
HANG_TIMEOUT = 120.0
SHORTEST_HANG_TIMEOUT = 5.0
"""Ranks report that they are alive every second, later if the machine is busy."""

DEEPSPEED_VALUES = (
    "hostfile", "num_nodes", "master_addr", "node_rank", "launcher", "launcher_args", "enable_each_rank_log",
    "bind_core_list", "ssh_port", "venv_script", "log_level",
)  # fmt: skip
DEEPSPEED_SWITCHES = (
    "no_ssh", "no_ssh_check", "force_multi", "save_pid", "bind_cores_to_rank", "no_local_rank", "quiet",
)  # fmt: skip
"""Flags of deepspeed's own launcher, which are passed on: those with a value, and those without."""
_HANDED_ON = {
    "hostfile": ("FILE", "hosts and their slots, one line per host"),
    "num_nodes": ("N", "use its first N hosts"),
    "master_addr": ("HOST", "the host of rank 0"),
    "node_rank": ("N", "which host this is, with --no_ssh"),
    "launcher": ("NAME", "how to reach other hosts [pdsh]"),
    "launcher_args": ("TEXT", "flags for --launcher"),
    "enable_each_rank_log": ("DIR", "one log per rank, in DIR"),
    "bind_core_list": ("CORES", "cores to bind ranks to, as 0-15,32"),
    "ssh_port": ("PORT", "ssh port on the other hosts"),
    "venv_script": ("FILE", "script to source on the other hosts"),
    "log_level": ("LEVEL", "level of deepspeed's own log"),
    "no_ssh": ("", "start ranks on this host only; one call per host"),
    "no_ssh_check": ("", "do not test ssh first"),
    "force_multi": ("", "multi-node launch, even with one host"),
    "save_pid": ("", "write the launcher's pid into a file"),
    "bind_cores_to_rank": ("", "give each rank its own cores"),
    "no_local_rank": ("", "do not pass --local_rank to ranks"),
    "quiet": ("", "less of deepspeed's own output"),
}
"""The placeholder for the value and the help text of each of these flags."""
_SHORT = {"hostfile": ["-H"], "quiet": ["-q"]}


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the launcher's own flags: where ranks run, what to do about faults, NCCL."""
    start, places = group_of(parser, START), group_of(parser, PLACES)
    start.add_argument("--demo", action="store_true", help="train on demo motion, on any machine")
    start.add_argument("--dry_run", action="store_true", help="only check; print plan, checks and command")
    places.add_argument(
        "-i",
        "--include",
        metavar="HOST:SLOTS",
        help=f"GPUs (default: CUDA_VISIBLE_DEVICES, else {DEFAULT_INCLUDE}, or all of a hostfile's)",
    )
    places.add_argument("-e", "--exclude", metavar="HOST:SLOTS", help="use all GPUs except these")
    places.add_argument(
        "--num_gpus", "--num_accelerators", type=int, metavar="N", help="use GPUs 0 to N-1 (of every host)"
    )
    places.add_argument("--master_port", type=int, metavar="PORT", help="port for the ranks (default: a free one)")
    places.add_argument(
        "--require_idle",
        nargs="?",
        const="0",
        metavar="IDS",
        help="start only if these GPUs are idle (no value: 0)",
    )
    places.add_argument("--share_gpus", action="store_true", help="also use GPUs on which other users compute")
    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--hang_timeout",
        type=_hang_timeout,
        default=HANG_TIMEOUT,
        metavar="SECONDS",
        help=f"end a run that makes no progress; 0: never [{HANG_TIMEOUT:.0f}]",
    )
    faults.add_argument(
        "--max_restarts",
        type=_restarts,
        default=0,
        metavar="N",
        help="automatic restarts after a rank died or hung [0]",
    )
    nccl = parser.add_argument_group("NCCL")
    nccl.add_argument(
        "--nccl_debug", nargs="?", const="INFO", choices=("VERSION", "WARN", "INFO", "TRACE"), metavar="LEVEL",
        help="NCCL's own log: VERSION, WARN, INFO, TRACE (without a value: INFO)",
    )  # fmt: skip
    nccl.add_argument(
        "--nccl_socket_ifname",
        nargs="?",
        const="^docker0,lo",
        metavar="NAMES",
        help="network interfaces of NCCL and gloo (without a value: ^docker0,lo; default: loopback on one machine, "
        "NCCL's choice on several)",
    )
    nccl.add_argument("--nccl_ib_disable", action="store_true", help="no InfiniBand")
    nccl.add_argument("--nccl_p2p_disable", action="store_true", help="no direct transfers between GPUs")


def add_deepspeed_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of deepspeed's own launcher."""
    handed_on = parser.add_argument_group("deepspeed's launcher", "Passed on; `deepspeed --help` explains them.")
    for name in DEEPSPEED_VALUES:
        metavar, words = _HANDED_ON[name]
        kind = int if name in ("num_nodes", "node_rank") else str
        handed_on.add_argument(*_SHORT.get(name, []), f"--{name}", type=kind, metavar=metavar, help=words)
    for name in DEEPSPEED_SWITCHES:
        handed_on.add_argument(*_SHORT.get(name, []), f"--{name}", action="store_true", help=_HANDED_ON[name][1])


def _hang_timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if seconds != 0 and not SHORTEST_HANG_TIMEOUT <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give {SHORTEST_HANG_TIMEOUT:.0f} seconds or more, or 0")
    return seconds


def _restarts(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of restarts, 0 or more")
    return int(text)
