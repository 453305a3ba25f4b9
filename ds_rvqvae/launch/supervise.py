"""Run the deepspeed launcher, pass signals on, leave no process behind and report how the run ended.

DeepSpeed's own launcher does not do this: after a SIGTERM its ranks run on, and it exits with 0 when its child was
killed.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

from ds_rvqvae.errors import ExitStatus, say
from ds_rvqvae.launch.hosts import warn
from ds_rvqvae.launch.processes import AboveRanks, ask_to_save, below, session, stop_ranks
from ds_rvqvae.process.progress import Stage
from ds_rvqvae.process.signals import ENDING
from ds_rvqvae.process.tolerance import tolerated
from ds_rvqvae.runs.heartbeat import Cause, Sign, Watch
from ds_rvqvae.runs.history import newest_text
from ds_rvqvae.runs.log import add_warnings

STOP_GRACE = 120.0
"""Seconds that ranks have to end after they are stopped, if they go on or save."""
FAILURE_PAUSE = 2.0
"""Seconds that ranks have to end by themselves after another one has failed. Then they are asked to."""
FAILURE_GRACE = 15.0
"""Seconds after the failure of a rank until the others are killed."""
KILL_PATIENCE = 30.0
"""Seconds to wait until killed processes are gone."""

_PASSED_ON = {ExitStatus.BAD_INPUT, ExitStatus.CARD_NOT_IDLE, ExitStatus.NO_DRIVER}


@dataclass(frozen=True)
class Job:
    """One start of the deepspeed launcher."""

    command: Sequence[str]
    environment: Mapping[str, str]
    watch: Watch | None = None
    """The watch over the ranks' heartbeats; None if they run on other machines."""
    stdout: int | None = None
    """The file descriptor that it prints to; None for our own."""
    stderr: int | None = None
    log: Path | None = None
    """The run's log, which gets the reason of a failure."""


@dataclass
class Signals:
    """The signals that this process got."""

    stops: list[int] = field(default_factory=list)
    """SIGINT, SIGTERM, SIGHUP, in the order of arrival."""
    save: bool = False
    """Whether SIGUSR1 came and has not been passed on yet."""

    def insist(self) -> bool:
        """Returns whether a second SIGINT asks to kill the ranks."""
        return self.stops.count(signal.SIGINT) > 1


class Ending(NamedTuple):
    """How a job ended."""

    status: ExitStatus
    by_ranks: bool = False
    """Whether the ranks failed by themselves, and were not killed or hung."""
    step: int = 0
    """The last step that a rank is known to have finished."""
    cause: Cause = Cause.OTHER
    """Why the ranks failed by themselves."""


def supervise(job: Job, signals: Signals, stop_grace: float = STOP_GRACE) -> Ending:
    """Runs a job to its end, within `signals_noted`, and prints one line about the reason if the ranks have not printed
    it.

    SIGINT, SIGTERM and SIGHUP, to this process, to a rank of this machine or to deepspeed's two processes above the
    ranks, stop the ranks, which have `stop_grace` seconds to save; a second SIGINT to this process kills them. SIGUSR1
    is passed on to the ranks. Ranks that are blocked when they shall stop end the job sooner, as failed. If one rank
    ends, the others have `FAILURE_GRACE` seconds, whatever deepspeed's processes wait for. A rank that hangs ends the
    job. If one of deepspeed's processes died, the ranks have `stop_grace` seconds to save, but the job still counts as
    failed. When this returns, no process of the job is left.
    """
    stuck = None
    runner = subprocess.Popen(
        job.command,
        env=dict(job.environment),
        stdin=subprocess.DEVNULL,
        stdout=job.stdout,
        stderr=job.stderr,
        start_new_session=True,
        preexec_fn=below(os.getpid(), holds_back=job.watch is not None),
    )
    # Shown until a rank has finished its imports and prints itself.
    starting = Stage("starting the ranks, which import torch and DeepSpeed", shown=job.watch is not None, quiet=True)
    try:
        stuck = _wait(runner, job, signals, stop_grace, starting)
        if stuck:
            _tell_failure(job, stuck)
        code, said = runner.poll(), job.watch.ended() if job.watch else None
        # If one of deepspeed's processes was killed, the runner ends with 0 or by the signal, and ranks that then save
        # end with 75: that is a failure too.
        if code is None or (code > 0 and said is not None):
            code = said
    finally:
        starting.end()
        _end_session(runner, job.watch, signals, stop_grace)
    step = job.watch.step if job.watch else 0
    if stuck:
        return Ending(ExitStatus.FAILED, step=step)
    ending = _ending(code, stopped=bool(signals.stops), job=job)
    return ending._replace(step=step)


@contextmanager
def signals_noted() -> Iterator[Signals]:
    """Collects the signals that arrive, in place of their default action."""
    signals = Signals()

    def note(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            signals.save = True
        else:
            signals.stops.append(number)

    # Signals that are ignored at the start stay ignored: SIGHUP under nohup, SIGINT in a background process of a
    # script.
    ending = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    numbers = [*ending, signal.SIGUSR1]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(
    runner: subprocess.Popen[bytes], job: Job, signals: Signals, stop_grace: float, starting: Stage
) -> str | None:
    """Waits for the runner, and ends the stage of starting at the first heartbeat of a rank.

    Returns early if all ranks have ended by themselves, if one hangs or the ranks' time to stop is over (then with a
    description), after a second SIGINT, some time after one rank has ended, and if they shall stop but none has
    started.
    """
    watch = job.watch
    begun, above_ranks, ended = False, AboveRanks(runner), _OneEnded(runner, watch)
    asked: float | None = None
    while True:
        if watch and not begun and (begun := watch.begun()):
            starting.end()
        # Checked first, so that ranks which end together with the runner are seen.
        stuck = watch.look() if watch else None
        with suppress(subprocess.TimeoutExpired):
            runner.wait(timeout=0.2)
            return None
        if watch and watch.ended() is not None and above_ranks.live():
            watch.look()  # reads their last steps
            return None  # deepspeed's processes would take seconds to pass on the result
        if signals.save:
            signals.save = False
            ask_to_save(runner)
        if watch and not signals.stops and above_ranks.were_signalled():
            signals.stops.append(signal.SIGTERM)  # as if this process had got it
        if ended.is_over():
            return None
        if not signals.stops:
            if stuck and not ended.seen():  # what that rank itself has said is the reason
                return stuck
            continue
        if asked is None:
            asked = time.monotonic()
            # The ranks first, because printing the message may fail.
            if not stop_ranks(runner, watch) and watch and not watch.begun():
                return None
            starting.end()
            say("stopping the ranks; Ctrl-C once more kills them")
        if signals.insist():
            say("killing the ranks")
            return None
        waited = time.monotonic() - asked
        if waited > stop_grace or (watch and watch.blocked(asked)):
            newest = f"; {newest_text(job.log.parent)}" if job.log is not None else ""
            return f"the ranks did not end within {waited:.0f} s after they were asked to stop, and are killed{newest}"


class _OneEnded:
    """Ends the other ranks after one has ended, which they would wait for."""

    def __init__(self, runner: subprocess.Popen[bytes], watch: Watch | None) -> None:
        self._runner, self._watch = runner, watch
        self._since: float | None = None
        self._told = False

    def seen(self) -> bool:
        """Returns whether `is_over` has seen a rank that ended with another status than 0, or was killed."""
        return self._since is not None

    def is_over(self) -> bool:
        """Asks the other ranks to end when it is time; returns whether their time is over."""
        if self._watch is None:
            return False
        if self._since is None:
            if not self._watch.one_failed():
                return False
            self._since = time.monotonic()
        waited = time.monotonic() - self._since
        # deepspeed asks them too, but one after another, and waits 30 s for each.
        if not self._told and (waited > FAILURE_PAUSE or _stopped_first(self._watch)):
            self._told = stop_ranks(self._runner, self._watch)
        return waited > FAILURE_GRACE


def _end_session(runner: subprocess.Popen[bytes], watch: Watch | None, signals: Signals, grace: float) -> None:
    """Ends the remaining processes of the runner's session: at once if the runner still runs, else after a grace period
    in which ranks save, unless they are blocked."""
    left = session(runner.pid)
    if runner.poll() is not None and left:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        asked = time.monotonic()
        deadline = asked + grace
        while left and time.monotonic() < deadline and not signals.insist() and not (watch and watch.blocked(asked)):
            _, left = psutil.wait_procs(left, timeout=0.2)
    # Repeated, because a process may fork while its siblings are being killed.
    deadline = time.monotonic() + KILL_PATIENCE
    while (left := session(runner.pid)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        runner.poll()
        psutil.wait_procs(left, timeout=0.2)
    if left:
        say(
            "SIGKILL did not end them, they hang in a driver: process "
            f"{', '.join(str(process.pid) for process in left)}"
        )
    runner.poll()


def _tell_failure(job: Job, reason: str) -> None:
    """Prints why the training failed, and writes it into the run's log, in which no rank could."""
    line = f"training failed: {reason}"
    say(line)
    if job.log is not None:
        with tolerated(f"{job.log}: lacks the reason of the failure", warn=warn):
            add_warnings(job.log, "launcher", [line])


def _ending(code: int | None, stopped: bool, job: Job) -> Ending:
    """Returns the ending from the ranks' own reports and the runner's return code; prints one line if these say too
    little.

    Args:
        code: None if the runner did not end by itself.
    """
    watch = job.watch
    if (watch.ended() if watch else code) == 0:
        return Ending(ExitStatus.DONE)
    word = watch.last_word() if watch else None
    # The runner's code is not positive if one of deepspeed's processes was killed: that is the reason then.
    own = word.ended if word and (code is None or code > 0) else code
    if own in _PASSED_ON:
        return Ending(ExitStatus(own))
    if word and own == ExitStatus.FAILED:
        return Ending(ExitStatus.FAILED, by_ranks=True, cause=Cause(word.cause))  # it has printed why
    death = watch.first_dead() if watch else None
    killed = death is not None and (death[1] is None or death[1] < 0)
    by = -death[1] if death is not None and death[1] else _signal_in(code or 0)
    hurt = killed and by not in ENDING
    if _stopped_first(watch) and not hurt and code in (None, ExitStatus.FAILED, *(256 - number for number in ENDING)):
        code = ExitStatus.STOPPED  # the others failed because one rank was stopped
    if code == ExitStatus.FAILED and not killed:
        return Ending(ExitStatus.FAILED, by_ranks=True)  # they have printed why
    if code == ExitStatus.STOPPED or (stopped and not hurt):
        if watch is None or watch.first_to_end() != ExitStatus.STOPPED:  # else a rank has printed it, with the step
            say("stopped")
        return Ending(ExitStatus.STOPPED)
    _tell_failure(job, _explain(code, death))
    by_ranks = code is not None and code > 0 and not _signal_in(code) and not killed
    return Ending(ExitStatus.FAILED, by_ranks=by_ranks)


def _stopped_first(watch: Watch | None) -> bool:
    return watch is not None and watch.first_to_end() == ExitStatus.STOPPED


def _explain(code: int | None, death: tuple[Sign, int | None] | None) -> str:
    """Returns why a run failed, from the runner's return code and the rank that died first."""
    who = str(death[0]) if death else "a rank"
    if death and (code is None or code >= 0) and death[1] is not None:
        # deepspeed may pass on the status of a rank that failed only because this one was killed.
        code = death[1] % 256
    if code == 0:
        return "deepspeed ended before a rank reported that the run is done; one of its processes was killed"
    if code and (number := _signal_in(code)):
        reason = "; the usual reason is that the host is out of memory" if number == signal.SIGKILL else ""
        return f"{'deepspeed' if code < 0 else who} was ended by {signal.Signals(number).name}{reason}"
    if death and death[1] is None:
        return f"{who} was killed"
    return f"{who} ended with status {code}"


def _signal_in(code: int) -> int:
    """Returns the signal in the runner's return code: its own is negative, a rank's is 256 minus the number. 0:
    none."""
    number = -code if code < 0 else 256 - code
    return number if number in signal.valid_signals() else 0
