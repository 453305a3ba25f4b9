"""A command's exit status and its one line on stderr, for any exception and any environment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.process.command import exit_status_of

FULL = Path("/dev/full")
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def raising(error):
    def command():
        raise error

    return command


def test_a_command_that_ends_well_has_the_status_it_gives(capsys):
    assert exit_status_of(lambda: ExitStatus.PARTLY_DONE) is ExitStatus.PARTLY_DONE
    assert capsys.readouterr() == ("", "")


def test_what_the_user_can_put_right_is_one_line_with_its_own_status(capsys):
    assert exit_status_of(raising(UserError("no clip x\x1b[2J"))) is ExitStatus.BAD_INPUT
    assert exit_status_of(raising(UserError("busy", ExitStatus.CARD_NOT_IDLE))) is ExitStatus.CARD_NOT_IDLE
    assert capsys.readouterr() == ("", "error: no clip x?[2J\nerror: busy\n")


def test_details_are_lines_and_no_name_makes_one(capsys):
    exit_status_of(raising(UserError("o\nne", details=["two\x07\r"])))
    assert capsys.readouterr().err == "error: o?ne\ntwo??\n"


def test_an_interrupt_is_a_stop_in_one_line(capsys):
    assert exit_status_of(raising(KeyboardInterrupt())) is ExitStatus.STOPPED
    assert capsys.readouterr() == ("", "stopped by SIGINT\n")


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_of_our_own_is_one_line_and_its_traceback_only_where_asked_for(capsys, monkeypatch, debug):
    monkeypatch.setenv("DS_RVQVAE_DEBUG", "1" if debug else "")
    assert exit_status_of(raising(ValueError("what"))) is ExitStatus.FAILED
    *traceback, line = capsys.readouterr().err.splitlines()
    assert line == "error: ValueError: what (DS_RVQVAE_DEBUG=1 shows the traceback)"
    assert any("in command" in text for text in traceback) is debug
    assert bool(traceback) is debug


WAITING = """
import sys, time
from ds_rvqvae.process.command import exit_status_of
def command():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.5)
        print("put away", file=sys.stderr)
sys.exit(exit_status_of(command))
"""


def started(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_a_command_once_with_one_line_and_its_work_put_away(number):
    process = started(WAITING)
    assert process.stdout.readline() == "ready\n"
    for other in (signal.SIGUSR1, signal.SIGUSR2):
        process.send_signal(other)
    time.sleep(0.2)
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == ("", f"put away\nstopped by {number.name}\n")
    assert process.returncode == ExitStatus.STOPPED


def test_a_second_interrupt_ends_it_at_once():
    process = started(WAITING.replace("0.5", "60"))
    process.stdout.readline()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT


def test_what_is_ignored_at_the_start_stays_ignored():
    process = started(WAITING, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == ExitStatus.STOPPED


@pytest.mark.parametrize(
    "busy",
    [
        "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**10)",  # no Python runs meanwhile
        "for _ in iter(int, 1):\n            try: time.sleep(60)\n            except BaseException: pass",
    ],
)
def test_what_does_not_hear_of_a_signal_ends_all_the_same(tmp_path, busy):
    code = WAITING.replace("time.sleep(60)", f"begun.__enter__().write(b'0')\n        {busy}").replace(
        "def command", "from ds_rvqvae.files import whole_file\nfrom pathlib import Path\n"
        f"begun = whole_file(Path({str(tmp_path / 'whole')!r}))\ndef command"
    ).replace("exit_status_of(command)", "exit_status_of(command, is_program=True)")  # fmt: skip
    process = started(code)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    assert [file.name.startswith(".unfinished-") for file in tmp_path.iterdir()] == [True]
    began = time.monotonic()
    process.terminate()
    assert process.communicate(timeout=20) == ("", "stopped by SIGTERM\n")
    assert process.returncode == ExitStatus.STOPPED and time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", [True, False])
def test_only_a_program_ends_where_much_is_to_be_put_away(program):
    sooner = "from ds_rvqvae.process import signals\nsignals.LONGEST_STOP = 0.5\ndef command"
    code = WAITING.replace("sleep(0.5)", "sleep(1.5)").replace("def command", sooner)
    process = started(code.replace("(command)", f"(command, is_program={program})"))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    said = "stopped by SIGINT\n" if program else "put away\nstopped by SIGINT\n"
    assert process.communicate(timeout=10) == ("", said) and process.returncode == ExitStatus.STOPPED


FORKING = """
import multiprocessing, sys, time
from ds_rvqvae.process import signals
from ds_rvqvae.process.command import run_program
signals.LONGEST_STOP = 0.3
def command():
    fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    fork.start()
    time.sleep(0.5)
    fork.terminate()
    fork.join()
    time.sleep(1)
    print(fork.exitcode, flush=True)
run_program(command)
"""


def test_a_signal_to_a_fork_is_none_to_the_command():
    process = started(FORKING)
    assert process.communicate(timeout=20) == (f"{-signal.SIGTERM}\n", "")
    assert process.returncode == ExitStatus.DONE


HOLDING_BACK = """
import os, signal, sys
from ds_rvqvae.process.command import exit_status_of
def command():
    print("ready", file=sys.stderr)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(10**6): pass
    print("torn by nothing", file=sys.stderr)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return 0
sys.exit(exit_status_of(command))
"""


def test_a_signal_that_a_command_holds_back_waits():
    process = started(HOLDING_BACK)
    assert process.communicate(timeout=20) == ("", "ready\ntorn by nothing\nstopped by SIGTERM\n")
    assert process.returncode == ExitStatus.STOPPED


STARTING = """
import subprocess, sys, threading, time
from ds_rvqvae.process.command import begin_program, run_program
begin_program()
if sys.argv[1:]:
    print("importing", flush=True)
    for _ in range(6000):  # a signal just before a sleep begins is met after it
        time.sleep(0.01)
def command():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    threading.Thread(target=time.sleep, args=(60,)).start()
    print(process.pid, flush=True)
    time.sleep(60)
run_program(command)
"""


@pytest.mark.parametrize("number", ENDING)
def test_a_script_is_stopped_while_it_imports(number):
    process = subprocess.Popen(
        [sys.executable, "-c", STARTING, "slow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    assert process.communicate(timeout=10) == ("", f"stopped by {number.name}\n")
    assert process.returncode == ExitStatus.STOPPED


def test_a_stopped_script_leaves_no_process_and_waits_for_no_thread():
    process = started(STARTING)
    child = psutil.Process(int(process.stdout.readline()))
    process.terminate()
    assert process.communicate(timeout=10) == ("", "stopped by SIGTERM\n")
    assert process.returncode == ExitStatus.STOPPED
    assert child.wait(10) is None or not child.is_running()


PRINTING = """
import sys
from ds_rvqvae.process.command import exit_status_of, print_out, print_summary
def command():
    print_out("result")
    return 1
sys.exit(exit_status_of(command))
"""


def test_what_is_said_before_a_result_is_before_it_in_a_log_of_both():
    code = PRINTING.replace("    print_out", "    for n in range(500): print(n, file=sys.stderr)\n    print_out")
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.stdout.split() == [*map(str, range(500)), "result"]


def test_a_reader_that_has_gone_changes_no_status():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", PRINTING], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_result_that_finds_no_room_is_an_error():
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", PRINTING], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == ExitStatus.BAD_INPUT
    assert done.stderr == "error: standard output: cannot be written: No space left on device\n"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_summary_that_finds_no_room_is_a_warning():
    code = PRINTING.replace("print_out", "print_summary")
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "warning: standard output: cannot be written: No space left on device\n"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_help_that_finds_no_room_is_an_error():
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "ds_rvqvae.cli", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == ExitStatus.BAD_INPUT
    assert done.stderr == "error: standard output: cannot be written: No space left on device\n"


def test_a_result_nobody_reads_is_left_at_a_signal():
    process = started(PRINTING.replace('"result"', '"result" * 100_000').replace("def command():", WROTE))
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.3)
    process.terminate()
    process.wait(10)
    assert process.returncode == ExitStatus.STOPPED and process.stderr.read() == "stopped by SIGTERM\n"


WROTE = """
def command():
    print("ready", file=sys.stderr)
"""


def test_characters_that_an_encoding_has_not_become_question_marks():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = PRINTING.replace('"result"', '"a\u4e2d\\n"')
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "a?\n", "")


def test_warnings_are_no_errors_in_what_it_starts_either():
    started = (
        "import subprocess; subprocess.run([sys.executable, '-c', 'import warnings; warnings.warn(0)'], check=True)"
    )
    code = PRINTING.replace("    print_out", f"    {started}; print_out")
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "result")


def test_warnings_are_no_errors():
    code = PRINTING.replace("    print_out", "    import warnings; warnings.warn('careful'); print_out")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "result")
    assert "careful" in done.stderr
