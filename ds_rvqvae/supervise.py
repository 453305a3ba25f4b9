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
from pathlib import Path
from types import FrameType

import psutil

from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.runs import DONE, RANK_LAUNCHER

STOP_GRACE = 120.0
"""Seconds that ranks have to end, once stopped."""
END_GRACE = 10.0
"""Seconds that processes have which outlived the launcher."""
KILL_PATIENCE = 30.0
"""Seconds to wait for killed processes to go."""

_PASSED_ON = {ExitStatus.BAD_INPUT, ExitStatus.CARD_NOT_IDLE, ExitStatus.NO_DRIVER, ExitStatus.FAILED}
_PR_SET_PDEATHSIG = 1


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    outcome: Path | None,
    stop_grace: float = STOP_GRACE,
    end_grace: float = END_GRACE,
) -> ExitStatus:
    """Runs `command` to its end and returns the exit status that its end amounts to.

    SIGINT, SIGTERM and SIGHUP stop the ranks, which have `stop_grace` seconds to save; a second SIGINT kills them.
    When this returns no process that `command` started is left.

    Args:
        outcome: the file that holds `DONE` after a run that ended well; None where rank 0 is on another machine.
    """
    with _signals_noted() as received:
        runner = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_ending_with(os.getpid()),
        )
        try:
            _wait(runner, received, stop_grace)
        finally:
            _end_session(runner, received, end_grace)
    done = outcome is None or (outcome.is_file() and outcome.read_text() == DONE)
    code = -signal.SIGKILL if runner.returncode is None else runner.returncode
    return _status(code, done, stopped=bool(received))


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Collects the stop signals that arrive, in place of what they do by default."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup, and to stay so
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
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


def _wait(runner: subprocess.Popen, received: list[int], stop_grace: float) -> None:
    """Waits for the runner; returns early when a second SIGINT came or the ranks' time to stop is over."""
    deadline = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            runner.wait(timeout=0.2)
            return
        if received and deadline is None:
            deadline = time.monotonic() + stop_grace
            _say("stopping the ranks; Ctrl-C once more kills them")
            _stop_ranks(runner)
        if received.count(signal.SIGINT) > 1:
            _say("killing the ranks")
            return
        if deadline is not None and time.monotonic() > deadline:
            _say(f"the ranks did not end within {stop_grace:.0f} s and are killed")
            return


def _stop_ranks(runner: subprocess.Popen) -> None:
    """SIGTERM to the ranks alone: deepspeed's processes above them pass on their exit status.

    Where there are none yet, or they are on other machines, all of the runner's process group gets it.
    """
    ranks: list[psutil.Process] = []
    with suppress(psutil.Error):
        for child in psutil.Process(runner.pid).children():
            if RANK_LAUNCHER in child.cmdline():
                ranks += child.children()
    if not ranks:
        with suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGTERM)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.terminate()


def _end_session(runner: subprocess.Popen, received: list[int], end_grace: float) -> None:
    """Ends what is left of the runner's session: at once where the runner still runs, else after a grace."""
    left = _session(runner.pid)
    if runner.poll() is not None and left:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        deadline = time.monotonic() + end_grace
        while left and time.monotonic() < deadline and received.count(signal.SIGINT) < 2:
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
        _say(f"not ended by SIGKILL, hung in a driver: process {', '.join(str(process.pid) for process in left)}")
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


def _status(code: int, done: bool, stopped: bool) -> ExitStatus:
    """The exit status for the runner's return code, with a line on stderr where the code itself says little."""
    if code == 0 and done:
        return ExitStatus.DONE
    if code in _PASSED_ON:
        return ExitStatus(code)
    if stopped or code == ExitStatus.STOPPED:
        _say("stopped; the same command with --resume goes on from the newest checkpoint")
        return ExitStatus.STOPPED
    _say(f"training failed: {_explain(code)}")
    return ExitStatus.FAILED


def _explain(code: int) -> str:
    if code == 0:
        return "deepspeed ended without a rank saying that the run is done; one of its processes was killed"
    number = -code if code < 0 else 256 - code
    if number in signal.valid_signals():
        who = "deepspeed" if code < 0 else "a rank"
        reason = "; out of memory is the usual reason" if number == signal.SIGKILL else ""
        return f"{who} was ended by {signal.Signals(number).name}{reason}"
    return f"a rank ended with status {code}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
