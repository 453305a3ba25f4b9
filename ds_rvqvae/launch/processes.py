"""The processes between the launcher and the ranks, and the ranks on this machine: find them and send them signals."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from ds_rvqvae.errors import ExitStatus, say
from ds_rvqvae.process.signals import HARMLESS, held_back, hold_back_signals
from ds_rvqvae.runs.folder import RANK_LAUNCHER
from ds_rvqvae.runs.heartbeat import Watch

_PR_SET_PDEATHSIG = 1


def below(parent: int, holds_back: bool) -> Callable[[], None]:
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


class AboveRanks:
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


def stop_ranks(runner: subprocess.Popen[bytes], watch: Watch | None) -> bool:
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


def ask_to_save(runner: subprocess.Popen[bytes]) -> None:
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


def session(leader: int) -> list[psutil.Process]:
    """Returns running processes of the session that `leader` started."""
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(pid) == leader:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found
