"""The launcher's `--demo`: its motion and its devices."""

import shlex
from pathlib import Path

import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.request import read_launch_flags
from ds_rvqvae.launch.demo import motion_folder, with_demo, write_motion
from tests.launch.launching import has_driver


@pytest.mark.skipif(has_driver(), reason="this machine has cards")
def test_the_demo_takes_two_cpu_ranks_where_there_is_no_card(launch, cache):
    ran = launch("--demo", "--dry_run", data=None, variables={})
    assert ran.returncode == 0, ran.stderr
    command = shlex.split(ran.stdout)
    assert command[command.index("--include") + 1] == "localhost:0,1"
    assert command[command.index("--profile") + 1] == "demo"
    assert command[command.index("--name") + 1] == "demo-demo_motion-upper"
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
