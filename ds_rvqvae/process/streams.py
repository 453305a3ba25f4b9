"""Keep a process running if its standard streams are closed, full, not read, or of another encoding."""

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
"""Most bytes that wait for a reader; beyond them the oldest are dropped."""
LAST_WAIT = 2.0
"""Seconds that an ending process waits for a reader of its last messages."""
_ERASE_LINE = b"\r\x1b[K"


def open_standard_streams() -> None:
    """Opens the null device in place of closed standard streams.

    Without this the next files to be opened would get their numbers, and what is printed would go into these files, in
    child processes too. It must be called first.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    for handle, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            stream = open(handle, "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


class QueuedStream(io.TextIOBase):
    """A stream whose `write` neither waits nor raises: a thread writes the queued text.

    Text that cannot be written is dropped: if nobody reads any more, or if the disk is full. If the reader is too slow,
    the oldest text beyond `MOST_WAITING` is dropped, because the reason for the end of a process is printed last.
    Characters that the stream's encoding lacks become `?`. On a terminal a message replaces the line of a progress bar,
    which is drawn again below it; errors and warnings are broken between words and begin with a coloured word.

    Args:
        stream: a stream with a file descriptor.
    """

    def __init__(self, stream: TextIO) -> None:
        self.name = {1: "standard output", 2: "standard error"}.get(stream.fileno(), stream.name)
        self._handle, self._is_terminal = stream.fileno(), stream.isatty()
        self._encoding, self._is_coloured = stream.encoding or "utf-8", is_coloured(stream)
        self._texts: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # a signal handler's put may interrupt a put
        self._queued = self._taken = 0
        self._lock = threading.RLock()  # reentrant for the same reason
        self._writer: threading.Thread | None = None
        self._after_bar = False
        """Whether the last queued line belongs to a progress bar, which begins with a carriage return."""
        self._lost: Counter[str] = Counter()
        """Bytes that could not be written, by reason."""
        self._dropped = 0
        """Bytes that were dropped before they were written."""
        self._failure: str | None = None
        """The reason why the last write failed, if it did."""
        self.written_at = time.monotonic()
        """Time of the last write."""

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
        """Queues encoded text."""
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
            if self._writer is None or not self._writer.is_alive():  # a forked child has no threads
                self._start_writer()

    def _start_writer(self) -> None:
        self._writer = threading.Thread(target=self._write_on, name="messages", daemon=True)
        try:
            self._writer.start()
        except RuntimeError:  # no memory for one more thread: then the error that says so must be written all the same
            self._writer = None
            while not self._texts.empty():
                self._write_one()

    def _drop_oldest(self) -> None:
        with suppress(queue.Empty):  # the writer may have taken it
            dropped = len(self._texts.get_nowait())
            self._dropped += dropped
            self._taken += dropped

    def flush(self) -> None:
        """Does nothing: a training step must not wait for a terminal. `drain` waits."""

    def drain(self, seconds: float = LAST_WAIT) -> None:
        """Waits until all is written, at most so many seconds."""
        deadline = time.monotonic() + seconds
        while self._taken < self._queued and time.monotonic() < deadline:
            time.sleep(0.002)

    def take_lost(self) -> dict[str, int]:
        """Returns the bytes that could not be written since the last call, by reason.

        Text that was dropped or still waits has the reason of the last write if that failed, for the queue may overflow
        before its thread comes to write; else nobody reads it.
        """
        with self._lock:
            lost, self._lost = self._lost, Counter()
            unwritten, self._dropped = self._dropped + self._queued - self._taken, 0
        return lost + Counter({self._failure or _NOT_READ: unwritten})

    def _write_on(self) -> None:
        # SIGTTOU would stop a background process of a terminal; other signals are for the main thread, which may block
        # them for a moment.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            self._write_one()

    def _write_one(self) -> None:
        content = self._texts.get()
        failure = None
        try:
            write_all(self._handle, content)
        except OSError as error:
            failure = error.strerror or str(error)
        with self._lock:
            self._failure = failure
            if failure:
                self._lost[failure] += len(content)
            self._taken += len(content)


_NOT_READ = "nobody reads it"


def write_all(handle: int, content: bytes) -> None:
    while content:
        try:
            content = content[os.write(handle, content) :]
        except BlockingIOError:  # another process that shares the terminal made it non-blocking
            select.select([], [handle], [], 1.0)


def lost_messages(streams: Iterable[object] | None = None) -> list[str]:
    """Returns a line for each stream and reason for which messages were lost since the last call.

    Args:
        streams: the streams to check; by default those of `sys`.
    """
    return [
        f"{stream.name}: {count:,} bytes of messages were lost: {why}"
        for stream in (streams or (sys.stdout, sys.stderr))
        if isinstance(stream, QueuedStream)
        for why, count in stream.take_lost().items()
    ]


@contextmanager
def queued_streams(*names: str) -> Iterator[None]:
    """Replaces `sys.stdout` or `sys.stderr`, by name, by a `QueuedStream`; at the end waits for their last messages.

    Streams that a program has put there itself are kept.
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
    """Waits until printed text is written, at most so many seconds; to be called before `os._exit`."""
    deadline = time.monotonic() + seconds
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, QueuedStream):
            stream.drain(deadline - time.monotonic())
        elif stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()


atexit.register(drain_streams)
