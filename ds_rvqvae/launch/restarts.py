"""Start a job again when a rank died or hung."""

import time
from collections.abc import Callable

from ds_rvqvae.errors import ExitStatus, say
from ds_rvqvae.launch.supervise import Ending, Job, Signals, supervise
from ds_rvqvae.runs.heartbeat import Cause

FIRST_PAUSE = 5.0
"""Seconds before the first restart; each further restart waits twice as long as the one before."""
LONGEST_PAUSE = 300.0


def run_with_restarts(
    make_job: Callable[[int], Job], max_restarts: int, signals: Signals, first_pause: float = FIRST_PAUSE
) -> ExitStatus:
    """Runs a job to its end, within `signals_noted`, and again after each failure, `max_restarts` times at most.

    If the ranks themselves fail twice at the same step, there is no third try. If a rank ran out of memory, or was
    blocked when it was asked to stop, there is no second one.

    Args:
        make_job: returns the job for start 0 and for each restart, counted from 1.
    """
    before: Ending | None = None
    restart = 0
    while True:
        if signals.stops:  # before the first start
            say("stopped before the ranks were started")
            return ExitStatus.STOPPED
        ending = supervise(make_job(restart), signals)
        if ending.status != ExitStatus.FAILED or signals.stops or restart == max_restarts:
            return ending.status
        if ending.cause is Cause.OUT_OF_MEMORY:
            say("a restart would run out of memory again: not started again")
        if ending.cause in (Cause.OUT_OF_MEMORY, Cause.BLOCKED):
            return ending.status
        if ending.by_ranks and ending == before:
            say(f"the ranks failed at step {ending.step + 1} as they did before: not started again")
            return ending.status
        pause = min(LONGEST_PAUSE, first_pause * 2**restart)
        say(f"restart {restart + 1} of {max_restarts} in {pause:.0f} s, from the newest complete checkpoint")
        if not _pause(pause, signals):
            say("stopped before the restart")
            return ExitStatus.STOPPED
        before, restart = ending, restart + 1


def _pause(seconds: float, signals: Signals) -> bool:
    """Waits; returns False if a signal to stop came meanwhile."""
    end = time.monotonic() + seconds
    while not signals.stops and time.monotonic() < end:
        time.sleep(0.1)
    signals.save = False  # no rank was running to save
    return not signals.stops
