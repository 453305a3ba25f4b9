"""Standard streams that may be closed, full, or read by nobody."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from ds_rvqvae.process.streams import MOST_WAITING, QueuedStream, lost_messages
from tests.train.small import wait_until

FULL = Path("/dev/full")
SAYING = """
import sys, time
from ds_rvqvae.process.streams import MOST_WAITING, drain_streams, open_standard_streams, queued_streams
open_standard_streams()
began = time.monotonic()
with queued_streams("stderr"):
    {}
    spent = time.monotonic() - began
print(f"{{spent:.1f}} {{sys.stderr is sys.__stderr__}}")
"""
MUCH = "for line in range(100_000): print('x' * 99, file=sys.stderr, flush=True)"


def said(work, **streams):
    return subprocess.run([sys.executable, "-c", SAYING.format(work)], stdout=subprocess.PIPE, text=True, **streams)


def test_all_that_is_said_is_written_in_order():
    work = "for line in range(2000): print(line, file=sys.stderr)"
    done = said(work, stderr=subprocess.PIPE)
    assert done.stderr.split() == [str(line) for line in range(2000)]
    assert done.stdout.split()[1] == "True"


def test_a_pipe_that_nobody_reads_holds_nobody_up():
    reading, writing = os.pipe()
    try:
        done = said(MUCH, stderr=writing, timeout=30)
        assert done.returncode == 0
        assert float(done.stdout.split()[0]) < 10
        assert os.read(reading, 100) == b"x" * 99 + b"\n"
    finally:
        os.close(reading)
        os.close(writing)


def test_what_is_said_last_reaches_a_reader_that_comes_late(tmp_path):
    work = f"{MUCH}\n    print('the end', file=sys.stderr)\n    open('full', 'w')"
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    saying = subprocess.Popen([sys.executable, "-c", SAYING.format(work)], cwd=tmp_path, text=True, **streams)
    wait_until((tmp_path / "full").exists)
    assert saying.communicate(timeout=30)[1].endswith("x\nthe end\n")


def test_a_pipe_whose_reader_is_gone_raises_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    done = said(MUCH, stderr=writing, timeout=30)
    os.close(writing)
    assert done.returncode == 0


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_raises_nothing():
    with FULL.open("w") as full:
        assert said(MUCH, stderr=full, timeout=30).returncode == 0


def test_what_is_said_without_memory_for_a_thread_is_written():
    held = "open('/proc/self/statm').read().split()[0]"
    limit = f"resource.setrlimit(resource.RLIMIT_AS, (int({held}) * 4096 + (1 << 20), -1))"
    work = f"import resource; {limit}; print('no room', file=sys.stderr); print('at all', file=sys.stderr)"
    assert said(work, stderr=subprocess.PIPE).stderr == "no room\nat all\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_is_no_file_that_is_opened_later(tmp_path, closed):
    code = (
        "from ds_rvqvae.process.streams import open_standard_streams; import os, sys; open_standard_streams(); "
        "os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT); print('out'); print('err', file=sys.stderr); "
        "os.write(1, b'out'); os.write(2, b'err')"
    )
    file = tmp_path / "file"
    line = f'exec "$0" -c "$1" "$2" {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable, code, str(file)], capture_output=True)
    assert done.returncode == 0
    assert file.read_bytes() == b""


def test_a_closed_stream_is_none_of_a_process_that_is_started_either():
    open_in_child = "for n in 0 1 2; do test -e /proc/$$/fd/$n || exit 1; done"
    code = (
        "from ds_rvqvae.process.streams import open_standard_streams; import subprocess, sys; open_standard_streams(); "
        "subprocess.run(['sh', '-c', sys.argv[1]], check=True)"
    )
    line = ["sh", "-c", 'exec "$0" -c "$1" "$2" 0<&- 1>&- 2>&-', sys.executable, code, open_in_child]
    assert subprocess.run(line).returncode == 0


def test_characters_that_the_encoding_has_not_are_question_marks():
    done = said("print('動 é', file=sys.stderr)", stderr=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert done.stderr == "? ?\n"


def test_text_that_is_dropped_before_a_write_fails_is_lost_for_the_same_reason():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        stream = QueuedStream(pipe)
        stream.write_bytes(b"x" * MOST_WAITING)  # fills the pipe
        wait_until(lambda: select.select([reading], [], [], 0)[0])
        for _ in range(2):
            stream.write_bytes(b"x" * MOST_WAITING)
        lost = f"{stream.name}: {{:,}} bytes of messages were lost: {{}}"
        assert lost_messages([stream]) == [lost.format(3 * MOST_WAITING, "nobody reads it")]
        os.close(reading)
        stream.drain(30)
        assert lost_messages([stream]) == [lost.format(2 * MOST_WAITING, "Broken pipe")]
