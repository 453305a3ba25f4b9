"""The script itself: a short rehearsal of it, its flags, its refusals, its time, and its report."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ds_rvqvae.errors import ExitStatus
from tests.launch.launching import has_driver
from tests.on_gpu import program
from tests.on_gpu.box import MARK, Box, OutOfTimeError
from tests.on_gpu.checks import CHECKS, Check
from tests.on_gpu.claims import CheckError, at_most, same
from tests.on_gpu.report import JSON, PAGE, Report
from tests.ranks import ROOT, bare_environment

SCRIPT = [sys.executable, str(ROOT / "tests" / "on_gpu")]


@pytest.mark.processes
def test_a_short_rehearsal_of_the_script_is_ok(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = bare_environment(tmp_path, VIRTUAL_ENV=sys.prefix)
    command = ["bash", str(ROOT / "tests" / "on_gpu.sh"), "--rehearse", "--short"]
    ran = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    short = [check.name for check in CHECKS if check.short]
    assert len(short) >= 8
    first, *lines, last = ran.stdout.splitlines()
    assert first.startswith(f"{len(short)} checks on 1 CPU rank, a rehearsal, at most 10 minutes; the report is ")
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in short]
    assert last.startswith(f"rehearsal on CPU ranks: {len(short)} ok, 0 FAILED, 0 not run, in ")
    assert [path.name for path in elsewhere.iterdir()] == ["gpu_report"]
    report = json.loads((elsewhere / "gpu_report" / JSON).read_text())
    assert report["kind"] == "rehearsal" and report["facts"]["commit"]
    assert [one["status"] for one in report["checks"]] == ["ok"] * len(short)
    page = (elsewhere / "gpu_report" / PAGE).read_text()
    assert page.startswith("# Rehearsal on CPU ranks: its figures say nothing about a GPU\n")


def one_line(ran, status):
    """The only line of a refusal."""
    assert (ran.returncode, ran.stdout) == (status, ""), ran.stdout + ran.stderr
    (line,) = ran.stderr.splitlines()
    return line


def run(folder, *flags, **variables):
    environment = {**bare_environment(folder), **variables}
    return subprocess.run([*SCRIPT, *flags], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_it_says_so(tmp_path):
    before = {path.name for path in tmp_path.iterdir()} | {"home", "cache"}
    said = one_line(run(tmp_path, LD_LIBRARY_PATH=str(tmp_path)), ExitStatus.NO_DRIVER)
    assert said.startswith("error: no GPU to prove: no NVIDIA driver answers on this machine (libnvidia-ml.so.1 is not")
    assert "--rehearse runs the same steps on CPU ranks" in said
    assert {path.name for path in tmp_path.iterdir()} <= before


@pytest.mark.parametrize(
    ("played", "flags", "status", "words"),
    [
        (["3 process 1 8589934592"], [], ExitStatus.CARD_NOT_IDLE, "GPU 3 is not idle"),
        ([], ["--include=localhost:8"], ExitStatus.BAD_INPUT, "no GPU 8 on this machine"),
        ([], ["--include=other:0"], ExitStatus.BAD_INPUT, "this script proves one machine"),
        (["0 process 1 8589934592"], [], ExitStatus.BAD_INPUT, "cannot use these GPUs"),
    ],
)
def test_gpus_that_cannot_be_proved_are_refused(stand_in, tmp_path, played, flags, status, words):
    # GPU 0 is left out, so that its users do not matter: only the build of torch is refused then.
    stand_in.play(*played)
    code = (
        "import sys; from unittest import mock; from ds_rvqvae.process.command import run_program\n"
        "from tests.on_gpu import program\n"
        "program.Build.read = classmethod(lambda cls: cls('2.13.0+cpu', None))\n"
        "run_program(lambda: program.main(sys.argv[1:]))"
    )
    environment = {**stand_in.environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *flags]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert words in one_line(ran, status)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--minutes=soon"], "soon: give minutes"),
        (["--only", "speed"], "--only speed: no such check; there are versions, "),
        (["--short"], "--short: needs --rehearse"),
        (["--all"], "--all: needs --rehearse"),
        (["--rehearse", "--all", "--short"], "--all and --short: give one of them"),
        (["--rehearse", "--include=localhost:0"], "--include: names GPUs"),
        (["--rehearse", "--ranks=0"], "--ranks 0: give 1 to 64"),
        (["--gpus=2"], "unknown flag --gpus"),
    ],
)
def test_bad_flags_are_refused(flags, words, capsys):
    from ds_rvqvae.process.command import exit_status_of

    try:
        status = exit_status_of(lambda: program.main(flags))
    except SystemExit as end:
        status = end.code
    assert status == ExitStatus.BAD_INPUT
    assert words in capsys.readouterr().err


def test_the_list_and_the_help(capsys):
    assert program.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [check.name for check in CHECKS]
    assert len({check.name for check in CHECKS}) == len(CHECKS) and all(check.title for check in CHECKS)
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    assert "Exit status: 0 all checks are ok" in " ".join(capsys.readouterr().out.split())


def test_the_assumed_times_leave_room_within_ten_and_thirty_minutes():
    assert sum(check.seconds for check in CHECKS if check.slots == 1) <= 9 * 60
    assert sum(check.seconds for check in CHECKS) <= 27 * 60


@pytest.fixture
def box(tmp_path):
    return Box([0], tmp_path, tmp_path)


def test_a_check_that_no_longer_fits_is_not_run(box):
    check = Check("late", lambda box: [same("a", 1, 1)], 30)
    outcome = program.run_check(check, box, time.monotonic() + 20)
    assert (outcome.status, outcome.reason) == ("not run", "no time left (needs 30 s)")
    assert program.run_check(check, box, time.monotonic() + 40).status == "ok"


def sleeping(box):
    box.start(sys.executable, "-c", "import time; time.sleep(60)").wait()


def marked():
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(f"{os.getpid()}-"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_check_that_takes_too_long_is_ended(box, monkeypatch):
    monkeypatch.setattr(program, "_LEAST_LIMIT", 0.0)
    outcome = program.run_check(Check("slow", sleeping, 0.2), box, float("inf"))
    assert (outcome.status, outcome.reason) == ("FAILED", "did not end within 1 s")
    outcome = program.run_check(Check("slow", sleeping, 1.0), box, time.monotonic() + 1.5)
    assert (outcome.status, outcome.reason) == ("not run", "no time left: it was cut off")
    assert marked() == []


def test_what_a_check_raises_is_its_failure_and_nothing_is_left(box):
    def broken(box):
        box.start(sys.executable, "-c", "import time; time.sleep(60)")
        raise ValueError("of another kind")

    outcome = program.run_check(Check("broken", broken, 5), box, float("inf"))
    assert (outcome.status, outcome.reason) == ("FAILED", "ValueError: of another kind")
    assert marked() == []
    assert program.run_check(Check("empty", lambda box: [], 5), box, float("inf")).status == "FAILED"


def test_a_run_that_failed_once_is_not_run_again(box):
    tried = []

    def fails():
        tried.append(1)
        raise CheckError("status 70")

    for _ in range(2):
        with pytest.raises(CheckError, match="status 70"):
            box.once("first run", fails)
    assert len(tried) == 1
    box.until = 0.0
    with pytest.raises(OutOfTimeError):
        box.check_time()


def test_a_rehearsal_does_not_apply_bounds_of_gpus(tmp_path):
    rate = at_most("seconds", 9.0, 1.0, "s", gpu_only=True)
    assert rate.fails(rehearsal=False) and not rate.fails(rehearsal=True)
    assert not at_most("seconds", float("nan"), 1.0).holds and not at_most("seconds", None, 1.0).holds
    check = Check("rate", lambda box: [rate], 5)
    for rehearsal, status in ((None, "FAILED"), (object(), "ok")):
        box = Box([0], tmp_path, tmp_path, rehearsal)
        outcome = program.run_check(check, box, float("inf"))
        assert outcome.status == status
        report = Report(tmp_path, {"driver": "a|b"}, rehearsal is not None)
        report.add(outcome)
        (written,) = json.loads((tmp_path / JSON).read_text())["checks"]
        assert written["figures"][0]["applied"] is (rehearsal is None)
        page = (tmp_path / PAGE).read_text()
        assert "| driver | a\\|b |" in page
        assert ("**at most 1 s**" in page) is (rehearsal is None)


def test_a_signal_ends_it_and_keeps_the_report(tmp_path):
    flags = ["--rehearse", "--only", "versions", "monitor", "--out", "kept"]
    process = subprocess.Popen(
        [*SCRIPT, *flags], cwd=tmp_path, env=bare_environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    assert "2 checks on 2 CPU ranks" in process.stdout.readline()
    time.sleep(0.5)  # it runs the first check
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == ExitStatus.STOPPED
    report = json.loads((tmp_path / "kept" / JSON).read_text())
    assert report["ended"] == "stopped by SIGINT in versions" and report["checks"] == []
    left = [
        one
        for one in psutil.process_iter(["environ"])
        if (one.info["environ"] or {}).get(MARK, "").startswith(f"{process.pid}-")
    ]
    assert left == []
