"""Locks on folders: who trains in a run, who writes a tokenizer or a store, who reads one that must not be removed."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from typing_extensions import Self


class BusyError(Exception):
    """Another process has the folder; the text says who, where that is known."""


class HeldFolder:
    """A folder that this process holds until `close`, or until it ends, of whatever.

    Attributes:
        works: False where the file system has no lock of any kind, so that nobody is kept out.
    """

    def __init__(self, handle: int | None) -> None:
        self._handle = handle
        self.works = handle is not None

    def close(self) -> None:
        """Lets go of the folder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hold_folder(folder: Path, *, wait: bool, shared: bool = False) -> HeldFolder:
    """Holds a folder that is there, against all others; leaves no file in it where the file system can do without.

    Args:
        wait: until those who hold it let go; else raises BusyError.
        shared: together with others who hold it shared, against those who want it alone.

    Raises:
        BusyError: without `wait`, where another holds it.
        OSError: the folder cannot be opened.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise BusyError(f"{folder}: another process holds it") from None
    except OSError:  # a file system without locks
        os.close(handle)
        return HeldFolder(None)
    return HeldFolder(handle)
