"""The launcher as a user sees it: its checks, its command line, its exit statuses."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ds_rvqvae import cli
from ds_rvqvae.config.launch_flags import DEEPSPEED_SWITCHES, DEEPSPEED_VALUES
from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.launch.main import main
from ds_rvqvae.process.interfaces import usable_interfaces
from tests.launch.launching import CPU, ROOT, SCRIPT, environment


def test_a_dry_run_prints_the_whole_command_on_one_line(launch, demo_folder):
    ran = launch("--dry_run", "--profile", "wide", "--width", "256", "--name", "my run", "--master_port", "29123")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n") == 1
    command = shlex.split(ran.stdout)
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert command[command.index("--include") + 1] == "localhost:1,2,3,4,5,6,7"
    assert command[command.index("--master_port") + 1] == "29123"
    module = command.index("--module")
    assert command[module + 1] == "ds_rvqvae.train"
    expected = [
        "--profile",
        "wide",
        "--out",
        "runs",
        "--name",
        "my run",
        "--width",
        "256",
        "--data_path",
        str(demo_folder),
    ]
    assert command[module + 2 :] == expected
    assert list(launch.folder.iterdir()) == []


def test_the_launcher_has_two_names(demo_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, value in {**CPU, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    flags = ["--dry_run", "--include", "localhost:0,1", "--master_port", "29123", "--data_path", str(demo_folder)]
    said = []
    for call in (lambda: main(flags), lambda: cli.main(["train", *flags])):
        assert call() == ExitStatus.DONE
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "--master_port 29123" in said[0]
    monkeypatch.delenv("DS_RVQVAE_DATA", raising=False)
    assert cli.main(["train"]) == main([]) == ExitStatus.BAD_INPUT
    refused = capsys.readouterr().err.splitlines()
    assert refused[0] == refused[1] and refused[0].startswith("error: no motion to read: give --data_path")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_command_that_cannot_be_printed_is_an_error_of_a_dry_run(tmp_path, demo_folder):
    line = [sys.executable, str(SCRIPT), "--dry_run", "--data_path", str(demo_folder)]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            line, cwd=tmp_path, env=environment(**CPU), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ran.returncode == ExitStatus.BAD_INPUT
    assert ran.stderr.splitlines()[-1] == "error: standard output: cannot be written: No space left on device"


def test_several_body_parts_are_a_command_each(launch):
    parts = ("upper", "hands", "lower_trans", "face")
    mirror = "rvqvae.data.augment.mirror"
    line = ("--profile=best", "--body_part", ",".join(parts), "--name", "mine", "--width", "256", f"--set={mirror}=0.5")
    ran = launch("--dry_run", *line)
    assert ran.returncode == 0, ran.stderr
    # A setting that a part cannot have is reported for that part only.
    (left_out,) = [line for line in ran.stderr.splitlines() if "left out of the profile" in line]
    assert left_out.startswith("face: ") and f"{mirror}, because expressions " in left_out
    commands = [shlex.split(line) for line in ran.stdout.splitlines()]
    for part, command in zip(parts, commands, strict=True):
        training = command[command.index("ds_rvqvae.train") + 1 :]
        given = dict(zip(training[::2], training[1::2], strict=True))
        assert given["--body_part"] == given["--name"] == part
        assert (given["--out"], given["--width"]) == ("runs/mine", "256")
        assert given["--set"] == f"{mirror}={0.0 if part == 'face' else 0.5}"
    assert ran.stderr.count("environment: ") == 1
    assert list(launch.folder.iterdir()) == []


def test_a_run_itself_takes_one_body_part(launch, demo_folder):
    line = [sys.executable, "-m", "ds_rvqvae.train", "--body_part", "upper,hands", "--data_path", str(demo_folder)]
    ran = subprocess.run(line, cwd=launch.folder, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert ran.returncode == ExitStatus.BAD_INPUT and ran.stderr.count("\n") == 1
    assert "launch/train_8x4090.sh trains several" in ran.stderr
    assert list(launch.folder.iterdir()) == []


def test_flags_for_nccl_and_deepspeed_reach_the_ranks(launch):
    ran = launch(
        "--dry_run", "--nccl_debug", "--nccl_socket_ifname", "--nccl_ib_disable", "--nccl_p2p_disable",
        "--enable_each_rank_log", "logs", "--bind_cores_to_rank", "--include", "localhost:0,2",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said = ran.stderr.split("environment: ")[1].splitlines()[0]
    variables = dict(word.split("=", 1) for word in shlex.split(said))
    assert variables["NCCL_DEBUG"] == "INFO"
    assert variables["NCCL_SOCKET_IFNAME"] == "^docker0,lo"
    assert variables["GLOO_SOCKET_IFNAME"] in usable_interfaces() and variables["GLOO_SOCKET_IFNAME"] != "lo"
    assert variables["NCCL_IB_DISABLE"] == variables["NCCL_P2P_DISABLE"] == "1"
    assert int(variables["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    command = shlex.split(ran.stdout)
    assert "--enable_each_rank_log=logs" in command and "--bind_cores_to_rank" in command
    assert command.index("--bind_cores_to_rank") < command.index("--module")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--widht", "3"], ["--widht", "--width"]),
        (["--profile", "basline"], ["basline", "baseline"]),
        (["--window_size", "130"], ["window_size", "130", "128 or 132"]),
        (["--window_size", "4096"], ["4096"]),
        (["--set", "rvqvae.model.widht=3"], ["rvqvae.model.widht", "width"]),
        (["--body_part", "uper"], ["uper", "upper"]),
        (["--width", "wide"], ["rvqvae.model.width", "integer"]),
        (["--include", "localhost:1,9"], ["no CPU slot 9", "--include localhost:0,1,2,3,4,5,6,7"]),
        (["--include", "localhost:1,x"], ["--include localhost:1,x", "HOST:SLOT"]),
        (["--include", "localhost:1,1"], ["twice"]),
        (["--include", "worker-1:0"], ["worker-1", "localhost"]),
        (["--set", "train_batch_size=100"], ["train_batch_size", "100"]),
        (["--master_port", "70000"], ["--master_port 70000"]),
        (["--master_port", "x"], ["--master_port"]),
        (["--name", "a/b"], ["--name", "slashes"]),
        (["--name", ".."], ["--name"]),
        (["--out", "/proc/self/runs"], ["/proc/self"]),
        (["--hostfile", "missing"], ["--hostfile missing"]),
        (["--num_nodes", "2"], ["--hostfile"]),
        (["--no_ssh"], ["--hostfile"]),
        (["--exclude", "localhost:0", "--include", "localhost:1"], ["--include and --exclude", "one of them"]),
        (["--num_gpus", "2", "--exclude", "localhost:0"], ["--exclude and --num_gpus", "one of them"]),
        (["--num_gpus", "0"], ["--num_gpus 0", "1 or more"]),
        (["--num_gpus", "9"], ["no CPU slot 8"]),
        (["--exclude", "localhost:8"], ["--exclude localhost:8", "8 slots"]),
        (["--exclude", "localhost"], ["--exclude localhost", "leaves no slot"]),
        (["--exclude", "0"], ["--exclude 0", "without a --hostfile"]),
        (["--include", "0"], ["--include 0", "write --include localhost:0"]),
        (["--nccl_debug", "LOUD"], ["--nccl_debug", "INFO"]),
        (["--require_idle", "x"], ["--require_idle x"]),
        (["--batch_size", "0"], ["train_micro_batch_size_per_gpu"]),
        (["--init_from", "nowhere"], ["--init_from", "nowhere", "config.json is missing"]),
        (["--body_part", "upper,hans"], ["hans", "did you mean 'hands'?"]),
        (["--body_part", "upper,"], ["no body part ''"]),
        (["--body_part", "upper,whole"], ["--body_part upper,whole", "spine1"]),
        (["--body_part", "upper,hands", "--width", "0"], ["rvqvae.model.width"]),
        (["--body_part", "upper,hands", "--resume", "global_step1"], ["a checkpoint of one part"]),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2_and_leaves_nothing(launch, flags, words):
    # --dry_run, so that a check that lets a mistake pass does not start a training.
    ran = launch("--dry_run", *flags)
    assert ran.returncode == ExitStatus.BAD_INPUT, ran.stdout + ran.stderr
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr
    assert all(word in ran.stderr for word in words), ran.stderr
    assert list(launch.folder.iterdir()) == []


def test_no_data_names_the_ways_to_give_some(launch):
    ran = launch("--dry_run", data=None)
    assert ran.returncode == ExitStatus.BAD_INPUT
    assert "--data_path" in ran.stderr and "--demo" in ran.stderr and "DS_RVQVAE_DATA" in ran.stderr


def test_data_from_the_environment(launch, demo_folder):
    ran = launch("--dry_run", data=None, variables={**CPU, "DS_RVQVAE_DATA": str(demo_folder)})
    assert ran.returncode == 0
    assert shlex.split(ran.stdout)[-2:] == ["--data_path", str(demo_folder)]


def test_the_shell_script_passes_flags_on_from_any_folder(launch, demo_folder):
    line = ["bash", ROOT / "launch" / "train_8x4090.sh", "--dry_run", "--data_path", demo_folder]
    left_over = {"PYTHONINSPECT": "1", "PYTHONHOME": "/nowhere", "CDPATH": str(ROOT)}
    variables = environment(**CPU, VIRTUAL_ENV=sys.prefix, **left_over)
    ran = subprocess.run(line, cwd=launch.folder, env=variables, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert shlex.split(ran.stdout)[-2:] == ["--data_path", str(demo_folder)]


def test_help_answers_without_torch():
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code and not {'torch', 'deepspeed'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, SCRIPT, "--help"], capture_output=True, text=True)
    assert ran.returncode == 0 and "--require_idle" in ran.stdout, ran.stderr


def test_deepspeed_takes_every_flag_that_is_handed_through():
    from deepspeed.launcher import runner

    line = [word for name in DEEPSPEED_VALUES for word in (f"--{name}", "info" if name == "log_level" else "1")]
    args = runner.parse_args([*line, *(f"--{name}" for name in DEEPSPEED_SWITCHES), "--module", "ds_rvqvae.train"])
    assert all(getattr(args, name) is True for name in DEEPSPEED_SWITCHES)
    assert all(str(getattr(args, name)) in ("1", "info") for name in DEEPSPEED_VALUES)
