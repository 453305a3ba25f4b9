"""Ends a rank whose launcher has died.

Killing deepspeed's runner leaves its `launch.py` and all ranks running, so a signal on the parent's death would not
come: a rank watches the runner above its parent as well.
"""

import logging
import os
import sys
import threading
import time

import psutil

from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.heartbeat import Heartbeat
from ds_rvqvae.runs import RANK_LAUNCHER

_SECONDS_BETWEEN_LOOKS = 2.0


def launchers_above() -> list[psutil.Process]:
    """deepspeed's `launch.py` and what started it, where this process is a rank of theirs."""
    parents = psutil.Process().parents()
    if not parents or RANK_LAUNCHER not in parents[0].cmdline():
        return []
    # Process 1 adopts what the runner leaves behind; it is nobody's launcher.
    return [process for process in parents[:2] if process.pid != 1]


def end_with_launcher() -> None:
    """Starts a thread that ends this process, with status 70, once one of its launchers has died."""
    launchers = launchers_above()
    if launchers:
        threading.Thread(target=_watch, args=(launchers,), name="orphans", daemon=True).start()


def _watch(launchers: list[psutil.Process]) -> None:
    while all(_alive(process) for process in launchers):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    logging.getLogger("ds_rvqvae").error("the launcher died: this rank ends")
    sys.stderr.flush()
    Heartbeat.end(ExitStatus.FAILED)
    os._exit(ExitStatus.FAILED)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
