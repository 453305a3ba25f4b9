"""Read the output of child processes at once and pass it on to our own standard streams, even if these fail."""

import fcntl
import os
import struct
import sys
import termios
import threading
import tty
from contextlib import suppress
from typing import TextIO

from typing_extensions import Self

from ds_rvqvae.process.streams import LAST_WAIT, QueuedStream, lost_messages

_AT_A_TIME = 1 << 16
"""Bytes per read."""


class Relay:
    """Provides standard streams for child processes that never block, fill up or close while this process runs.

    A child that writes to a pipe which nobody reads waits for ever, whether Python, a library's C code or another
    launcher writes; if the pipe is closed, the child may die. A thread of this process reads these streams, and drops
    what its own streams do not accept. If one of our streams is a terminal, the children get a terminal of the same
    size, so that their progress bars look as before; else they get a pipe. Streams with the same destination share one,
    so that the output stays in order.

    `stdout` and `stderr` are numbers for `subprocess.Popen`, valid within the context.
    """

    def __init__(self) -> None:
        self._channels: list[_Channel] = []
        self._streams: list[QueuedStream] = []

    def __enter__(self) -> Self:
        error = _queued(sys.stderr, sys.__stderr__)
        self._streams = [error]
        self.stderr = self._open(error)
        self.stdout = self.stderr
        if not os.path.samestat(os.fstat(1), os.fstat(error.fileno())):
            output = _queued(sys.stdout, sys.__stdout__)
            self._streams.append(output)
            self.stdout = self._open(output)
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()
        for stream in self._streams:
            stream.drain()

    def lost(self) -> list[str]:
        """Returns lines that say how much our own streams did not accept, and why; to be called after the context."""
        return lost_messages(self._streams)

    def _open(self, stream: QueuedStream) -> int:
        channel = _Channel(stream)
        self._channels.append(channel)
        return channel.writing


def _queued(stream: TextIO, own: TextIO | None) -> QueuedStream:
    if isinstance(stream, QueuedStream):
        return stream
    if own is None:
        raise RuntimeError("call open_standard_streams first")
    return QueuedStream(own)


class _Channel:
    """A pipe or terminal; what is written to it is passed on to a stream."""

    def __init__(self, stream: QueuedStream) -> None:
        self._stream, self._size = stream, b""
        self._is_terminal = stream.isatty()
        if self._is_terminal:
            try:
                self._reading, self.writing = os.openpty()
                tty.setraw(self.writing)  # our own terminal turns \n into \r\n
                self._fit()
            except (OSError, termios.error):  # a container may have no terminals
                self._is_terminal = False
        if not self._is_terminal:
            self._reading, self.writing = os.pipe()
        self._thread = threading.Thread(target=self._pass_on, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits until all output of processes that have ended is passed on."""
        os.close(self.writing)
        self._thread.join(LAST_WAIT)

    def _pass_on(self) -> None:
        while True:
            try:
                content = os.read(self._reading, _AT_A_TIME)
            except OSError:  # a closed terminal raises this
                content = b""
            if not content:
                os.close(self._reading)
                return
            self._stream.write_bytes(content)
            self._fit()

    def _fit(self) -> None:
        """Gives the children's terminal the size of our own."""
        if self._is_terminal:
            with suppress(OSError):  # our terminal was closed
                columns, lines = os.get_terminal_size(self._stream.fileno())
                size = struct.pack("HHHH", lines, columns, 0, 0)
                if size != self._size:
                    fcntl.ioctl(self._reading, termios.TIOCSWINSZ, size)
                    self._size = size
