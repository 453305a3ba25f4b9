"""Signals that end a run, and ranks whose launcher has died."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

import psutil
import torch
import torch.distributed as dist

from ds_rvqvae.errors import ExitStatus, say
from ds_rvqvae.process.signals import ENDING, left_to_a_thread, take_left
from ds_rvqvae.process.streams import drain_streams
from ds_rvqvae.runs.folder import RANK_LAUNCHER
from ds_rvqvae.runs.heartbeat import Heartbeat
from ds_rvqvae.runs.variables import processes_above

_SECONDS_TO_AGREE = 20.0
"""A SIGTERM may mean that another rank has died: then agreement is impossible, and SIGKILL comes after 30 s."""


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
    for it.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._mine = Wanted.NONE
        self._noted: list[Wanted] = []
        self._waiting = False
        self._value = torch.zeros(1, dtype=torch.int64)
        self._round: dist.Work | None = None
        self._limit: threading.Timer | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notes signals instead of their usual effect; an ignored signal stays ignored. Use it around `after_step`.

        It changes nothing outside the main thread, because Python sets handlers only there.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _REQUESTS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN or number not in ENDING:
                signal.signal(number, self._note)
        for left in take_left():
            self._note(left, None)
        try:
            yield
        finally:
            for number, handler in before.items():
                # A rank that has trained ends by itself, with its own exit status.
                signal.signal(number, signal.SIG_IGN if handler is left_to_a_thread else handler)

    def after_step(self) -> Wanted:
        """The action that all ranks take now; every rank calls it once per step."""
        agreed = Wanted.NONE
        if self._round is not None:
            self._waiting = True
            self._round.wait()
            self._waiting = False
            agreed = Wanted(int(self._value))
        if agreed is Wanted.STOP and self._limit is not None:
            self._limit.cancel()
        if agreed >= self._mine:
            self._mine = Wanted.NONE
        while self._noted:
            self._mine = max(self._mine, self._noted.pop())
        self._value.fill_(self._mine)
        self._round = dist.all_reduce(self._value, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def close(self) -> None:
        """Waits for the pending all-reduce and cancels the timer. Every rank calls it."""
        if self._round is not None:
            self._round.wait()
        if self._limit is not None:
            self._limit.cancel()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        request = _REQUESTS[signal.Signals(number)]
        self._noted.append(request)
        if request is Wanted.STOP and self._limit is None:
            self._start_limit()

    def _start_limit(self) -> None:
        self._limit = threading.Timer(_SECONDS_TO_AGREE, self._give_up_waiting)
        self._limit.daemon = True
        self._limit.start()

    def _give_up_waiting(self) -> None:
        # An evaluation or a save may take longer than the limit; waiting for a dead rank must not.
        if self._waiting:
            _give_up()
        self._start_limit()


def _give_up() -> None:
    end_unsaved("asked to stop, but the other ranks do not answer")


def end_unsaved(reason: str) -> None:
    """Ends this process at once, with status 70."""
    logging.getLogger("ds_rvqvae").error("%s: ended without saving", reason)
    say(f"error: {reason}: ended without saving")
    Heartbeat.end(ExitStatus.FAILED)
    drain_streams()
    os._exit(ExitStatus.FAILED)


_SECONDS_BETWEEN_LOOKS = 1.0
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
