"""The output of child processes: without a reader, with one that goes away, and on a terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.terminals import Terminal

RELAYING = """
import subprocess, sys
from ds_rvqvae.process.relay import Relay
from ds_rvqvae.process.streams import open_standard_streams, queued_streams
open_standard_streams()
with queued_streams("stderr"):
    with Relay() as relay:
        code = subprocess.run(sys.argv[1:], stdout=relay.stdout, stderr=relay.stderr).returncode
    with open("lost", "w") as file:
        file.write("\\n".join(relay.lost()))
sys.exit(code)
"""
MUCH = ["sh", "-c", "head -c 3000000 /dev/zero && head -c 3000000 /dev/zero >&2 && exit 7"]
"""More output than fits into a pipe, by programs that wait for its reader and die if there is none."""


def relay(command, folder, **streams):
    line = [sys.executable, "-c", RELAYING, *command]
    return subprocess.run(line, cwd=folder, timeout=60, **streams)


def lost(folder):
    return (folder / "lost").read_text().splitlines()


def test_all_that_is_printed_comes_through_and_in_order(tmp_path):
    command = ["sh", "-c", "echo 1; echo 2 >&2; echo 3; echo 4 >&2; exit 5"]
    done = relay(command, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout, lost(tmp_path)) == (5, b"1\n2\n3\n4\n", [])
    command = ["sh", "-c", "head -c 900000 /dev/zero; exit 7"]
    done = relay(command, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert (done.returncode, len(done.stdout), lost(tmp_path)) == (7, 900_000, [])


def test_a_pipe_that_nobody_reads_holds_no_child_up(tmp_path):
    reading, writing = os.pipe()
    try:
        assert relay(MUCH, tmp_path, stdout=writing, stderr=writing).returncode == 7
    finally:
        os.close(reading)
        os.close(writing)
    (line,) = lost(tmp_path)
    assert line.startswith("standard error: 5,") and line.endswith(" bytes of messages were lost: nobody reads it")


def test_a_reader_that_goes_and_a_full_disk_end_no_child(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("w") as full:
        assert relay(MUCH, tmp_path, stdout=full, stderr=writing).returncode == 7
    os.close(writing)
    assert lost(tmp_path) == [
        "standard error: 3,000,000 bytes of messages were lost: Broken pipe",
        "standard output: 3,000,000 bytes of messages were lost: No space left on device",
    ]


def test_closed_streams_are_nowhere(tmp_path):
    line = ["sh", "-c", 'exec "$0" -c "$@" 0<&- 1>&- 2>&-', sys.executable, RELAYING, *MUCH]
    assert subprocess.run(line, cwd=tmp_path, timeout=60).returncode == 7
    assert {file.name for file in tmp_path.iterdir()} == {"lost"}
    assert (tmp_path / "lost").read_bytes().count(b"\0") == 0


SIZES = """
import os, sys, time
print(os.isatty(1), os.isatty(2), os.get_terminal_size(2).columns, flush=True)
while os.get_terminal_size(2).columns == 80:
    print(".", flush=True)
    time.sleep(0.1)
print(os.get_terminal_size(1).columns)
"""


def test_on_a_terminal_children_have_one_of_its_size(tmp_path):
    terminal = Terminal(f"import os; os.chdir({str(tmp_path)!r})\n{RELAYING}", sys.executable, "-c", SIZES)
    terminal.read_until("True True 80\r\n")
    terminal.resize(61)
    assert terminal.end() == 0
    assert terminal.shown.endswith(b"\n61\r\n") and lost(tmp_path) == []


def test_a_terminal_that_hangs_up_ends_no_child(tmp_path):
    code = f"import os, signal; os.chdir({str(tmp_path)!r}); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{RELAYING}"
    work = "echo begun; sleep 1; head -c 100000 /dev/zero && exit 7"
    terminal = Terminal(code, "sh", "-c", work)
    terminal.read_until("begun")
    terminal.hang_up()
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 7
    assert lost(tmp_path) == ["standard error: 100,000 bytes of messages were lost: Input/output error"]


def test_a_terminal_that_stops_who_writes_in_the_background_stops_nobody(tmp_path):
    waiting = f"import os; os.chdir({str(tmp_path)!r})\n{RELAYING}"
    # An interactive shell, whose jobs have process groups of their own.
    code = "import os, sys; os.execvp('bash', ['bash', '--norc', '-ic', *sys.argv[1:]])"
    work = 'stty tostop; "$0" -c "$@" </dev/null & wait $!; echo "status $?"'
    terminal = Terminal(code, work, sys.executable, waiting, "sh", "-c", "sleep 0.5; echo said; exit 7")
    terminal.read_until("status 7")
    assert terminal.end() == 0
    assert b"said" in terminal.shown
