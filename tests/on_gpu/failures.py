"""Checks of failures: what a run says, its exit status, how long it takes to end, and what it leaves behind."""

import os
import signal

from tests.on_gpu.box import Box, Ran, Running
from tests.on_gpu.claims import Claim, at_most, figure, same, true
from tests.on_gpu.precision import out_of_memory_settings
from tests.on_gpu.start import stray_lines

LONGEST_END = 40.0
"""Seconds within which a failed run is gone."""


def _errors(ran: Ran) -> list[str]:
    """The lines in which a run says why it failed."""
    lines = [line for line in ran.err.splitlines() if line.startswith(("error:", "training failed:"))]
    # What follows names users of the GPU, who are nobody's business in a report.
    return [line.partition("; also on GPU")[0] for line in lines]


def _ended(ran: Ran, status: int, seconds: float) -> list[Claim]:
    return [
        same("status", ran.status, status),
        at_most("seconds to its end", seconds, LONGEST_END, "s"),
        same("processes left", ran.left, []),
        true("no traceback", "Traceback" not in ran.err + ran.out, str("Traceback" in ran.err + ran.out), "False"),
    ]


def _trains(box: Box, name: str, *flags: str) -> Running:
    """Starts a long run on all slots and waits until it trains."""
    running = box.start(*box.training(name, "--total_iter=1000000", *flags))
    running.wait_until(lambda: box.metrics(name), "its first step")
    running.wait_until(lambda: len(running.ranks()) == len(box.slots), "all ranks run")
    return running


def _victim(box: Box) -> int:
    """The rank that is hurt: the fourth of seven."""
    return len(box.slots) // 2


def _hurt(box: Box, name: str, number: int, *flags: str) -> tuple[Ran, float, int]:
    """Sends a signal to one rank of a run; returns its end, the seconds until then, and the rank's process."""
    running = _trains(box, name, *flags)
    victim = running.ranks()[_victim(box)].pid
    before = box.seconds()
    os.kill(victim, number)
    ran = running.wait()
    return ran, box.seconds() - before, victim


def _names(ran: Ran, rank: int, words: str) -> Claim:
    """That the run's own last line names one rank and no other."""
    lines = _errors(ran)
    others = [line for line in lines if f"rank {rank} " not in line and f"rank {rank}:" not in line]
    holds = bool(lines) and not others and any(words in line for line in lines)
    return true("it said", holds, " | ".join(lines) or "nothing", f"rank {rank} alone, {words!r}")


def killed(box: Box) -> list[Claim]:
    """kill -9 of one rank."""
    ran, seconds, victim = _hurt(box, "killed", signal.SIGKILL)
    return [*_ended(ran, 70, seconds), _names(ran, _victim(box), f"(process {victim}) was")]


def stopped(box: Box) -> list[Claim]:
    """One rank stops and does not go on."""
    ran, seconds, victim = _hurt(box, "halted", signal.SIGSTOP, "--hang_timeout=10")
    return [*_ended(ran, 70, seconds), _names(ran, _victim(box), f"(process {victim}) has been stopped")]


def interrupted(box: Box) -> list[Claim]:
    """Ctrl-C: a checkpoint, and status 75."""
    running = _trains(box, "interrupted")
    before = box.seconds()
    running.process.send_signal(signal.SIGINT)
    ran = running.wait()
    latest = box.runs / "interrupted" / "checkpoints" / "latest"
    saved = latest.read_text() if latest.is_file() else "none"
    return [
        *_ended(ran, 75, box.seconds() - before),
        true("checkpoint", saved.startswith("global_step"), saved, "that of the last step"),
        same("lines with 'continue with:'", sum(line.startswith("continue with:") for line in ran.said), 1),
    ]


def out_of_memory(box: Box) -> list[Claim]:
    """One rank's memory runs out: one line that names it, and no further try."""
    batch, variables = out_of_memory_settings(box)
    running = box.start(*box.training("too_large", *batch, "--total_iter=3", "--max_restarts=2"), **variables)
    ran, seconds = running.wait_after("OutOfMemory: ")
    rank = len(box.slots) - 1
    lines = _errors(ran)
    named = [line for line in lines if line.startswith(f"error: rank {rank}: OutOfMemory: ")]
    return [
        same("status", ran.status, 70),
        true("it said", len(named) == 1 == len(lines), " | ".join(lines) or "nothing", f"rank {rank} alone, once"),
        true("no restart", not any("restart 1 of" in line for line in ran.said), _restarts(ran), "none"),
        same("processes left", ran.left, []),
        at_most("seconds from this line to the end", seconds, LONGEST_END, "s"),
        figure("advice", "; ".join(named)[-160:]),
    ]


def _restarts(ran: Ran) -> str:
    return "; ".join(line for line in ran.said if "restart " in line) or "none"


def not_finite(box: Box) -> list[Claim]:
    """Steps whose loss is NaN are skipped, and end the run after a few."""
    ran = box.train("nan", "--lr=1e30", "--max_skipped_steps=3", "--total_iter=50")
    lines = _errors(ran)
    said = [line for line in lines if "3 steps in a row had a loss or gradient that was not finite" in line]
    skipped = [line for line in ran.said if "skipped: a loss or gradient was not finite" in line]
    return [
        same("status", ran.status, 70),
        true("it said", bool(said), " | ".join(lines)[:300] or "nothing", "3 steps in a row … not finite"),
        same("steps skipped", len(skipped), 3),
        same("processes left", ran.left, []),
        same("stray lines", stray_lines(ran), []),
    ]
