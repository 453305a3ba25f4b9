"""Standard streams that may be closed, full, read by nobody, or of another encoding: none of it ends a process."""

import atexit
import io
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

MOST_WAITING = 1 << 20
"""Characters that wait for a reader; what comes beyond them is dropped."""
LAST_WAIT = 2.0
"""Seconds that a process which ends waits for a reader of its last messages."""


def open_standard_streams() -> None:
    """Opens the null device in place of standard streams that are closed.

    Else the next files that are opened would take their numbers, and get what is printed. To be called first.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123


class QueuedStream(io.TextIOBase):
    """A stream whose `write` neither waits nor raises: a thread writes what is queued.

    What cannot be written is dropped: where nobody reads any more, where the disk is full, and what goes beyond
    `MOST_WAITING` while nobody reads. Characters that the stream's encoding has not become `?`.

    Args:
        stream: with a file's number.
    """

    def __init__(self, stream: TextIO) -> None:
        self._handle, self._is_terminal = stream.fileno(), stream.isatty()
        self._encoding = stream.encoding or "utf-8"
        self._texts: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # a signal's handler may interrupt a put by one
        self._queued = self._taken = 0
        self._lock = threading.RLock()  # as above
        self._writer: threading.Thread | None = None
        self.lost: OSError | None = None
        """Why something was dropped last; None while all could be written."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def fileno(self) -> int:
        return self._handle

    def isatty(self) -> bool:
        return self._is_terminal

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        content = text.encode(self._encoding, "replace")
        with self._lock:
            if content and self._queued - self._taken < MOST_WAITING:
                self._queued += len(content)
                self._texts.put(content)
                if self._writer is None or not self._writer.is_alive():  # a child that was forked has no threads
                    self._writer = threading.Thread(target=self._write_on, name="messages", daemon=True)
                    self._writer.start()
        return len(text)

    def flush(self) -> None:
        """Nothing: a training step must not wait for a terminal. `drain` waits."""

    def drain(self, seconds: float = LAST_WAIT) -> None:
        """Waits until all is written, but no longer than that."""
        deadline = time.monotonic() + seconds
        while self._taken < self._queued and time.monotonic() < deadline:
            time.sleep(0.002)

    def _write_on(self) -> None:
        while True:
            content = self._texts.get()
            try:
                write_all(self._handle, content)
            except OSError as error:
                self.lost = error
            self._taken += len(content)


def write_all(handle: int, content: bytes) -> None:
    while content:
        try:
            content = content[os.write(handle, content) :]
        except BlockingIOError:  # somebody who shares the terminal made it so
            select.select([], [handle], [], 1.0)


@contextmanager
def queued_streams(*names: str) -> Iterator[None]:
    """Puts a `QueuedStream` in the place of `sys.stdout` or `sys.stderr`, by name; waits for their last messages.

    Streams that a program has put there itself stay.
    """
    before = {}
    for name in names:
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            with suppress(OSError, ValueError):
                stream.flush()
            before[name] = stream
            setattr(sys, name, QueuedStream(stream))
    try:
        yield
    finally:
        drain_streams()
        for name, stream in before.items():
            setattr(sys, name, stream)


def drain_streams(seconds: float = LAST_WAIT) -> None:
    """Waits, no longer than that, until what was printed is written; to be called before `os._exit`."""
    deadline = time.monotonic() + seconds
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, QueuedStream):
            stream.drain(deadline - time.monotonic())
        elif stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()


atexit.register(drain_streams)
