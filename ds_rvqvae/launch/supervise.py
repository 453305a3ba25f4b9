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
from ds_rvqvae.runs.folder import DONE, RANK_LAUNCHER
from ds_rvqvae.runs.heartbeat import Sign, Watch

STOP_GRACE = 120.0
"""Seconds that ranks have to end, once stopped."""
END_GRACE = 10.0
"""Seconds that processes have which outlived the launcher."""
KILL_PATIENCE = 30.0
"""Seconds to wait for killed processes to go."""

_PASSED_ON = {ExitStatus.BAD_INPUT, ExitStatus.CARD_NOT_IDLE, ExitStatus.NO_DRIVER}
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One start of the deepspeed launcher."""

    command: Sequence[str]
    environment: Mapping[str, str]
    outcome: Path | None
    """The file that holds `DONE` after a run that ended well; None where rank 0 is on another machine."""
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


def supervise(job: Job, signals: Signals, stop_grace: float = STOP_GRACE, end_grace: float = END_GRACE) -> Ending:
    """Runs a job to its end, within `signals_noted`, and says in a line on stderr why where the ranks do not.

    SIGINT, SIGTERM and SIGHUP stop the ranks, which have `stop_grace` seconds to save; a second SIGINT kills them.
    SIGUSR1 is passed on to the ranks. A rank that is stuck ends the job.
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
        preexec_fn=_ending_with(os.getpid()),
    )
    try:
        stuck = _wait(runner, job.watch, signals, stop_grace)
        if stuck:
            say(f"training failed: {stuck}")
    finally:
        _end_session(runner, signals, end_grace)
    step = job.watch.step if job.watch else 0
    if stuck:
        return Ending(ExitStatus.FAILED, step=step)
    done = job.outcome is None or (job.outcome.is_file() and job.outcome.read_text() == DONE)
    code = -signal.SIGKILL if runner.returncode is None else runner.returncode
    return _ending(code, done, stopped=bool(signals.stops), watch=job.watch)._replace(step=step)


@contextmanager
def signals_noted() -> Iterator[Signals]:
    """Collects the signals that arrive, in place of what they do by default."""
    signals = Signals()

    def note(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            signals.save = True
        else:
            signals.stops.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup, and to stay so
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending_with(parent: int) -> Callable[[], None] | None:
    """What the child runs before `exec`: it gets SIGTERM when `parent` dies, even of SIGKILL."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(ExitStatus.FAILED)

    return prepare


def _wait(runner: subprocess.Popen[bytes], watch: Watch | None, signals: Signals, stop_grace: float) -> str | None:
    """Waits for the runner.

    Returns early where a rank is stuck, which it describes, where a second SIGINT came, and where the ranks' time to
    stop is over.
    """
    deadline = None
    while True:
        # Looked at first, so that ranks which end together with the runner are seen.
        stuck = watch.look() if watch else None
        with suppress(subprocess.TimeoutExpired):
            runner.wait(timeout=0.2)
            return None
        if signals.save:
            signals.save = False
            _ask_to_save(runner)
        if not signals.stops:
            if stuck:
                return stuck
            continue
        if deadline is None:
            deadline = time.monotonic() + stop_grace
            say("stopping the ranks; Ctrl-C once more kills them")
            _stop_ranks(runner)
        if signals.insist():
            say("killing the ranks")
            return None
        if time.monotonic() > deadline:
            say(f"the ranks did not end within {stop_grace:.0f} s and are killed")
            return None


def _ranks(runner: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The ranks on this machine; none before they are started."""
    ranks: list[psutil.Process] = []
    with suppress(psutil.Error):
        for child in psutil.Process(runner.pid).children():
            if RANK_LAUNCHER in child.cmdline():
                ranks += child.children()
    return ranks


def _stop_ranks(runner: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the ranks alone: deepspeed's processes above them pass on their exit status.

    Where there are none yet, or they are on other machines, all of the runner's process group gets it.
    """
    ranks = _ranks(runner)
    if not ranks:
        with suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGTERM)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.terminate()


def _ask_to_save(runner: subprocess.Popen[bytes]) -> None:
    """SIGUSR1 to the ranks that take it; one that is still importing would die of it."""
    ranks = [rank for rank in _ranks(runner) if _catches(rank.pid, signal.SIGUSR1)]
    say("asking the ranks to save" if ranks else "SIGUSR1: no rank on this machine is training yet, nothing to save")
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGUSR1)


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _end_session(runner: subprocess.Popen[bytes], signals: Signals, end_grace: float) -> None:
    """Ends what is left of the runner's session: at once where the runner still runs, else after a grace."""
    left = _session(runner.pid)
    if runner.poll() is not None and left:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        deadline = time.monotonic() + end_grace
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


def _ending(code: int, done: bool, stopped: bool, watch: Watch | None) -> Ending:
    """What the runner's return code amounts to, with a line on stderr where the code itself says little."""
    if code == 0 and done:
        return Ending(ExitStatus.DONE)
    if code in _PASSED_ON:
        return Ending(ExitStatus(code))
    death = watch.first_dead() if watch else None
    killed = death is not None and (death[1] is None or death[1] < 0)
    if code == ExitStatus.FAILED and (stopped or not killed):
        return Ending(ExitStatus.FAILED, by_ranks=True)  # and they have said why
    if stopped or code == ExitStatus.STOPPED:
        say("stopped; the same command with --resume goes on from the newest checkpoint")
        return Ending(ExitStatus.STOPPED)
    say(f"training failed: {_explain(code, death)}")
    return Ending(ExitStatus.FAILED, by_ranks=code > 0 and not _signal_in(code) and not killed)


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
