"""The monitor's table on a terminal: its content at each size, its bars and its history."""

import os
import re
import signal

import pytest

from ds_rvqvae.gpu.nvml import Gpu
from ds_rvqvae.gpu.table import History
from tests.gpu.stand_in import GPU_IS_LOST
from tests.gpu.terminal import Terminal


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


class TestHistory:
    def test_a_sparkline_is_the_mean_of_each_span(self):
        history = History(seconds=100)
        for second, value in ((5, 0), (15, 100), (17, 0), (95, 100)):
            history.add([Gpu(0, "", "", "", 0, 1, value)], second)
        assert history.sparkline(0, 100, 10) == "▁▅▅▅▅▅▅▅▅█"

    def test_old_samples_go_and_missing_ones_leave_no_mark(self):
        history = History(seconds=10)
        history.add([Gpu(0, "", "", "", 0, 1, 100), Gpu(1, "", "", "", 0, 1, 0), Gpu(2, "", "", "", 0, 1, None)], 0)
        assert history.sparkline(0, 0, 3) == "  █" and history.sparkline(2, 0, 3) == "   "
        assert history.sparkline(None, 0, 3) == "  ▅"
        history.add([Gpu(0, "", "", "", 0, 1, 0)], 20)
        assert history.sparkline(0, 20, 3) == "  ▁" and history.sparkline(1, 20, 3) == "   "
