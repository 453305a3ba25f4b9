"""Progress on a terminal with messages in between, and in a log that shows only lines."""

import re
import subprocess
import sys
import threading

import pytest

from ds_rvqvae.process import progress
from tests.process.terminals import Terminal

WORK = """
import sys, time
from ds_rvqvae.process import progress
from ds_rvqvae.process.streams import queued_streams
steps, pause, progress.SECONDS_BETWEEN_LINES = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
with queued_streams("stderr"):
    work = progress.Progress(steps, 0, "work", shown=len(sys.argv) < 5)
    for step in range(steps):
        time.sleep(pause)
        work.step()
        work.note({"loss": f"0.{step}"})
        if step == steps // 2:
            print("a", "message", file=sys.stderr)
    work.close()
    print("the end", file=sys.stderr)
"""


def lines_of(shown, columns):
    """The lines of a terminal after this output."""
    lines, column = [[]], 0
    for text in re.findall(r"\x1b\[K|.|\n", shown.replace("\r\n", "\n"), re.DOTALL):
        if text == "\n":
            lines.append([])
        elif text == "\x1b[K":
            del lines[-1][column:]
        elif text != "\r":
            lines[-1][column:] = [text, *lines[-1][column + 1 :]]
        column = 0 if text in "\r\n" else column + (len(text) == 1)
        assert column <= columns
    return ["".join(line).rstrip() for line in lines]


def test_a_terminal_shows_one_bar_with_messages_above_it():
    terminal = Terminal(WORK, "40", "0.05", "0.0", columns=70)
    assert terminal.end() == 0
    message, bar, end, rest = lines_of(terminal.shown.decode(), 70)
    assert (message, end, rest) == ("a message", "the end", "")
    assert bar.startswith("work: 100%|") and " 40/40 " in bar
    assert terminal.shown.count(b"\rwork:") > 3


def test_elsewhere_lines_tell_now_and_then_and_in_the_end():
    def said(*arguments):
        line = [sys.executable, "-c", WORK, *arguments]
        return subprocess.run(line, stderr=subprocess.PIPE, text=True, check=True).stderr.splitlines()

    assert re.fullmatch(r"work: step 2,000 of 2,000, [\d.]+ steps/s, loss 0\.1999", said("2000", "0", "60")[1])
    assert len(said("2000", "0", "60")) == 3
    lines = said("10", "0.1", "0.25")
    assert 4 <= len(lines) <= 6
    assert said("10", "0", "0", "silent") == ["a message", "the end"]


STAGES = """
import sys, time
from ds_rvqvae.process import progress
from ds_rvqvae.process.streams import queued_streams
progress.SECONDS_OF_SILENCE = 0.4
with queued_streams("stderr"):
    with progress.Stage("reading"):
        time.sleep(1.0)
    with progress.Stage("checking", quiet=True), progress.Stage("finding", after=0.2), progress.Stage("n", shown=False):
        pass
    with progress.Stage("saving", quiet=True):
        time.sleep(0.6)
    with progress.Stage("starting", after=0.1):
        for line in range(5):
            time.sleep(0.2)
            print("word", line, file=sys.stderr)
"""


def test_a_stage_speaks_at_once_and_after_each_silence():
    said = subprocess.run([sys.executable, "-c", STAGES], capture_output=True, text=True, check=True).stderr
    lines = [line for line in said.splitlines() if not line.startswith("word")]
    assert lines[0] == "reading" and lines[1].startswith("still reading, ") and lines[2].startswith("still reading, 1")
    assert "\nstill saving, " in said and "checking" not in said and "finding" not in said
    # A late stage is mentioned once, because messages of others count as output too.
    assert lines.count("starting") == 1 and "still starting" not in said


def test_a_stage_ends_with_what_went_wrong_in_it():
    before = threading.active_count()
    said = []
    with pytest.raises(ValueError), progress.Stage("building", said.append):
        raise ValueError
    assert said == ["building"] and threading.active_count() == before
