"""Signals that end a run, and ranks whose launcher has died."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType

import psutil
import torch
import torch.distributed as dist

from ds_rvqvae.errors import ExitStatus, say
from ds_rvqvae.process.signals import ENDING, heard_in_thread, left_to_a_thread, take_left
from ds_rvqvae.process.streams import drain_streams
from ds_rvqvae.runs.folder import RANK_LAUNCHER, unlock_runs
from ds_rvqvae.runs.heartbeat import Cause, Heartbeat
from ds_rvqvae.runs.history import newest_text
from ds_rvqvae.runs.variables import processes_above

_SECONDS_AFTER_ANOTHER = 5.0
"""Seconds that a rank which was asked to stop has to end by itself, after another rank has ended."""
_SECONDS_BETWEEN_LOOKS = 1.0


class Wanted(IntEnum):
    """The action that the ranks agreed on after a step; the larger one wins."""

    NONE = 0
    SAVE = 1
    STOP = 2


_REQUESTS = {**dict.fromkeys(ENDING, Wanted.STOP), signal.SIGUSR1: Wanted.SAVE}


class Agreement:
    """Notes SIGTERM, SIGINT, SIGHUP (save and stop) and SIGUSR1 (save and continue) while `listening`, and agrees on
    them with the other ranks.

    Each step starts an all-reduce (maximum) on the host and takes the result of the previous one, so that no step waits
    for it. If the ranks cannot agree, because they wait inside a library for a rank that does not go on, a thread hears
    the signal and ends this process.

    Args:
        heartbeat: tells whether this rank goes on; without it, it is never ended for being blocked.
        run_folder: the run's folder.
    """

    def __init__(self, heartbeat: Heartbeat | None = None, run_folder: Path | None = None) -> None:
        self._heartbeat, self._run_folder = heartbeat, run_folder
        self._group = dist.new_group(backend="gloo")
        self._mine = Wanted.NONE
        self._noted: list[Wanted] = []
        self._value = torch.zeros(1, dtype=torch.int64)
        self._round: dist.Work | None = None
        self._agreed_to_stop = False
        self._is_over = threading.Event()
        self._asked_once = threading.Lock()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notes signals instead of their usual effect; an ignored signal stays ignored. Use it around `after_step`.

        It changes nothing outside the main thread, because Python sets handlers only there.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _REQUESTS}
        with heard_in_thread(self._hear):
            for number, handler in before.items():
                if handler is not signal.SIG_IGN or number not in ENDING:
                    signal.signal(number, self._note)
            for left in take_left():
                self._note(left, None)
                self._hear(left)
            try:
                yield
            finally:
                self._is_over.set()
                for number, handler in before.items():
                    # A rank that has trained ends by itself, with its own exit status.
                    signal.signal(number, signal.SIG_IGN if handler is left_to_a_thread else handler)

    def after_step(self) -> Wanted:
        """The action that all ranks take now; every rank calls it once per step."""
        agreed = Wanted.NONE
        if self._round is not None:
            self._round.wait()
            agreed = Wanted(int(self._value))
        self._agreed_to_stop |= agreed is Wanted.STOP
        if agreed >= self._mine:
            self._mine = Wanted.NONE
        while self._noted:
            self._mine = max(self._mine, self._noted.pop())
        self._value.fill_(self._mine)
        self._round = dist.all_reduce(self._value, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def close(self) -> None:
        """Waits for the pending all-reduce. Every rank calls it."""
        if self._round is not None:
            self._round.wait()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.append(_REQUESTS[signal.Signals(number)])

    def _hear(self, number: int) -> None:
        asks_to_stop = number in ENDING and signal.getsignal(number) == self._note
        if asks_to_stop and self._heartbeat is not None and self._asked_once.acquire(blocking=False):
            arguments = (signal.Signals(number).name, self._heartbeat)
            threading.Thread(target=self._see_to_stop, args=arguments, name="stopping", daemon=True).start()

    def _see_to_stop(self, name: str, heartbeat: Heartbeat) -> None:
        """Ends this process if it cannot stop by itself after the signal of this name: another rank has ended, or this
        one is blocked."""
        since = time.monotonic()
        alone_since: float | None = None
        while not self._is_over.wait(_SECONDS_BETWEEN_LOOKS):
            ended = Heartbeat.ended_before()
            # Ranks that have agreed to stop end a moment after one another.
            if ended and not (ended == ExitStatus.STOPPED and self._agreed_to_stop):
                alone_since = alone_since or time.monotonic()
                if time.monotonic() - alone_since > _SECONDS_AFTER_ANOTHER:
                    end_unsaved("another rank has ended", Cause.FOLLOWED)
            elif not self._agreed_to_stop and heartbeat.is_blocked(since):
                if not heartbeat.has_stepped():
                    if dist.get_rank() == 0:
                        say(f"stopped by {name} before this start's first step; nothing is lost")
                    _end(ExitStatus.STOPPED)
                reason = (
                    f"{name} asked to stop, but no step was finished for {time.monotonic() - since:.0f} s, as ranks "
                    "wait for one that does not go on"
                )
                newest = f"; {newest_text(self._run_folder)}" if self._run_folder is not None else ""
                end_unsaved(reason, Cause.BLOCKED, newest)


def end_unsaved(reason: str, cause: Cause = Cause.OTHER, more: str = "") -> None:
    """Ends this process at once, with status 70. The reason is printed, unless another rank of this machine has ended
    before.

    Args:
        more: the end of the line.
    """
    line = f"{reason}: ended without saving{more}"
    logging.getLogger("ds_rvqvae").error("%s", line)
    if Heartbeat.fail(cause):
        say(f"error: {line}")
    _end(ExitStatus.FAILED)


def _end(status: ExitStatus) -> None:
    status = ExitStatus(Heartbeat.end(status))
    unlock_runs()
    drain_streams()
    os._exit(status)


_SECONDS_TO_SAVE = 120.0
"""Time for a rank whose launcher died."""


def launchers_above() -> list[psutil.Process] | None:
    """deepspeed's `launch.py` and the runner above it, if this process is a rank of theirs; None if one has died.

    A `launch.py` whose parent is the system's first process, or a substitute for it, has lost its own parent.
    """
    parents = processes_above()
    if not parents:  # a container's first process, or a hidden parent of another user, which deepspeed's never is
        return None if "CROSS_RANK" in os.environ else []
    if RANK_LAUNCHER not in _command_line(parents[0]):
        return []
    if len(parents) < 2 or _adopts(parents[1]):
        return None
    return parents[:2]


def _adopts(process: psutil.Process) -> bool:
    """Whether a process adopts processes whose parent died, and did not start them itself."""
    line = _command_line(process)
    return (process.pid == 1 or "systemd" in line) and "deepspeed" not in line


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
    except psutil.AccessDenied:
        return "deepspeed, or any other process of another user"


def stop_with_launcher() -> None:
    """Starts a thread that stops this rank, as SIGTERM does, if one of its launchers dies."""
    launchers = launchers_above()
    if launchers != []:
        threading.Thread(target=_watch, args=(launchers or [],), name="orphans", daemon=True).start()


def _watch(launchers: list[psutil.Process]) -> None:
    while launchers and all(_alive(process) for process in launchers):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    logging.getLogger("ds_rvqvae").error("the launcher died: this rank stops")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_SAVE)
    end_unsaved("the launcher died")


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
