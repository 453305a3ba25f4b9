"""What child processes print, read at once and passed on to our own standard streams, whatever becomes of those."""

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
"""Bytes of a read."""


class Relay:
    """Standard streams for child processes that never block, never fill up and never go away while this process runs.

    A child that writes to a pipe which nobody reads waits for ever, be it Python, a library's C code or the launcher of
    somebody else; one that writes where nobody reads any more may die of it. These are read by a thread of this
    process, which drops what its own streams do not take. Where a stream of ours is a terminal the children's is one
    too, of the same size, so that their progress bars are drawn as before; else it is a pipe. Streams that go to one
    place share one, so that what is printed stays in order.

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
        """Lines that say what our own streams did not take, and why; after the context."""
        return lost_messages(self._streams)

    def _open(self, stream: QueuedStream) -> int:
        channel = _Channel(stream)
        self._channels.append(channel)
        return channel.writing


def _queued(stream: TextIO, own: TextIO | None) -> QueuedStream:
    if isinstance(stream, QueuedStream):
        return stream
    if own is None:
        raise RuntimeError("open_standard_streams comes first")
    return QueuedStream(own)


class _Channel:
    """A pipe or terminal whose reading end is passed on to a stream."""

    def __init__(self, stream: QueuedStream) -> None:
        self._stream, self._size = stream, b""
        self._is_terminal = stream.isatty()
        if self._is_terminal:
            try:
                self._reading, self.writing = os.openpty()
                tty.setraw(self.writing)  # the terminal itself turns \n into \r\n
                self._fit()
            except (OSError, termios.error):  # a container without any
                self._is_terminal = False
        if not self._is_terminal:
            self._reading, self.writing = os.pipe()
        self._thread = threading.Thread(target=self._pass_on, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits until all is passed on that was printed by processes that have ended."""
        os.close(self.writing)
        self._thread.join(LAST_WAIT)

    def _pass_on(self) -> None:
        while True:
            try:
                content = os.read(self._reading, _AT_A_TIME)
            except OSError:  # how a terminal ends
                content = b""
            if not content:
                os.close(self._reading)
                return
            self._stream.write_bytes(content)
            self._fit()

    def _fit(self) -> None:
        """Makes the children's terminal as large as our own."""
        if self._is_terminal:
            with suppress(OSError):  # it hung up
                columns, lines = os.get_terminal_size(self._stream.fileno())
                size = struct.pack("HHHH", lines, columns, 0, 0)
                if size != self._size:
                    fcntl.ioctl(self._reading, termios.TIOCSWINSZ, size)
                    self._size = size
