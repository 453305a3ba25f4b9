"""The live monitor of the GPUs: `launch/monitor_gpu.py`."""

import argparse
import math
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ds_rvqvae.config.parser import FlagParser
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.process.command import exit_status_of
from ds_rvqvae.process.signals import ENDING

if TYPE_CHECKING:  # late, so that help answers at once
    from ds_rvqvae.gpu.display import Display
    from ds_rvqvae.gpu.nvml import CardReader, Driver
    from ds_rvqvae.gpu.recording import Record

INTERVAL = 5.0
SHORTEST_INTERVAL = 0.1
"""Seconds; PCIe throughput alone takes about 40 ms per GPU."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `launch/monitor_gpu.py` and returns its exit status."""
    return exit_status_of(
        lambda: _monitor(_parser().parse_args(argv)), is_program=argv is None, stopped=(ExitStatus.DONE, "")
    )


def _parser() -> FlagParser:
    return FlagParser(prog="monitor_gpu", fill=fill_monitor_parser)


def add_monitor(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `ds-rvqvae monitor`, which is this monitor under the package's name."""
    fill_monitor_parser(parser)
    parser.set_defaults(verb=_monitor)


def fill_monitor_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the monitor's flags, and the description in its help."""
    parser.description = "Shows the GPUs of this machine, who uses them, and whether GPU 0 is idle."
    parser.epilog = (
        "GPUs are numbered as by nvidia-smi, in the order of the PCI bus, whatever CUDA_VISIBLE_DEVICES says. "
        "Exit status: 0 done, also by Ctrl-C; 2 bad input or no such GPU; 3 a GPU is not idle; 4 no NVIDIA driver."
    )
    parser.add_argument(
        "interval",
        nargs="?",
        type=_interval,
        default=INTERVAL,
        metavar="INTERVAL",
        help=f"seconds between two refreshes (default: {INTERVAL:g})",
    )
    parser.add_argument("--count", type=_count, metavar="N", help="refresh N times (default: until Ctrl-C)")
    parser.add_argument("--once", action="store_true", help="the same as --count 1")
    parser.add_argument("--gpus", type=_gpus, metavar="IDS", help="only these GPUs, for example 1-7 or 1,3")
    parser.add_argument(
        "--require_idle",
        nargs="?",
        const="0",
        type=_gpus,
        metavar="IDS",
        help="end with status 3 as soon as one of these GPUs is not idle (bare: 0); checks once, or --count times",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        type=_json_target,
        metavar="FILE",
        help="one JSON object per refresh, each on its own line, added to FILE or alone on standard output",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="adds one row per GPU and refresh to FILE")
    parser.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="scalars per GPU in DIR/gpus; DIR may be a run's tensorboard folder",
    )


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not SHORTEST_INTERVAL <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give {SHORTEST_INTERVAL} seconds or more")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number of refreshes, 1 or more")
    return int(text)


def _gpus(text: str) -> list[int]:
    indices: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"{text}: give GPU numbers, for example 1-7 or 1,3")
        indices.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(indices)


def _json_target(text: str) -> str:
    if re.fullmatch(r"[\d.]+", text):
        raise argparse.ArgumentTypeError(f"{text} would be the FILE; an INTERVAL goes before the flag: {text} --json")
    return text


def _monitor(args: argparse.Namespace) -> int:
    from ds_rvqvae.gpu.nvml import Driver, NoDriverError

    if args.once or (args.require_idle and not args.count):
        args.count = 1
    with ExitStack() as stack:
        # Signals are handled only between two refreshes, so that none interrupts a row or the screen.
        signals = _signals()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        records = _open_records(args)
        for record in records:
            stack.callback(record.close)
        try:
            driver = stack.enter_context(Driver())
            cards = driver.cards()
        except NoDriverError as error:
            raise UserError(f"no NVIDIA driver answers on this machine: {error}", ExitStatus.NO_DRIVER) from None
        if not cards:
            raise UserError(f"the NVIDIA driver {driver.version} answers, but there is no GPU")
        for flag in ("gpus", "require_idle"):
            _check_there(flag, getattr(args, flag) or [], cards)
        display = _open_display(args)
        stack.callback(display.close)
        _refresh(args, driver, cards, records, display, signals)
    return ExitStatus.DONE


def _signals() -> set[signal.Signals]:
    """The signals to handle between two refreshes; those that were ignored at the start stay ignored."""
    wanted = (*ENDING, signal.SIGTSTP, signal.SIGWINCH)
    return {number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN}


def _open_records(args: argparse.Namespace) -> "list[Record]":
    """Opens the files and folders to record to; raises UserError if one cannot be written."""
    from ds_rvqvae.gpu.recording import ScalarsFolder, csv_file, json_file

    records: list[Record] = [csv_file(args.csv)] if args.csv else []
    records += [json_file(Path(args.json))] if args.json not in (None, "-") else []
    records += [ScalarsFolder(args.tensorboard)] if args.tensorboard else []
    return records


def _open_display(args: argparse.Namespace) -> "Display":
    from ds_rvqvae.gpu.display import JsonDisplay, LinesDisplay, TableDisplay

    if args.json == "-":
        return JsonDisplay()
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return LinesDisplay()
    if args.count == 1:
        return TableDisplay(live=False)
    return TableDisplay(live=True, heading=f"every {args.interval:g} s")


def _check_there(flag: str, indices: Sequence[int], cards: "Sequence[CardReader]") -> None:
    missing = [str(index) for index in indices if index >= len(cards)]
    if missing:
        there = "GPU 0 only" if len(cards) == 1 else f"GPUs 0 to {len(cards) - 1}"
        raise UserError(f"--{flag}: no GPU {', '.join(missing)} on this machine, which has {there}")


def _refresh(
    args: argparse.Namespace,
    driver: "Driver",
    cards: "Sequence[CardReader]",
    records: "Sequence[Record]",
    display: "Display",
    signals: set[signal.Signals],
) -> None:
    """Reads, shows and records until the count is reached, a signal stops it, or nobody reads the output and nothing is
    recorded.

    Raises:
        UserError: a GPU that should be idle is not (exit status 3).
    """
    from ds_rvqvae.gpu.processes import Owners
    from ds_rvqvae.gpu.snapshot import Snapshot

    owners = Owners()
    shown = args.gpus or [card.index for card in cards]
    due = time.monotonic()
    for number in count(1):
        now = datetime.now().astimezone()
        gpus = [card.read(pcie=card.index in shown) for card in cards]
        known = owners.look_up(process.pid for gpu in gpus for process in gpu.processes)
        snapshot = Snapshot(now, driver.version, driver.cuda_version, gpus, shown, known, dict(os.environ))
        for record in records:
            record.write(snapshot)
        display.show(snapshot, [record.problem for record in records if record.problem])
        busy = [
            f"GPU {index}: {snapshot.state(gpus[index])}" for index in args.require_idle or () if not gpus[index].idle
        ]
        if busy:
            raise UserError(f"--require_idle: {'; '.join(busy)}", ExitStatus.CARD_NOT_IDLE)
        if number == args.count or not (display.is_read or records):
            return
        # After a refresh that took longer than the interval, the next ones do not hurry.
        due = max(due + args.interval, time.monotonic())
        if _wait(due, display, signals):
            return


def _wait(due: float, display: "Display", signals: set[signal.Signals]) -> bool:
    """Waits until `due`; returns whether a signal stops it. Redraws a resized terminal, returns a suspended one."""
    while True:
        received = signal.sigtimedwait(signals, max(0.0, due - time.monotonic()))
        if received is None:
            return False
        if received.si_signo in ENDING:
            return True
        if received.si_signo == signal.SIGTSTP:
            display.suspend()
            os.kill(os.getpid(), signal.SIGSTOP)
            display.resume()
        display.redraw()
