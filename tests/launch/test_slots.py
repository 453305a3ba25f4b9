"""Slots of hosts as flags and hostfiles name them, CPU slots, and checks of this machine's GPUs."""

import os
from datetime import datetime

import pytest

from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.gpu.nvml import Gpu, GpuProcess
from ds_rvqvae.gpu.processes import Owners
from ds_rvqvae.gpu.snapshot import Snapshot
from ds_rvqvae.launch.slots import Cards, first_slots, parse_include, read_hostfile, slots_but, slots_of_hosts


def test_cpu_slots_without_a_number_are_numa_nodes(launch):
    assert launch("--dry_run", "--include", "localhost:0", variables={"DS_ACCELERATOR": "cpu"}).returncode == 0
    ran = launch("--dry_run", "--include", "localhost:4096", variables={"DS_ACCELERATOR": "cpu"})
    assert ran.returncode == ExitStatus.BAD_INPUT and "LOCAL_SIZE=4097" in ran.stderr


def test_include_lists():
    assert parse_include("localhost:3,1") == {"localhost": [1, 3]}
    assert parse_include("a@b:0,1") == {"a": [], "b": [0, 1]}
    assert slots_of_hosts("a@b:0", {"a": 2, "b": 4}) == {"a": [0, 1], "b": [0]}
    assert slots_of_hosts(None, {"a": 2}) == {"a": [0, 1]}
    for include in ("1,2", "0,3,4"):
        with pytest.raises(UserError, match=f"names no host; write --include localhost:{include}"):
            parse_include(include)
    for include in ("c", "a:2"):
        with pytest.raises(UserError, match=r"hostfile|slots"):
            slots_of_hosts(include, {"a": 2})


def test_what_other_flags_leave_of_hosts():
    hosts = {"a": 2, "b": 3}
    assert slots_but("a:1@b:0,2", hosts) == {"a": [0], "b": [1]}
    assert slots_but("a", hosts) == {"b": [0, 1, 2]}
    assert first_slots(2, hosts) == {"a": [0, 1], "b": [0, 1]}
    for wrong in (lambda: slots_but("a@b", hosts), lambda: slots_but("c", hosts), lambda: first_slots(3, hosts)):
        with pytest.raises(UserError, match=r"--exclude|--num_gpus"):
            wrong()


@pytest.mark.parametrize("text", ["host-a", "host-a slots=x", "a slots=1\na slots=2", "# nothing\n"])
def test_a_bad_hostfile(tmp_path, text):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match="--hostfile"):
        read_hostfile(tmp_path / "hosts")


def cards(*busy):
    """Two cards; those of `busy` run this process."""
    processes = (GpuProcess(os.getpid(), None),)
    gpus = [
        Gpu(
            *(index, "RTX 4090", f"GPU-{index}", f"0000:0{index}:00.0", 0, 24 << 30, 0),
            processes if index in busy else (),
        )
        for index in (0, 1)
    ]
    owners = Owners().look_up([os.getpid()])
    return Cards(Snapshot(datetime.now(), "550.54.14", "12.4", gpus, [0, 1], owners))


def test_a_missing_card_names_those_there_are_and_what_fits():
    with pytest.raises(UserError) as error:
        cards().check_there([1, 2, 3], "--include")
    assert error.value.status == ExitStatus.BAD_INPUT
    text = str(error.value)
    assert "no GPU 2, 3" in text and "0 (RTX 4090), 1 (RTX 4090)" in text and "--include localhost:0,1" in text


def test_a_busy_card_is_a_warning_and_a_refusal_where_idleness_is_required():
    assert cards().warnings([1]) == []
    assert "GPU 0 is included" in cards().warnings([0, 1])[0]
    (warning,) = cards(0).warnings([1])
    assert f"process {os.getpid()} (" in warning
    cards(1).require_idle([0])
    with pytest.raises(UserError, match=f"GPU 0 is not idle: .* process {os.getpid()}") as error:
        cards(0).require_idle([0])
    assert error.value.status == ExitStatus.CARD_NOT_IDLE
    with pytest.raises(UserError, match="no GPU 7") as error:
        cards().require_idle([7])
    assert error.value.status == ExitStatus.BAD_INPUT
