"""Run the deepspeed launcher, pass signals on, leave no process behind and report how the run ended.

DeepSpeed's own launcher does not do this: after a SIGTERM its ranks run on, and it exits with 0 when its child was
killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

from ds_rvqvae.errors import ExitStatus, say
from ds_rvqvae.launch.hosts import warn
from ds_rvqvae.process.progress import Stage
from ds_rvqvae.process.signals import ENDING, HARMLESS, held_back, hold_back_signals
from ds_rvqvae.process.tolerance import tolerated
from ds_rvqvae.runs.folder import RANK_LAUNCHER
from ds_rvqvae.runs.heartbeat import Sign, Watch
from ds_rvqvae.runs.log import add_warnings

STOP_GRACE = 120.0
"""Seconds that ranks have to end after they are stopped."""
KILL_PATIENCE = 30.0
"""Seconds to wait until killed processes are gone."""

_PASSED_ON = {ExitStatus.BAD_INPUT, ExitStatus.CARD_NOT_IDLE, ExitStatus.NO_DRIVER}
_PR_SET_PDEATHSIG = 1


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


def supervise(job: Job, signals: Signals, stop_grace: float = STOP_GRACE) -> Ending:
    """Runs a job to its end, within `signals_noted`, and prints one line about the reason if the ranks have not printed
    it.

    SIGINT, SIGTERM and SIGHUP, to this process, to a rank of this machine or to deepspeed's two processes above the
    ranks, stop the ranks, which have `stop_grace` seconds to save; a second SIGINT to this process kills them. SIGUSR1
    is passed on to the ranks. A rank that hangs ends the job. If one of deepspeed's processes died, the ranks have the
    same time to save, but the job still counts as failed. When this returns, no process of the job is left.
    """
    stuck = None
    runner = subprocess.Popen(
        job.command,
        env=dict(job.environment),
        stdin=subprocess.DEVNULL,
        stdout=job.stdout,
        stderr=job.stderr,
        start_new_session=True,
        preexec_fn=_below(os.getpid(), holds_back=job.watch is not None),
    )
    # Shown until a rank has finished its imports and prints itself.
    starting = Stage("starting the ranks, which import torch and DeepSpeed", shown=job.watch is not None, quiet=True)
    try:
        stuck = _wait(runner, job.watch, signals, stop_grace, starting)
        if stuck:
            _tell_failure(job, stuck)
        code, said = runner.poll(), job.watch.ended() if job.watch else None
        # If one of deepspeed's processes was killed, the runner ends with 0 or by the signal, and ranks that then save
        # end with 75: that is a failure too.
        if code is None or (code > 0 and said is not None):
            code = said
    finally:
        starting.end()
        _end_session(runner, signals, stop_grace)
    step = job.watch.step if job.watch else 0
    if stuck:
        return Ending(ExitStatus.FAILED, step=step)
    ending = _ending(-signal.SIGKILL if code is None else code, stopped=bool(signals.stops), job=job)
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


def _below(parent: int, holds_back: bool) -> Callable[[], None]:
    """Returns the function that the child runs before `exec`, so that it ends when `parent` dies, even by SIGKILL.

    Args:
        holds_back: whether signals to it and to its child, deepspeed's other process, stay pending, so that this
            process sees them. Else these processes would end, or pass the signals on and kill the ranks 30 s later.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None

    def prepare() -> None:
        for number in HARMLESS:
            signal.signal(number, signal.SIG_IGN)
        if libc is None:
            return
        if holds_back:
            hold_back_signals()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if holds_back else signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(ExitStatus.FAILED)

    return prepare


def _wait(
    runner: subprocess.Popen[bytes], watch: Watch | None, signals: Signals, stop_grace: float, starting: Stage
) -> str | None:
    """Waits for the runner, and ends the stage of starting at the first heartbeat of a rank.

    Returns early if all ranks have ended by themselves, if one hangs (then with a description), after a second SIGINT,
    when the ranks' time to stop is over, and if they shall stop but none has started.
    """
    deadline, told = None, False
    above_ranks = _AboveRanks(runner)
    begun = False
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
            _ask_to_save(runner)
        if watch and not signals.stops:
            if above_ranks.were_signalled():
                signals.stops.append(signal.SIGTERM)  # as if this process had got it
            elif not told and _stopped_first(watch):
                told = _stop_ranks(runner, watch)  # a rank was stopped, and the others would wait for it
        if not signals.stops:
            if stuck:
                return stuck
            continue
        if deadline is None:
            deadline = time.monotonic() + stop_grace
            # The ranks first, because printing the message may fail.
            if not _stop_ranks(runner, watch) and watch and not watch.begun():
                return None
            starting.end()
            say("stopping the ranks; Ctrl-C once more kills them")
        if signals.insist():
            say("killing the ranks")
            return None
        if time.monotonic() > deadline:
            say(f"the ranks did not end within {stop_grace:.0f} s and are killed")
            return None


class _AboveRanks:
    """deepspeed's two processes between this one and the ranks, if they block signals."""

    def __init__(self, runner: subprocess.Popen[bytes]) -> None:
        self._runner = psutil.Process(runner.pid)
        self._launcher: psutil.Process | None = None

    def live(self) -> bool:
        """Returns whether both run, so that neither was killed."""
        return self._launcher is not None and self._launcher.is_running() and not _is_zombie(self._launcher)

    def were_signalled(self) -> bool:
        """Returns whether a signal to stop was sent to one of them."""
        if self._launcher is None:
            self._launcher = next(iter(_launchers(self._runner)), None)
        return any(held_back(process.pid) for process in (self._runner, self._launcher) if process is not None)


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _launchers(runner: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return [child for child in runner.children() if RANK_LAUNCHER in child.cmdline()]
    return []


def _ranks(runner: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Returns the ranks on this machine; none before they are started."""
    ranks: list[psutil.Process] = []
    with suppress(psutil.Error):
        for child in _launchers(psutil.Process(runner.pid)):
            ranks += child.children()
    return ranks


def _stop_ranks(runner: subprocess.Popen[bytes], watch: Watch | None) -> bool:
    """Sends SIGTERM to the ranks only: deepspeed's processes above them pass on their exit status.

    If they are on other machines, the runner's complete process group gets it. Returns False if no rank was found.
    """
    if watch is None:
        with suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGTERM)
        return True
    ranks = {*_ranks(runner), *watch.running()}
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.terminate()
    return bool(ranks)


def _ask_to_save(runner: subprocess.Popen[bytes]) -> None:
    """Sends SIGUSR1 to the ranks with a handler for it, which are those that train."""
    ranks = [rank for rank in _ranks(runner) if _catches(rank.pid, signal.SIGUSR1)]
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGUSR1)
    say("asking the ranks to save" if ranks else "SIGUSR1: no rank on this machine is training, nothing to save")


def _catches(pid: int, number: int) -> bool:
    """Returns whether a process has a handler for a signal."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _end_session(runner: subprocess.Popen[bytes], signals: Signals, grace: float) -> None:
    """Ends the remaining processes of the runner's session: at once if the runner still runs, else after a grace period
    in which ranks save."""
    left = _session(runner.pid)
    if runner.poll() is not None and left:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        deadline = time.monotonic() + grace
        while left and time.monotonic() < deadline and not signals.insist():
            _, left = psutil.wait_procs(left, timeout=0.2)
    # Repeated, because a process may fork while its siblings are being killed.
    deadline = time.monotonic() + KILL_PATIENCE
    while (left := _session(runner.pid)) and time.monotonic() < deadline:
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


def _session(leader: int) -> list[psutil.Process]:
    """Returns running processes of the session that `leader` started."""
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(pid) == leader:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def _tell_failure(job: Job, reason: str) -> None:
    """Prints why the training failed, and writes it into the run's log, in which no rank could."""
    line = f"training failed: {reason}"
    say(line)
    if job.log is not None:
        with tolerated(f"{job.log}: lacks the reason of the failure", warn=warn):
            add_warnings(job.log, "launcher", [line])


def _ending(code: int, stopped: bool, job: Job) -> Ending:
    """Returns the ending from the ranks' own reports and the runner's return code; prints one line if these say too
    little."""
    watch = job.watch
    if (watch.ended() if watch else code) == 0:
        return Ending(ExitStatus.DONE)
    if code in _PASSED_ON:
        return Ending(ExitStatus(code))
    if (code == ExitStatus.FAILED or _signal_in(code) in ENDING) and code > 0 and _stopped_first(watch):
        code = ExitStatus.STOPPED  # the others failed because one rank was stopped
    death = watch.first_dead() if watch else None
    killed = death is not None and (death[1] is None or death[1] < 0)
    if code == ExitStatus.FAILED and (stopped or not killed):
        return Ending(ExitStatus.FAILED, by_ranks=True)  # they have printed why
    if stopped or code == ExitStatus.STOPPED:
        if watch is None or watch.first_to_end() != ExitStatus.STOPPED:  # else a rank has printed it, with the step
            say("stopped")
        return Ending(ExitStatus.STOPPED)
    _tell_failure(job, _explain(code, death))
    return Ending(ExitStatus.FAILED, by_ranks=code > 0 and not _signal_in(code) and not killed)


def _stopped_first(watch: Watch | None) -> bool:
    return watch is not None and watch.first_to_end() == ExitStatus.STOPPED


def _explain(code: int, death: tuple[Sign, int | None] | None) -> str:
    """Returns why a run failed, from the runner's return code and the rank that died first."""
    who = str(death[0]) if death else "a rank"
    if death and code >= 0 and death[1] is not None:
        # deepspeed may pass on the status of a rank that failed only because this one was killed.
        code = death[1] % 256
    if code == 0:
        return "deepspeed ended before a rank reported that the run is done; one of its processes was killed"
    if number := _signal_in(code):
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
