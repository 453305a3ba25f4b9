"""The displays of the monitor, and how it returns a terminal."""

import json
import os
import re
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

from ds_rvqvae.gpu.display import Display, JsonDisplay, LinesDisplay
from ds_rvqvae.gpu.nvml import Gpu
from ds_rvqvae.gpu.snapshot import Snapshot
from tests.gpu.monitor_runs import run
from tests.gpu.terminal import Terminal


def test_a_plain_line_a_card_and_refresh_where_it_is_no_terminal(stand_in):
    stand_in.play("1 used 19327352832", "1 utilisation 98", "1 power 412345", "1 received 1234567")
    lines = run(stand_in, 0.1, "--count", 2).stdout.splitlines()
    assert len(lines) == 16 and not any("\x1b" in line for line in lines)
    time_of, number, rest = re.fullmatch(r"(\S+) GPU (\d) NVIDIA GeForce RTX 4090: (.*)", lines[1]).groups()
    assert datetime.fromisoformat(time_of).tzinfo and number == "1"
    assert rest == ("18.0 / 24.0 GiB, 98 %, 31 °C, 412 / 450 W, PCIe rx 1.2 tx 0.0 GB/s; NOT idle (18.0 GiB in use)")
    assert [line.endswith("; idle") for line in lines] == 2 * [True, False, *6 * [True]]


def test_ctrl_z_gives_the_terminal_back_meanwhile(stand_in):
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


def snapshot():
    gpus = [Gpu(index, "RTX 4090", f"GPU-{index}", f"0000:0{index}:00.0", 0, 24 << 30, 0) for index in range(3)]
    return Snapshot(datetime(2026, 1, 2, tzinfo=UTC), "550.54.14", "12.4", gpus, [0, 2], {})


def test_a_refresh_is_a_line_of_json_or_a_line_a_card_that_was_asked_for(capsys):
    JsonDisplay().show(snapshot(), [])
    (line,) = capsys.readouterr().out.splitlines()
    assert [card["index"] for card in json.loads(line)["gpus"]] == [0, 2]
    LinesDisplay().show(snapshot(), [])
    starts = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert starts == [f"2026-01-02T00:00:00+00:00 GPU {index} RTX 4090" for index in (0, 2)]


def test_a_problem_is_told_once_and_again_when_it_comes_back(capsys):
    display, said = Display(), []
    for problems in (["full"], ["full"], ["full", "gone"], [], ["full"]):
        display.show(snapshot(), problems)
        said.append(capsys.readouterr().err)
    assert said == ["warning: full\n", "", "warning: gone\n", "", "warning: full\n"]
