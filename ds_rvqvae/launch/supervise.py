"""Runs the deepspeed launcher, passes signals on, leaves no process behind and says how the run ended.

DeepSpeed's own launcher does not: a SIGTERM to it leaves its ranks running, and it exits 0 when its child was killed.
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
from ds_rvqvae.process.progress import Stage
from ds_rvqvae.process.signals import ENDING, HARMLESS, held_back, hold_back_signals
from ds_rvqvae.runs.folder import RANK_LAUNCHER
from ds_rvqvae.runs.heartbeat import Sign, Watch

STOP_GRACE = 120.0
"""Seconds that ranks have to end, once stopped."""
KILL_PATIENCE = 30.0
"""Seconds to wait for killed processes to go."""

_PASSED_ON = {ExitStatus.BAD_INPUT, ExitStatus.CARD_NOT_IDLE, ExitStatus.NO_DRIVER}
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One start of the deepspeed launcher."""

    command: Sequence[str]
    environment: Mapping[str, str]
    watch: Watch | None = None
    """Over the ranks' signs of life; None where they run on other machines."""
    stdout: int | None = None
    """The number of what it prints to; None for our own."""
    stderr: int | None = None


@dataclass
class Signals:
    """Which signals this process got."""

    stops: list[int] = field(default_factory=list)
    """SIGINT, SIGTERM, SIGHUP, in the order of arrival."""
    save: bool = False
    """SIGUSR1 came and has not been passed on yet."""

    def insist(self) -> bool:
        """Whether a second SIGINT asks for the ranks to be killed."""
        return self.stops.count(signal.SIGINT) > 1


class Ending(NamedTuple):
    """How a job ended."""

    status: ExitStatus
    by_ranks: bool = False
    """Whether the ranks gave up of themselves, rather than being killed or hanging."""
    step: int = 0
    """The last step that a rank is known to have finished."""


def supervise(job: Job, signals: Signals, stop_grace: float = STOP_GRACE) -> Ending:
    """Runs a job to its end, within `signals_noted`, and says in a line on stderr why where the ranks do not.

    SIGINT, SIGTERM and SIGHUP, to this process, to a rank of this machine or to deepspeed's two processes above the
    ranks, stop the ranks, which have `stop_grace` seconds to save; a second SIGINT to this process kills them. SIGUSR1
    is passed on to the ranks. A rank that is stuck ends the job. Where one of deepspeed's processes died, the ranks
    have as long to save, which makes no other ending of it.
    When this returns no process that the job started is left.
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
    # Until a rank has imported what it needs and speaks for itself.
    starting = Stage("starting the ranks, which import torch and DeepSpeed", shown=job.watch is not None, quiet=True)
    try:
        stuck = _wait(runner, job.watch, signals, stop_grace, starting)
        if stuck:
            say(f"training failed: {stuck}")
        code, said = runner.poll(), job.watch.ended() if job.watch else None
        # Where one of deepspeed's processes was killed, the runner ends with 0 or by the signal, and ranks that save
        # then end with 75: that is a failure all the same.
        if code is None or (code > 0 and said is not None):
            code = said
    finally:
        starting.end()
        _end_session(runner, signals, stop_grace)
    step = job.watch.step if job.watch else 0
    if stuck:
        return Ending(ExitStatus.FAILED, step=step)
    return _ending(-signal.SIGKILL if code is None else code, stopped=bool(signals.stops), watch=job.watch)._replace(
        step=step
    )


@contextmanager
def signals_noted() -> Iterator[Signals]:
    """Collects the signals that arrive, in place of what they do by default."""
    signals = Signals()

    def note(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            signals.save = True
        else:
            signals.stops.append(number)

    # What is ignored at the start stays so: SIGHUP under nohup, SIGINT in what a script runs in the background.
    ending = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    numbers = [*ending, signal.SIGUSR1]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _below(parent: int, holds_back: bool) -> Callable[[], None]:
    """What the child runs before `exec`: it ends when `parent` dies, even of SIGKILL.

    Args:
        holds_back: signals to it and to its child, deepspeed's other process, are left for this process to see: they
            would end by them, or pass them on and kill the ranks 30 s later.
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
    """Waits for the runner, and ends the stage of starting with the first sign of a rank.

    Returns early where all ranks have ended of themselves, where one is stuck, which it describes, where a second
    SIGINT came, where the ranks' time to stop is over, and where they are to stop and there are none yet.
    """
    deadline, told = None, False
    above_ranks = _AboveRanks(runner)
    begun = False
    while True:
        if watch and not begun and (begun := watch.begun()):
            starting.end()
        # Looked at first, so that ranks which end together with the runner are seen.
        stuck = watch.look() if watch else None
        with suppress(subprocess.TimeoutExpired):
            runner.wait(timeout=0.2)
            return None
        if watch and watch.ended() is not None and above_ranks.live():
            watch.look()  # at their last steps
            return None  # what the ranks have said, deepspeed's processes take seconds to pass on
        if signals.save:
            signals.save = False
            _ask_to_save(runner)
        if watch and not signals.stops:
            if above_ranks.were_signalled():
                signals.stops.append(signal.SIGTERM)  # as if it had come to this process
            elif not told and _stopped_first(watch):
                told = _stop_ranks(runner, watch)  # a rank was: the others would wait for it
        if not signals.stops:
            if stuck:
                return stuck
            continue
        if deadline is None:
            deadline = time.monotonic() + stop_grace
            # The ranks first: whatever becomes of the message.
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
    """deepspeed's two processes between this one and the ranks, where they hold signals back."""

    def __init__(self, runner: subprocess.Popen[bytes]) -> None:
        self._runner = psutil.Process(runner.pid)
        self._launcher: psutil.Process | None = None

    def live(self) -> bool:
        """Whether both run: neither was killed."""
        return self._launcher is not None and self._launcher.is_running() and not _is_zombie(self._launcher)

    def were_signalled(self) -> bool:
        """Whether one of them was sent a signal to stop."""
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
    """The ranks on this machine; none before they are started."""
    ranks: list[psutil.Process] = []
    with suppress(psutil.Error):
        for child in _launchers(psutil.Process(runner.pid)):
            ranks += child.children()
    return ranks


def _stop_ranks(runner: subprocess.Popen[bytes], watch: Watch | None) -> bool:
    """SIGTERM to the ranks alone: deepspeed's processes above them pass on their exit status.

    Where they are on other machines, all of the runner's process group gets it. False where none was found.
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
    """SIGUSR1 to the ranks that take it, which are those that train."""
    ranks = [rank for rank in _ranks(runner) if _catches(rank.pid, signal.SIGUSR1)]
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGUSR1)
    say("asking the ranks to save" if ranks else "SIGUSR1: no rank on this machine is training, nothing to save")


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _end_session(runner: subprocess.Popen[bytes], signals: Signals, grace: float) -> None:
    """Ends what is left of the runner's session: at once where the runner still runs, else after a grace, in which
    ranks save."""
    left = _session(runner.pid)
    if runner.poll() is not None and left:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        deadline = time.monotonic() + grace
        while left and time.monotonic() < deadline and not signals.insist():
            _, left = psutil.wait_procs(left, timeout=0.2)
    # In rounds, because a process may fork while its siblings are being killed.
    deadline = time.monotonic() + KILL_PATIENCE
    while (left := _session(runner.pid)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        runner.poll()
        psutil.wait_procs(left, timeout=0.2)
    if left:
        say(f"not ended by SIGKILL, hung in a driver: process {', '.join(str(process.pid) for process in left)}")
    runner.poll()


def _session(leader: int) -> list[psutil.Process]:
    """Running processes of the session that `leader` started."""
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(pid) == leader:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def _ending(code: int, stopped: bool, watch: Watch | None) -> Ending:
    """What the ranks' own words and the runner's return code amount to, with a line on stderr where they say little."""
    if (watch.ended() if watch else code) == 0:
        return Ending(ExitStatus.DONE)
    if code in _PASSED_ON:
        return Ending(ExitStatus(code))
    if (code == ExitStatus.FAILED or _signal_in(code) in ENDING) and code > 0 and _stopped_first(watch):
        code = ExitStatus.STOPPED  # the others failed for want of the rank that was stopped
    death = watch.first_dead() if watch else None
    killed = death is not None and (death[1] is None or death[1] < 0)
    if code == ExitStatus.FAILED and (stopped or not killed):
        return Ending(ExitStatus.FAILED, by_ranks=True)  # and they have said why
    if stopped or code == ExitStatus.STOPPED:
        if watch is None or watch.first_to_end() != ExitStatus.STOPPED:  # else a rank has said so, and at which step
            say("stopped")
        return Ending(ExitStatus.STOPPED)
    say(f"training failed: {_explain(code, death)}")
    return Ending(ExitStatus.FAILED, by_ranks=code > 0 and not _signal_in(code) and not killed)


def _stopped_first(watch: Watch | None) -> bool:
    return watch is not None and watch.first_to_end() == ExitStatus.STOPPED


def _explain(code: int, death: tuple[Sign, int | None] | None) -> str:
    """Why a run failed, by the runner's return code and the rank that died first."""
    who = str(death[0]) if death else "a rank"
    if death and code >= 0 and death[1] is not None:
        # A rank that failed because this one was killed may be the one whose status deepspeed passes on.
        code = death[1] % 256
    if code == 0:
        return "deepspeed ended without a rank saying that the run is done; one of its processes was killed"
    if number := _signal_in(code):
        reason = "; out of memory is the usual reason" if number == signal.SIGKILL else ""
        return f"{'deepspeed' if code < 0 else who} was ended by {signal.Signals(number).name}{reason}"
    if death and death[1] is None:
        return f"{who} was killed"
    return f"{who} ended with status {code}"


def _signal_in(code: int) -> int:
    """The signal in the runner's return code: its own is negative, a rank's comes as 256 less the number. 0: none."""
    number = -code if code < 0 else 256 - code
    return number if number in signal.valid_signals() else 0
