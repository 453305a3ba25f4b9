"""The launcher's `--demo`: its motion, its devices, and what it prints at the end."""

import json
import os
import shlex
from pathlib import Path

import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.request import read_launch_flags
from ds_rvqvae.launch.demo import motion_folder, print_results, with_demo, write_motion
from tests.damage import DAMAGES, damage
from tests.launch.launching import has_driver


@pytest.mark.skipif(has_driver(), reason="this machine has cards")
def test_the_demo_takes_two_cpu_ranks_where_there_is_no_card(launch, cache):
    ran = launch("--demo", "--dry_run", data=None, variables={})
    assert ran.returncode == 0, ran.stderr
    command = shlex.split(ran.stdout)
    assert command[command.index("--include") + 1] == "localhost:0,1"
    assert command[command.index("--profile") + 1] == "demo"
    assert command[command.index("--name") + 1] == "demo-upper"
    assert Path(command[command.index("--data_path") + 1]).is_relative_to(cache)


def demo_flags(*flags):
    return with_demo(read_launch_flags(["--demo", *flags]))


def test_the_demo_takes_as_many_cpu_slots_as_the_environment_has(monkeypatch, cache):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_SIZE", "3")
    flags = demo_flags()
    assert flags.options.include == "localhost:0,1,2" and flags.environment["LOCAL_SIZE"] == "3"
    assert flags.keys["data_path"] == str(cache / "demo_motion") == str(motion_folder())


def test_what_the_user_names_stays(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    flags = demo_flags("--num_gpus=4", "--data_path=/some/motion")
    assert flags.options.include is None and flags.options.num_gpus == 4
    assert flags.keys["data_path"] == "/some/motion" and "LOCAL_SIZE" not in flags.environment


def test_motion_is_written_where_the_run_reads_it_and_once(tmp_path):
    write_motion(DataConfig(path=str(tmp_path / "other")))
    assert not motion_folder().exists() and not (tmp_path / "other").exists()
    write_motion(DataConfig(path=str(motion_folder())))
    written = {file: file.stat().st_mtime_ns for file in motion_folder().rglob("*") if file.is_file()}
    assert len([file for file in written if file.suffix == ".npz"]) == 12
    write_motion(DataConfig(path=str(motion_folder())))
    assert {file: file.stat().st_mtime_ns for file in motion_folder().rglob("*") if file.is_file()} == written


def scores(l1):
    row = {"levels": 1, "bits_per_second": 60.0, "l1": l1, "angle_error_deg": 2.0, "velocity_error": 0.5}
    counts = {"split": "test", "clips": 3, "frames": 1234, "usage": [0.5], "perplexity": [7.0], "by_levels": [row]}
    return {**row, **counts}


def test_results_are_scores_before_and_after_the_newest_picture_and_where_to_look(tmp_path, capsys):
    evaluation = tmp_path / "run" / "eval"
    evaluation.mkdir(parents=True)
    for name, l1 in (("scores", 0.25), ("untrained", 0.875)):
        (evaluation / f"{name}.json").write_text(json.dumps(scores(l1)))
    print_results(tmp_path / "run")
    assert "picture" not in capsys.readouterr().out
    for name, seconds in (("reconstruction_a.png", 2000), ("reconstruction_b.png", 1000)):
        (evaluation / name).touch()
        os.utime(evaluation / name, (seconds, seconds))
    print_results(tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test: 3 clips, 1,234 frames"
    assert lines[2].split()[-2:] == ["0.8750", "0.2500"]
    run = tmp_path / "run"
    assert lines[-3:] == [
        f"picture: {evaluation / 'reconstruction_a.png'}",
        f"run: {run}",
        f"tensorboard --logdir {run / 'tensorboard'} --host localhost",
    ]


@pytest.mark.parametrize("kind", DAMAGES)
def test_scores_that_cannot_be_read_are_said(tmp_path, capsys, kind):
    evaluation = tmp_path / "run" / "eval"
    evaluation.mkdir(parents=True)
    for name in ("scores", "untrained"):
        (evaluation / f"{name}.json").write_text(json.dumps(scores(0.5)))
    damage(evaluation / "untrained.json", kind)
    print_results(tmp_path / "run")
    printed = capsys.readouterr()
    assert f"warning: {evaluation}: the scores cannot be read: " in printed.err
    assert "ds-rvqvae evaluate" in printed.err and f"run: {tmp_path / 'run'}" in printed.out
