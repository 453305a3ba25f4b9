"""Complete commands as a user types them, with real ranks."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ds_rvqvae import cli
from tests.e2e.stray import stray_lines
from tests.ranks import ROOT, bare_environment
from tests.train.small import SMALL

pytestmark = pytest.mark.processes
LAUNCHER = [sys.executable, str(ROOT / "launch" / "train_8x4090.py")]


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


def test_demo_ends_with_scores_a_picture_and_commands_that_go_on_from_there(tmp_path, monkeypatch):
    environment = bare_environment(tmp_path)
    result = _run([*LAUNCHER, "--demo", "--total_iter=100"], tmp_path, environment)
    assert result.returncode == 0, result.stderr
    assert "2 ranks, ZeRO stage 2, bf16, activation checkpointing on" in result.stderr
    assert stray_lines(result.stdout) == stray_lines(result.stderr) == []
    run = tmp_path / "runs" / "demo-demo_motion-upper"
    scores, untrained = (json.loads((run / "eval" / name).read_text()) for name in ("scores.json", "untrained.json"))
    assert scores["angle_error_deg"] < 0.75 * untrained["angle_error_deg"]
    assert [row["levels"] for row in scores["by_levels"]] == [1, 2, 3, 4, 5, 6]
    picture = next(line for line in result.stdout.splitlines() if line.startswith("picture: "))
    assert (tmp_path / picture.removeprefix("picture: ")).read_bytes().startswith(b"\x89PNG")
    assert "tensorboard --logdir runs/demo-demo_motion-upper/tensorboard --host localhost" in result.stdout
    parts = {"profile.json", "run.log", "metrics.jsonl", "memory.json"}
    parts |= {"tensorboard", "checkpoints", "eval", "tokenizer"}
    assert {path.name for path in run.iterdir()} == parts
    assert (run / "checkpoints" / "latest").read_text() == "global_step100"

    assert f"tokenizer: {run.relative_to(tmp_path) / 'tokenizer'}" in result.stdout.splitlines()
    stages = (
        "motion ",
        "checks passed, ",
        "building the engine",
        "finding the first codes",
        "scoring the untrained",
        "step 0, val: ",
    )
    told = ".*".join([*stages, "taking the first step", "step 100, val: angle "])
    for text in (result.stderr, (run / "run.log").read_text()):
        assert re.search(told, text, re.DOTALL), text

    monkeypatch.chdir(tmp_path)
    render, encode, evaluate = (shlex.split(line) for line in result.stdout.split("\nnext:\n")[1].splitlines())
    assert cli.main([*render[render.index("render") :], "--seconds=0.2", "--size=320x160"]) == 0
    assert cli.main(encode[encode.index("encode") :]) == 0
    assert Path(render[-1]).is_file() and len(list(Path(encode[-1]).rglob("*.npz"))) == 12
    evaluated = _run([*evaluate, "--split=val", "--json", "--pictures=pictures"], tmp_path, environment)
    assert evaluated.returncode == 0, evaluated.stderr
    by_hand = json.loads(evaluated.stdout)
    for key in ("clips", "frames", "usage"):
        assert by_hand[key] == scores[key]
    assert by_hand["angle_error_deg"] == pytest.approx(scores["angle_error_deg"], rel=1e-4)
    assert (tmp_path / "pictures" / "reconstruction_val.png").is_file()

    # The profile that the run wrote is enough to start it again.
    again = [
        *LAUNCHER,
        "--include=localhost:0,1",
        f"--profile={run / 'profile.json'}",
        "--name=again",
        "--total_iter=100",
    ]
    again = _run([*again, "--dry_run"], tmp_path, {**environment, "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2"})
    assert again.returncode == 0, again.stderr


def test_seven_ranks_by_the_plain_deepspeed_command_that_a_dry_run_prints(tmp_path, demo_folder):
    environment = bare_environment(tmp_path, LOCAL_SIZE="8", OMP_NUM_THREADS="1")
    before = {path.name for path in tmp_path.iterdir()}
    flags = [*SMALL, f"--data_path={demo_folder}", "--name", "seven ranks", "--total_iter", "4"]
    shown = _run([*LAUNCHER, *flags, "--dry_run"], tmp_path, environment)
    assert shown.returncode == 0, shown.stderr
    # The motion is checked from its store, which is kept in the user's cache.
    assert {path.name for path in tmp_path.iterdir()} - before <= {"cache"}
    command = shlex.split(shown.stdout)
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert command[command.index("--include") + 1] == "localhost:1,2,3,4,5,6,7"
    result = _run(command, tmp_path, environment)
    assert result.returncode == 0, result.stderr + result.stdout
    run = tmp_path / "runs" / "seven ranks"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(len(line["memory_gib"]) == 7 for line in lines)
    assert len(list((run / "checkpoints" / "global_step4").glob("*_optim_states.pt"))) == 7


@pytest.fixture
def long_run(tmp_path, demo_folder):
    """Yields a launcher whose two ranks are training, and its run's folder."""
    environment = bare_environment(tmp_path, DS_ACCELERATOR="cpu", LOCAL_SIZE="2")
    command = [*LAUNCHER, *SMALL, "--include=localhost:0,1", f"--data_path={demo_folder}", "--batch_size=4"]
    command += ["--total_iter=1000000", "--name=long"]
    with (tmp_path / "said").open("w") as said:
        launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said)
    metrics = tmp_path / "runs" / "long" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text()):
        assert launcher.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
        time.sleep(0.2)
    family = psutil.Process(launcher.pid).children(recursive=True)
    yield launcher, family, tmp_path / "said"
    for process in [*family, launcher]:
        if process.is_running() if isinstance(process, psutil.Process) else process.poll() is None:
            process.kill()
    launcher.wait()


def _ranks(family: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in family if "ds_rvqvae.train" in process.cmdline() and "-u" in process.cmdline()]


def _assert_gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_every_process_with_status_75(long_run, number):
    launcher, family, said = long_run
    launcher.send_signal(number)
    assert launcher.wait(timeout=60) == 75
    _assert_gone(family)
    assert "Traceback" not in said.read_text()
    (line,) = [line for line in said.read_text().splitlines() if line.startswith("continue with: ")]
    assert shlex.split(line)[-4:] == ["--total_iter=1000000", "--name=long", "--resume", "runs/long"]


def test_a_killed_rank_ends_the_run_with_status_70(long_run):
    launcher, family, said = long_run
    _ranks(family)[1].kill()
    assert launcher.wait(timeout=60) == 70
    _assert_gone(family)
    # Either is noticed first: the rank that died, or the other one, which lost its connection.
    assert re.search("rank .*(SIGKILL|died|was killed)|rank 0: .*closed by peer", said.read_text())


def test_a_killed_launcher_leaves_no_rank(long_run):
    launcher, family, _ = long_run
    launcher.kill()
    _assert_gone(family)


def test_a_launcher_killed_while_its_ranks_start_leaves_none(tmp_path, demo_folder):
    environment = bare_environment(tmp_path, DS_ACCELERATOR="cpu", LOCAL_SIZE="2")
    command = [*LAUNCHER, *SMALL, "--include=localhost:0,1", f"--data_path={demo_folder}", "--batch_size=4"]
    launcher = subprocess.Popen(
        [*command, "--total_iter=1000000"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while len(_ranks(family := psutil.Process(launcher.pid).children(recursive=True))) < 2:
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    _assert_gone(family)
