"""The flags of `bash tests/on_gpu.sh`, and the loop over the checks."""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ds_rvqvae import __version__
from ds_rvqvae.config.parser import FlagParser
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.host import VISIBLE
from ds_rvqvae.launch.slots import LOCAL, Cards, parse_include
from ds_rvqvae.launch.visible import visible_slots
from ds_rvqvae.process.command import print_out
from ds_rvqvae.process.signals import Stopped
from ds_rvqvae.process.tolerance import reason_of
from ds_rvqvae.process.torch_build import Build
from ds_rvqvae.text import counted
from tests.on_gpu.box import UNSET, Box, OutOfTimeError
from tests.on_gpu.checks import CHECKS, Check
from tests.on_gpu.claims import CheckError
from tests.on_gpu.rehearsal import Rehearsal
from tests.on_gpu.report import FAILED, NOT_RUN, OK, PAGE, Outcome, Report
from tests.on_gpu.start import topology
from tests.ranks import ROOT

_LIMIT, _LEAST_LIMIT = 3.0, 120.0
"""A check is ended after so many times its budget, but not before so many seconds: the first start of torch and CUDA on
a machine is slow, and the first run may be made by any check."""
_CPU_TIME = 10.0
"""How many times longer a check may take in a rehearsal."""
_EXIT = """Exit status: 0 all checks are ok, 1 a check failed or was not run, 2 bad flags or no such GPU, 3 a GPU is not
idle, 4 no NVIDIA driver, 75 stopped by a signal. The report is complete up to the last check in every case."""


def parser() -> FlagParser:
    """Returns the parser of the flags."""
    made = FlagParser(
        prog="tests/on_gpu.sh", description="Proves this machine's GPUs and writes a report.", epilog=_EXIT
    )
    made.add_argument("--minutes", type=_minutes, metavar="N", help="time for all checks (10; 30 with several GPUs)")
    made.add_argument(
        "--include", metavar="HOST:SLOTS", help="GPUs (default: CUDA_VISIBLE_DEVICES, else all but GPU 0)"
    )
    made.add_argument("--out", type=Path, default=Path("gpu_report"), metavar="DIR", help="the report (gpu_report)")
    made.add_argument("--only", nargs="+", metavar="CHECK", default=[], help="these checks, in their usual order")
    made.add_argument("--list", action="store_true", help="print the checks with their seconds and fewest GPUs")
    made.add_argument(
        "--rehearse", action="store_true", help="on CPU ranks with a played driver: the checks that end soon there"
    )
    made.add_argument("--all", action="store_true", help="with --rehearse: every check, in up to 60 minutes")
    made.add_argument("--short", action="store_true", help="with --rehearse: the quickest checks, on one rank")
    made.add_argument("--ranks", type=int, default=2, metavar="N", help="with --rehearse: CPU ranks (2)")
    return made


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 10_000:
        raise argparse.ArgumentTypeError(f"{text}: give minutes, as 10 or 0.5")
    return value


def main(argv: Sequence[str]) -> int:
    """Runs the checks and returns the exit status."""
    asked = parser().parse_args(argv)
    if asked.list:
        rows = [f"{one.name:<14}{one.seconds:>5.0f} s  {one.slots} GPU(s)  {one.title}" for one in CHECKS]
        print_out("\n".join(rows), end="\n")
        return ExitStatus.DONE
    checks = chosen(asked)
    # In the background of a shell and under nohup signals are ignored, and the commands would inherit that: a handler
    # that does nothing is not inherited.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    work = Path(tempfile.mkdtemp(prefix="on_gpu-"))
    try:
        rehearsal, slots = place(asked, work)
        return prove(asked, checks, slots, rehearsal, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def chosen(asked: argparse.Namespace) -> list[Check]:
    """Returns the checks that the flags ask for; raises UserError for a name or flag that does not fit."""
    known = {check.name: check for check in CHECKS}
    for name in asked.only:
        if name not in known:
            raise UserError(f"--only {name}: no such check; there are {', '.join(known)}")
    needing = {"--short": asked.short, "--all": asked.all, "--ranks": asked.ranks != parser().get_default("ranks")}
    for flag, is_set in needing.items():
        if is_set and not asked.rehearse:
            raise UserError(f"{flag}: needs --rehearse")
    if asked.all and (asked.short or asked.only):
        raise UserError(f"--all and {'--short' if asked.short else '--only'}: give one of them")
    if asked.rehearse and asked.include:
        raise UserError("--include: names GPUs, and --rehearse takes none; --ranks chooses the number of CPU ranks")
    if not 1 <= asked.ranks <= 64:
        raise UserError(f"--ranks {asked.ranks}: give 1 to 64")
    if asked.only:
        return [known[name] for name in known if name in asked.only]
    if asked.short:
        return [check for check in CHECKS if check.short]
    return [check for check in CHECKS if check.rehearsed or asked.all or not asked.rehearse]


def place(asked: argparse.Namespace, work: Path) -> tuple[Rehearsal | None, list[int]]:
    """Returns the rehearsal, if it is one, and the slots.

    Raises:
        UserError: no driver (status 4), no such GPU, one that is not idle (status 3), or a torch that cannot use them.
    """
    if asked.rehearse:
        ranks = 1 if asked.short else asked.ranks
        return Rehearsal(work, max(2, ranks)), [*range(ranks)]
    try:
        cards = Cards.read()
    except UserError as error:
        if error.status != ExitStatus.NO_DRIVER:
            raise
        reason = str(error).partition(" (")[2].partition(");")[0]
        raise UserError(
            f"no GPU to prove: no NVIDIA driver answers on this machine ({reason}); --rehearse runs the same steps on "
            "CPU ranks",
            ExitStatus.NO_DRIVER,
        ) from None
    slots = slots_of(asked.include, cards)
    cards.check_there(slots, "--include" if asked.include else "the default")
    cards.check_readable(slots)
    cards.require_idle(slots)
    check_build(Build.read(), cards.snapshot.cuda_version)
    return None, slots


def check_build(build: Build, serves: str) -> None:
    """Raises UserError if the installed torch cannot use GPUs whose driver supports CUDA up to `serves`."""
    if build.cuda is None:
        raise UserError(
            f"torch {build.version} is built without CUDA and cannot use these GPUs: install a build for CUDA"
        )
    if not build.can_use_cards(serves):
        raise UserError(
            f"the NVIDIA driver supports CUDA up to {serves}, but torch {build.version} is built for CUDA "
            f"{build.cuda}: {build.way_on(serves)}"
        )


def slots_of(include: str | None, cards: Cards) -> list[int]:
    """Returns the GPUs to prove: those named, else as a run takes them, all but GPU 0 if there are others."""
    if include:
        hosts = parse_include(include)
        if list(hosts) != [LOCAL]:
            raise UserError(f"--include {include}: this script proves one machine; write {LOCAL}:0,1")
        return hosts[LOCAL] or [gpu.index for gpu in cards.gpus]
    if VISIBLE in os.environ:
        return visible_slots(os.environ[VISIBLE], cards.gpus)
    return [gpu.index for gpu in cards.gpus][1:] or [0]


def prove(
    asked: argparse.Namespace, checks: list[Check], slots: list[int], rehearsal: Rehearsal | None, work: Path
) -> int:
    """Runs the checks, one after another, and writes the report after each."""
    minutes = asked.minutes or (60 if asked.all else 10 if rehearsal or len(slots) == 1 else 30)
    out = asked.out.absolute()
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        for log in (out / "logs").glob("[0-9][0-9][0-9]-*.txt"):  # those of an earlier report
            log.unlink()
    except OSError as error:
        raise UserError(f"--out {asked.out}: cannot be made: {error.strerror}") from None
    began = time.monotonic()
    box = Box(slots, work, out / "logs", rehearsal)
    report = Report(out, facts(slots, rehearsal, minutes), rehearsal is not None)
    fitting = [check for check in checks if check.slots <= len(slots)]
    report.facts["left out, as they need more GPUs"] = [
        check.name for check in checks if check not in fitting
    ] or "none"
    report.write()
    where = f"{counted(len(slots), 'CPU rank')}, a rehearsal" if rehearsal else f"GPU {', '.join(map(str, slots))}"
    print_out(f"{len(fitting)} checks on {where}, at most {minutes:g} minutes; the report is {out / PAGE}", end="\n")
    try:
        for check in fitting:
            outcome = run_check(check, box, began + 60 * minutes)
            report.add(outcome)
            print_out(outcome.line(report.rehearsal), end="\n")
    except (Stopped, KeyboardInterrupt) as stop:
        report.ended = f"stopped by {getattr(stop, 'name', 'SIGINT')} in {box.current}"
        raise
    finally:
        box.end_all()
        report.ended = report.ended or f"ended after {time.monotonic() - began:.0f} s"
        report.write()
    print_out(f"{report.summary()}, in {time.monotonic() - began:.0f} s", end="\n")
    return ExitStatus.DONE if report.all_ok else ExitStatus.PARTLY_DONE


def run_check(check: Check, box: Box, deadline: float) -> Outcome:
    """Runs one check within its time; whatever it raises makes it FAILED."""
    began = time.monotonic()
    needed = check.seconds if box.on_gpu else 0.0
    if deadline - began < max(needed, 1.0):
        return Outcome(check.name, check.title, NOT_RUN, reason=f"no time left (needs {check.seconds:.0f} s)")
    limit = max(check.seconds * _LIMIT, _LEAST_LIMIT) if box.on_gpu else check.seconds * _LIMIT * _CPU_TIME
    box.current, box.until = check.name, min(deadline, began + limit)
    outcome = Outcome(check.name, check.title, FAILED)
    try:
        outcome.claims = check.run(box)
        failed = any(claim.fails(not box.on_gpu) for claim in outcome.claims)
        outcome.status = OK if outcome.claims and not failed else FAILED
    except OutOfTimeError:
        cut = began + limit > deadline
        outcome.status = NOT_RUN if cut else FAILED
        outcome.reason = "no time left: it was cut off" if cut else f"did not end within {limit:.0f} s"
    except CheckError as error:
        outcome.reason = str(error)
    except Exception as error:
        outcome.reason = reason_of(error)
    finally:
        box.end_all()
    outcome.seconds = time.monotonic() - began
    return outcome


def facts(slots: list[int], rehearsal: Rehearsal | None, minutes: float) -> dict[str, Any]:
    """Returns facts about the machine for the report."""
    import psutil

    from ds_rvqvae.host import processor_name

    found: dict[str, Any] = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "ds_rvqvae": __version__,
        "slots": slots,
        "minutes": minutes,
        "python": platform.python_version(),
        "torch": f"{Build.read().version}, built for CUDA {Build.read().cuda}",
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "host memory, GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "compiler": shutil.which("gcc") or shutil.which("cc") or "none",
        "nvcc": shutil.which("nvcc") or "none",
        "variables left out": [name for name in UNSET if name in os.environ] or "none",
        "variables of NCCL": [
            f"{name}={value}" for name, value in os.environ.items() if name.startswith("NCCL_") and name not in UNSET
        ]
        or "none",
    }
    if rehearsal is None:
        cards = Cards.read()
        found["driver"] = f"{cards.snapshot.driver_version}, CUDA up to {cards.snapshot.cuda_version}"
        found["GPUs"] = [f"{gpu.index} {gpu.name} ({gpu.pci_bus_id})" for gpu in cards.gpus]
        found["topology"] = topology()
    return found


def commit() -> str:
    """Returns the commit of this copy, and whether files differ from it."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return ran.stdout.strip()
    return "not known: no git"
