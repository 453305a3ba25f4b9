"""Run Python code on its own terminal, and read the terminal's content."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time


class Terminal:
    """Code in a new interpreter, with a terminal of 24 lines as its standard streams."""

    def __init__(self, code: str, *arguments: str, columns: int = 80):
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            try:
                os.read(0, 1)  # not before the terminal has its size
                os.execv(sys.executable, [sys.executable, "-c", code, *arguments])
            finally:
                os._exit(127)
        settings = termios.tcgetattr(self._master)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(self._master, termios.TCSANOW, settings)
        self.resize(columns)
        os.write(self._master, b"\n")
        self.shown = b""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read_until(self, text: str, seconds: float = 60.0) -> None:
        """Waits until the terminal shows a text; fails if it does not."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self.shown:
            assert time.monotonic() < deadline and self._read(), self.shown

    def end(self, seconds: float = 60.0) -> int:
        """Returns its exit status after it has ended by itself."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, self.shown
        os.close(self._master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def hang_up(self) -> None:
        os.close(self._master)

    def _read(self) -> bool:
        """Reads what arrives within a moment; False at the end."""
        if select.select([self._master], [], [], 1.0)[0]:
            try:
                self.shown += os.read(self._master, 1 << 16)
            except OSError:
                return False
        return True
