"""Standard streams that may be closed, full, read by nobody, or of another encoding: none of it ends a process."""

import atexit
import io
import os
import queue
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from ds_rvqvae.process.terminal import broken, emphasised, is_coloured, width_of

MOST_WAITING = 1 << 20
"""Bytes that wait for a reader; beyond them the oldest are dropped."""
LAST_WAIT = 2.0
"""Seconds that a process which ends waits for a reader of its last messages."""
_ERASE_LINE = b"\r\x1b[K"


def open_standard_streams() -> None:
    """Opens the null device in place of standard streams that are closed.

    Else the next files that are opened would take their numbers, and get what is printed; in processes that this one
    starts, too. To be called first.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free
    for handle, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            stream = open(handle, "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


class QueuedStream(io.TextIOBase):
    """A stream whose `write` neither waits nor raises: a thread writes what is queued.

    What cannot be written is dropped: where nobody reads any more, where the disk is full, and the oldest of what goes
    beyond `MOST_WAITING` while nobody reads, or more slowly: why a process ended is said last. Characters that the
    stream's encoding has not become `?`. On a terminal a message takes the line of a progress bar, which is drawn again
    below it; refusals and warnings are broken between words, and begin with a word in colour.

    Args:
        stream: with a file's number.
    """

    def __init__(self, stream: TextIO) -> None:
        self.name = {1: "standard output", 2: "standard error"}.get(stream.fileno(), stream.name)
        self._handle, self._is_terminal = stream.fileno(), stream.isatty()
        self._encoding, self._is_coloured = stream.encoding or "utf-8", is_coloured(stream)
        self._texts: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # a signal's handler may interrupt a put by one
        self._queued = self._taken = 0
        self._lock = threading.RLock()  # as above
        self._writer: threading.Thread | None = None
        self._after_bar = False
        """Whether the last line that was queued is a bar's, which begins with a carriage return."""
        self._lost: Counter[str] = Counter()
        """Bytes that were dropped, by why."""
        self.written_at = time.monotonic()
        """When something was last written to it."""

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
        if (columns := width_of(self)) is not None:
            text = broken(text, columns)
        if self._is_coloured:
            text = emphasised(text)
        content = text.encode(self._encoding, "replace")
        over_bar = self._after_bar and self._is_terminal and not content.startswith((b"\r", b"\n"))
        self.write_bytes(content, _ERASE_LINE if over_bar else b"")
        return len(text)

    def write_bytes(self, content: bytes, before: bytes = b"") -> None:
        """Queues what is encoded already."""
        if not content:
            return
        with self._lock:
            self.written_at = time.monotonic()
            line = content[content.rfind(b"\n") + 1 :]
            self._after_bar = b"\r" in line or (self._after_bar and line == content and not before)
            content = before + content
            self._queued += len(content)
            self._texts.put(content)
            while self._queued - self._taken > MOST_WAITING and self._texts.qsize() > 1:
                self._drop_oldest()
            if self._writer is None or not self._writer.is_alive():  # a child that was forked has no threads
                self._writer = threading.Thread(target=self._write_on, name="messages", daemon=True)
                self._writer.start()

    def _drop_oldest(self) -> None:
        with suppress(queue.Empty):  # its writer may have taken it
            dropped = len(self._texts.get_nowait())
            self._lost[_NOT_READ] += dropped
            self._taken += dropped

    def flush(self) -> None:
        """Nothing: a training step must not wait for a terminal. `drain` waits."""

    def drain(self, seconds: float = LAST_WAIT) -> None:
        """Waits until all is written, but no longer than that."""
        deadline = time.monotonic() + seconds
        while self._taken < self._queued and time.monotonic() < deadline:
            time.sleep(0.002)

    def take_lost(self) -> dict[str, int]:
        """Bytes that could not be written since this was asked last, by why; what still waits counts as not read."""
        with self._lock:
            lost, self._lost = self._lost, Counter()
            waiting = self._queued - self._taken
        return lost + Counter({_NOT_READ: waiting})

    def _write_on(self) -> None:
        # SIGTTOU would stop a process in the background of a terminal; others are for the main thread, which may hold
        # them back for a moment.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            content = self._texts.get()
            try:
                write_all(self._handle, content)
            except OSError as error:
                with self._lock:
                    self._lost[error.strerror or str(error)] += len(content)
            with self._lock:
                self._taken += len(content)


_NOT_READ = "nobody reads it"


def write_all(handle: int, content: bytes) -> None:
    while content:
        try:
            content = content[os.write(handle, content) :]
        except BlockingIOError:  # somebody who shares the terminal made it so
            select.select([], [handle], [], 1.0)


def lost_messages(streams: Iterable[object] | None = None) -> list[str]:
    """A line for each stream and reason for which messages were not written since this was asked last.

    Args:
        streams: those of `sys` where none are given.
    """
    return [
        f"{stream.name}: {count:,} bytes of messages were lost: {why}"
        for stream in (streams or (sys.stdout, sys.stderr))
        if isinstance(stream, QueuedStream)
        for why, count in stream.take_lost().items()
    ]


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
