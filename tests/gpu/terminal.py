"""A terminal with a monitor in it."""

import codecs
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import time

from tests.gpu.stand_in import command


class Terminal:
    """A terminal with a monitor in it."""

    def __init__(self, stand_in, columns, rows, *flags):
        self.side, theirs = pty.openpty()
        self.resize(columns, rows)
        self.modes = termios.tcgetattr(theirs)
        self.theirs = theirs
        # A separate session, so that typed keys reach it as signals.
        self.monitor = subprocess.Popen(
            command(*flags), env=stand_in.environment, stdin=theirs, stdout=theirs, stderr=theirs,
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        )  # fmt: skip
        self.text = ""
        # A read may end within a character.
        self.decode = codecs.getincrementaldecoder("utf-8")().decode

    def resize(self, columns, rows):
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_until(self, pattern, seconds=20):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, self.text
            self.text += self.decode(os.read(self.side, 1 << 16))

    def type(self, keys):
        os.write(self.side, keys)

    def end(self):
        """The exit status, and what was written after the second screen was left."""
        status = self.monitor.wait(10)
        self.text += "".join(iter(self._rest, ""))
        assert termios.tcgetattr(self.theirs) == self.modes
        os.close(self.side)
        os.close(self.theirs)
        return status, self.text.rpartition("\x1b[?1049l")[2]

    def _rest(self):
        os.set_blocking(self.side, False)
        try:
            return self.decode(os.read(self.side, 1 << 16))
        except BlockingIOError:
            return ""
