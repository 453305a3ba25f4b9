"""The monitor on a terminal: its table, and what keys, signals and sizes do to it."""

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.gpu.stand_in import GPU_IS_LOST, command


class Terminal:
    """A terminal with a monitor in it."""

    def __init__(self, stand_in, columns, rows, *flags):
        self.side, theirs = pty.openpty()
        self.resize(columns, rows)
        self.modes = termios.tcgetattr(theirs)
        self.theirs = theirs
        # A session of its own, so that what is typed reaches it as signals.
        self.monitor = subprocess.Popen(
            command(*flags), env=stand_in.environment, stdin=theirs, stdout=theirs, stderr=theirs,
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        )  # fmt: skip
        self.text = ""
        # What is read may end within a character.
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


def visible(text):
    """Lines without colours."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()


class TestTable:
    @pytest.mark.parametrize("columns", [40, 80, 160])
    def test_it_fits_the_terminal_and_ctrl_c_leaves_that_as_it_was(self, stand_in, columns):
        stand_in.play(
            *(f"{index} {line}" for index in range(1, 8) for line in ("used 25000000000", "power 450000")),
            f"1 process {os.getpid()} 24000000000", f"5 error {GPU_IS_LOST}", "0 slice 1 5000000000",
        )  # fmt: skip
        terminal = Terminal(stand_in, columns, 30, 0.2)
        terminal.read_until("(?s)\x1b\\[H.*\x1b\\[H")
        terminal.type(b"\x03")
        status, last = terminal.end()
        assert status == 0
        assert terminal.text.count("\x1b[?1049h") == terminal.text.count("\x1b[?1049l") == 1
        assert (
            terminal.text.index("\x1b[?1049l") > terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")
        )
        lines = visible(last)
        assert max(map(len, lines)) <= columns
        assert lines[1] == "GPU 0: idle" and "\x1b[1;32mGPU 0: idle" in last
        assert [line.split()[0] for line in lines[3:13]] == ["0", "0.0", *"1234567", "total"]
        assert "ERR" in lines[9] and "GPU 5: ERR, GPU is lost" in lines
        if columns >= 80:
            assert "RTX 4090" in lines[5] and "23.3 / 24.0" in lines[5] and "450 / 450" in lines[5] and "█" in lines[5]
            assert "util 5 min" in lines[2] and "rx/tx" in lines[2] and "python" in lines[-1]

    def test_a_busy_gpu_0_is_red_and_names_who(self, stand_in):
        stand_in.play(f"0 process {os.getpid()} 2000000000", "0 used 2000000000")
        terminal = Terminal(stand_in, 120, 30, "--once")
        status, text = terminal.end()
        assert status == 0 and "\x1b[1;31mGPU 0: NOT idle (1.9 GiB in use; process" in text
        assert "\x1b[?1049h" not in text

    def test_processes_beyond_the_height_are_counted(self, stand_in):
        stand_in.play(*(f"1 process {number} 1000" for number in range(1, 31)))
        terminal = Terminal(stand_in, 80, 20, 60)
        terminal.read_until("more processes")
        shown = visible(terminal.text.rpartition("\x1b[H")[2])
        assert len(shown) == 20 and re.fullmatch(r"… \d+ more processes", shown[-1])
        assert int(shown[-1].split()[1]) + len(shown) - 14 == 30
        terminal.resize(100, 60)
        os.kill(terminal.monitor.pid, signal.SIGWINCH)
        terminal.read_until("\x1b\\[H(?!.*\x1b\\[H)(?s:.)*\n[^\n]*30 +0.0")
        terminal.type(b"\x03")
        assert terminal.end()[0] == 0

    def test_ctrl_z_gives_the_terminal_back_meanwhile(self, stand_in):
        terminal = Terminal(stand_in, 80, 30, 60)
        terminal.read_until("total")
        terminal.type(b"\x1a")
        terminal.read_until(re.escape("\x1b[?1049l"))
        pid = terminal.monitor.pid
        stat = Path(f"/proc/{pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.02)
        os.kill(pid, signal.SIGCONT)
        terminal.read_until("(?s)1049l.*1049h.*total")
        terminal.type(b"\x03")
        assert terminal.end()[0] == 0
