"""The flags of the launcher beside those of training."""

import argparse
import math

DEFAULT_INCLUDE = "localhost:1,2,3,4,5,6,7"
"""The GPUs of a box whose GPU 0 drives the desk."""
HANG_TIMEOUT = 120.0
SHORTEST_HANG_TIMEOUT = 5.0
"""Ranks give a sign of life every second, later where the machine is busy."""

DEEPSPEED_VALUES = (
    "hostfile", "num_nodes", "master_addr", "node_rank", "launcher", "launcher_args", "enable_each_rank_log",
    "bind_core_list", "ssh_port", "venv_script", "log_level",
)  # fmt: skip
DEEPSPEED_SWITCHES = (
    "no_ssh", "no_ssh_check", "force_multi", "save_pid", "bind_cores_to_rank", "no_local_rank", "quiet",
)  # fmt: skip
"""deepspeed's own flags, handed through: those that take a value, and those that do not."""
_SHORT = {"hostfile": ["-H"], "quiet": ["-q"]}


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what the launcher itself takes: where ranks run, what is done about faults, NCCL."""
    start = parser.add_argument_group("start")
    start.add_argument("--demo", action="store_true", help="train on motion made for it, on what devices there are")
    start.add_argument(
        "--dry_run", action="store_true", help="check everything, print plan, checks and the deepspeed command"
    )
    start.add_argument(
        "-i",
        "--include",
        metavar="HOST:SLOTS",
        help=f"GPUs (default: those of CUDA_VISIBLE_DEVICES, else {DEFAULT_INCLUDE}, or all of a hostfile's)",
    )
    start.add_argument("-e", "--exclude", metavar="HOST:SLOTS", help="take all GPUs but these")
    start.add_argument(
        "--num_gpus", "--num_accelerators", type=int, metavar="N", help="take GPUs 0 to N-1 (of every host)"
    )
    start.add_argument("--master_port", type=int, metavar="PORT", help="default: a port that is free")
    start.add_argument(
        "--require_idle",
        nargs="?",
        const="0",
        metavar="IDS",
        help="refuse to start unless these GPUs are idle (bare: 0)",
    )
    start.add_argument(
        "--share_gpus", action="store_true", help="start on GPUs on which other users compute too (else exit 3)"
    )
    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--hang_timeout",
        type=_hang_timeout,
        default=HANG_TIMEOUT,
        metavar="SECONDS",
        help=f"end a run whose ranks give no sign of life or finish no step for so long; 0 never does "
        f"(default: {HANG_TIMEOUT:.0f})",
    )
    faults.add_argument(
        "--max_restarts",
        type=_restarts,
        default=0,
        metavar="N",
        help="start a run in which a rank died or hung again from the newest checkpoint, N times at most (default: 0)",
    )
    nccl = parser.add_argument_group("NCCL")
    nccl.add_argument(
        "--nccl_debug", nargs="?", const="INFO", choices=("VERSION", "WARN", "INFO", "TRACE"), help="bare: INFO"
    )
    nccl.add_argument(
        "--nccl_socket_ifname",
        nargs="?",
        const="^docker0,lo",
        metavar="NAMES",
        help="network interfaces (bare: ^docker0,lo; default: the loopback's on one machine, NCCL's choice on several)",
    )
    nccl.add_argument("--nccl_ib_disable", action="store_true", help="no InfiniBand")
    nccl.add_argument("--nccl_p2p_disable", action="store_true", help="no direct transfers between cards")


def add_deepspeed_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what deepspeed's own launcher takes."""
    handed_on = parser.add_argument_group("deepspeed's launcher", "handed through; `deepspeed --help` explains them")
    for name in DEEPSPEED_VALUES:
        handed_on.add_argument(
            *_SHORT.get(name, []), f"--{name}", type=int if name in ("num_nodes", "node_rank") else str, metavar="X"
        )
    for name in DEEPSPEED_SWITCHES:
        handed_on.add_argument(*_SHORT.get(name, []), f"--{name}", action="store_true")


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
