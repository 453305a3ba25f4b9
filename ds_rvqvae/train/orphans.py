"""Ends a rank whose launcher has died.

Killing deepspeed's runner leaves its `launch.py` and all ranks running, so a signal on the parent's death would not
come: a rank watches the runner above its parent as well.
"""

import logging
import os
import threading
import time

import psutil

from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.heartbeat import Heartbeat
from ds_rvqvae.runs import RANK_LAUNCHER

_SECONDS_BETWEEN_LOOKS = 2.0


def launchers_above() -> list[psutil.Process] | None:
    """deepspeed's `launch.py` and the runner above it, where this process is a rank of theirs; None where one has died.

    A `launch.py` whose parent is the system's first process, or one that stands in for it, has lost its own.
    """
    parents = psutil.Process().parents()
    if not parents:
        return None
    if RANK_LAUNCHER not in _command_line(parents[0]):
        return []
    if len(parents) < 2 or _adopts(parents[1]):
        return None
    return parents[:2]


def _adopts(process: psutil.Process) -> bool:
    """Whether a process takes over those whose parent died, and did not start them itself."""
    line = _command_line(process)
    return (process.pid == 1 or "systemd" in line) and "deepspeed" not in line


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
    except psutil.AccessDenied:
        return "deepspeed, or any other of somebody else's"


def end_with_launcher() -> None:
    """Starts a thread that ends this process, with status 70, once one of its launchers has died."""
    launchers = launchers_above()
    if launchers is None:
        _end()
    elif launchers:
        threading.Thread(target=_watch, args=(launchers,), name="orphans", daemon=True).start()


def _watch(launchers: list[psutil.Process]) -> None:
    while all(_alive(process) for process in launchers):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    _end()


def _end() -> None:
    logging.getLogger("ds_rvqvae").error("the launcher died: this rank ends")
    Heartbeat.end(ExitStatus.FAILED)
    os._exit(ExitStatus.FAILED)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
