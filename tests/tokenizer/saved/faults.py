"""A process that is killed, or a disk that fails, at one of the system calls by which a folder is written."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ds_rvqvae.errors import UserError

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
_READS = ("os.scandir", "os.listdir")
FAULTS = ("kill", "fail", "fail from then on")
THROUGH, FAILED, KILLED, WITHOUT = 10, 1, 9, 0
"""How a process ended: done despite the fault, refused, killed, or done before it reached the fault."""


def with_fault(action: Callable[[], object], root: Path, fault: str, number: int) -> int:
    """Runs an action in a process of its own, with a fault before its call `number` about files below `root`."""
    if (process := os.fork()) == 0:
        try:
            calls = _Calls(fault, number)
            sys.addaudithook(lambda event, given: calls.audit(event, given, str(root)))
            _count_syncs(calls)
            action()
            os._exit(THROUGH if calls.count >= number else WITHOUT)
        except (OSError, UserError):
            os._exit(FAILED)
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class _Calls:
    def __init__(self, fault: str, number: int) -> None:
        self.fault, self.number, self.count = fault, number, 0

    def add(self) -> None:
        self.count += 1
        if self.count == self.number or (self.count > self.number and self.fault == "fail from then on"):
            if self.fault == "kill":
                os._exit(KILLED)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def audit(self, event: str, given: tuple[object, ...], root: str) -> None:
        if event == "open":
            event = _CHANGES[0] if given[2] & (os.O_WRONLY | os.O_RDWR) else _READS[0]
        # Killed before it reads, a process leaves what it leaves where it is killed before its next change.
        counts = event in _CHANGES or (event in _READS and self.fault != "kill")
        if counts and any(str(value).startswith(root) for value in given[:2]):
            self.add()


def _count_syncs(calls: _Calls) -> None:
    """Counts the calls that Python does not report."""
    sync = os.fsync

    def counted(handle: int) -> None:
        calls.add()
        sync(handle)

    os.fsync = counted
