"""The launcher's checks before a rank starts, on eight RTX 4090s that the stand-in simulates."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.gpu.nvml import Gpu, GpuSlice
from ds_rvqvae.gpu.snapshot import Snapshot
from ds_rvqvae.host import Host
from ds_rvqvae.launch.hosts import Ranks
from ds_rvqvae.launch.preflight import Room, check_machine
from ds_rvqvae.launch.slots import Cards
from ds_rvqvae.process.terminal import PLAIN
from ds_rvqvae.process.torch_build import Build

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
ROOMY = Host(256 * GIB, "available on this machine", 128 * GIB, 128 * GIB, None, False)
CUDA_12 = Build("2.13.0+cu128", "12.8")


@pytest.fixture
def launch(stand_in, torch_with_cuda, demo_folder, tmp_path):
    """A dry run of the launcher before the stand-in's cards."""
    here = tmp_path / "here"
    here.mkdir()

    def run(*flags, **variables):
        line = [sys.executable, ROOT / "launch" / "train_8x4090.py", "--dry_run", "--data_path", demo_folder, *flags]
        unset = ("DS_ACCELERATOR", "LOCAL_SIZE", "OMP_NUM_THREADS")
        known = {name: value for name, value in stand_in.environment.items() if name not in unset}
        variables = {"PYTHONPATH": str(torch_with_cuda), **variables}
        done = subprocess.run(line, cwd=here, env={**known, **variables}, text=True, capture_output=True, timeout=60)
        assert list(here.iterdir()) == []
        return done

    return run


_BESIDE = ("warning: the global batch", "reading ", "checking ", "still ")
"""Beginnings of lines that a slow machine may print beside an error."""


def refusal(done, status):
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if not line.startswith(_BESIDE)]
    assert done.stdout == "" and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def found(done, topic):
    """The lines of a dry run's checks on a topic."""
    assert done.returncode == 0, done.stderr
    checks = done.stderr.split("checks\n")[1]
    return [line.strip() for line in checks.splitlines() if line.startswith(f"  {topic} ")]


def test_all_cards_but_some_and_the_first_ones(launch):
    for flags, include in ((["--exclude", "localhost:0,5"], "1,2,3,4,6,7"), (["--num_gpus", "3"], "0,1,2")):
        done = launch(*flags)
        assert done.returncode == 0, done.stderr
        assert f"--include localhost:{include} " in done.stdout
    assert "--exclude localhost:8" in refusal(launch("--exclude", "localhost:8"), 2)
    assert "no GPU 8" in refusal(launch("--num_gpus", "9"), 2)


def test_eight_idle_cards(launch):
    done = launch("--master_port", "29123")
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout)
    assert done.stdout.count("\n") == 1 and command[1:3] == ["-m", "deepspeed.launcher.runner"]
    machine = [*found(done, "host memory"), *found(done, "/dev/shm")]  # of where the test runs
    rest = [line for line in done.stderr.split("plan of ")[1].splitlines() if line.strip() not in machine]
    assert not [line for line in rest if "warning: " in line]
    assert "plan of baseline-demo-upper\n  7 GPUs, each with 80 windows of 128 frames x 78 columns\n" in done.stderr
    assert "17,688,270 trainable parameters" in done.stderr
    topics = ["GPUs", "GPU 0", "driver", "GPU memory", "host memory", "pinned memory", "/dev/shm", "master port"]
    assert [len(found(done, topic)) for topic in topics] == [1] * len(topics)
    assert found(done, "GPU 0")[0].endswith("left out, and idle")
    assert found(done, "master port")[0].endswith("29123: free")
    assert "23.56 GiB of 23.56 GiB" in found(done, "GPU memory")[0]


def test_cards_whose_names_are_no_utf8(launch, stand_in):
    stand_in.play(*(f"{index} name Tesla \udcb5V" for index in range(8)))
    assert found(launch(), "GPUs") == ["GPUs           GPU 1, 2, 3, 4, 5, 6, 7: Tesla \ufffdV"]


def test_a_part_of_a_body_repeats_no_finding(launch):
    done = launch("--body_part", "upper,hands")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2
    assert done.stderr.count("plan of upper\n") == done.stderr.count("plan of hands\n") == 1
    assert done.stderr.count("\n  driver ") == 1 and done.stderr.count("\n  GPU memory ") == 2


def test_a_full_card_is_named_with_who_fills_it(launch, stand_in):
    stand_in.play("3 used 21697134592", f"3 process {os.getpid()} 21697134592")
    error = refusal(launch("--profile", "large", "--batch_size", "320"), ExitStatus.BAD_INPUT)
    assert "GPU 3 has 3.36 GiB free of 23.56 GiB" in error
    assert f"so others must free some: 20.2 GiB in use; process {os.getpid()} (" in error
    assert "--auto_batch_size" in error and "--include localhost:1,2,4,5,6,7" in error
    # The suggestion fits, and has the same global batch.
    offer = error.split(": ")[-1].split(",")[0].split()
    assert offer == ["--batch_size", "160", "--gradient_accumulation_steps", "2"]
    smaller = launch("--profile", "large", *offer)
    assert "GPU 3 is not idle: 20.2 GiB in use" in found(smaller, "GPUs")[1]
    assert "3.36 GiB of 23.56 GiB on GPU 3" in found(smaller, "GPU memory")[0]


def test_with_auto_batch_size_a_full_card_is_a_warning_until_not_one_window_fits(launch, stand_in):
    stand_in.play("3 used 21697134592")
    (line,) = found(launch("--profile", "large", "--batch_size", "320", "--auto_batch_size"), "GPU memory")
    assert "warning: GPU 3 has 3.36 GiB free" in line and line.endswith(
        "--auto_batch_size searches for a batch that fits"
    )
    stand_in.play("3 used 24500000000")
    error = refusal(launch("--profile", "large", "--auto_batch_size"), ExitStatus.BAD_INPUT)
    assert "not even one window fits" in error


def test_a_batch_too_large_for_an_empty_card(launch):
    flags = ("--profile", "large", "--gradient_checkpointing", "off")
    error = refusal(launch(*flags, "--batch_size", "40000"), ExitStatus.BAD_INPUT)
    assert "GPU 1 has 23.56 GiB free of 23.56 GiB" in error and "leave" not in error and "--include" not in error
    largest = int(error.split("that fits is ")[1].split(":")[0])
    assert launch(*flags, "--batch_size", str(largest)).returncode == 0
    refusal(launch(*flags, "--batch_size", str(largest + 1)), ExitStatus.BAD_INPUT)


def test_gpu_0_busy_is_a_warning_and_exit_3_where_it_is_to_be_idle(launch, stand_in):
    stand_in.play(f"0 process {os.getpid()} 5368709120", "0 used 5368709120")
    lines = found(launch(), "GPUs")
    assert f"warning: GPU 0 is not idle: 5.0 GiB in use; process {os.getpid()} (" in lines[1]
    assert "GPU 0 is not idle" in refusal(launch("--require_idle"), ExitStatus.CARD_NOT_IDLE)
    # Problems of the run itself come first, except those of the GPU that must be idle.
    stand_in.play("0 used 5368709120", "3 used 24500000000")
    assert "GPU 3 has" in refusal(launch("--require_idle"), ExitStatus.BAD_INPUT)
    assert "GPU 3 is not idle" in refusal(launch("--require_idle", "3"), ExitStatus.CARD_NOT_IDLE)


def test_gpu_0_included(launch):
    (_, warning) = found(launch("--include", "localhost:0,1"), "GPUs")
    assert "warning: GPU 0 is included" in warning


def test_drivers_old_and_missing(launch, stand_in):
    stand_in.play("driver 470.256.02", "cuda 11040")
    error = refusal(launch(), ExitStatus.BAD_INPUT)
    assert "470.256.02 supports CUDA up to 11.4, but torch 2.13.0+cu128 is built for CUDA 12.8" in error
    assert error.endswith(": update the driver to 525 or newer")
    (why,) = [line for line in launch("--demo").stderr.splitlines() if "the demo trains on CPU ranks" in line]
    assert why.endswith("is built for CUDA 12.8, the driver supports 11.4: update the driver to 525 or newer")
    stand_in.play("cuda 12040")
    assert "enough within one major version" in found(launch(), "driver")[0]
    stand_in.play("cuda 13000")
    assert found(launch(), "driver")[0].endswith("built for CUDA 12.8")
    stand_in.play("init 9")
    assert "no NVIDIA driver answers" in refusal(launch("--require_idle"), ExitStatus.NO_DRIVER)


def test_a_torch_outside_the_tested_range(launch, stand_in, torch_with_cuda):
    file = torch_with_cuda / "torch" / "version.py"
    text = file.read_text()
    file.write_text(text.replace("2.13.0", "2.14.1"))
    done = launch()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: torch 2.14.1+cu128 is newer than this version") == 1
    file.write_text(text.replace("2.13.0", "2.5.1"))
    too_old = refusal(launch(), ExitStatus.BAD_INPUT)
    assert too_old.startswith("error: torch 2.5.1+cu128 in ") and "was tested with torch 2.6 to 2.13" in too_old
    line = [sys.executable, "-m", "ds_rvqvae.cli", "encode", "a_tokenizer", "a_clip.bvh", "--out", "codes"]
    variables = {**stand_in.environment, "PYTHONPATH": f"{torch_with_cuda}:{ROOT}"}
    ran = subprocess.run(line, cwd=torch_with_cuda, env=variables, text=True, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (ExitStatus.BAD_INPUT, f"{too_old}\n")
    # A command that does not compute with torch runs with any.
    line[3:] = ["profile", "validate", "demo"]
    ran = subprocess.run(line, cwd=torch_with_cuda, env=variables, text=True, capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_a_lost_card(launch, stand_in):
    stand_in.play("2 error 15")
    error = refusal(launch(), ExitStatus.BAD_INPUT)
    assert "GPU 2 cannot be read" in error and "--include localhost:1,3,4,5,6,7" in error
    assert launch("--include", "localhost:1,3").returncode == 0


def test_a_card_in_slices_has_the_memory_of_its_first(launch, stand_in):
    stand_in.play("2 slice 1073741824 10737418240")
    done = launch()
    assert "warning: GPU 2 is split into MIG slices" in found(done, "GPUs")[1]
    assert "9.00 GiB of 10.00 GiB on GPU 2" in found(done, "GPU memory")[0]


def test_memory_that_the_driver_does_not_tell(launch, stand_in):
    stand_in.play("2 memory !3", "2 memory_v2 !3")
    (line,) = found(launch(), "GPU memory")
    assert "warning: " in line and "the driver does not report the memory of GPU 2" in line


def test_cpu_slots_have_no_cards_to_look_at(launch):
    done = launch("--include", "localhost:0,1", LOCAL_SIZE="2")
    assert "plan of baseline-demo-upper\n  2 CPU ranks" in done.stderr and "CUDA, NCCL" not in done.stderr
    topics = ["GPUs", "driver", "GPU memory", "/dev/shm"]
    assert [found(done, topic) for topic in topics] == [[]] * len(topics)
    assert "2 ranks of about" in found(done, "host memory")[0]


def test_ranks_on_other_hosts_are_not_looked_at(launch, tmp_path):
    (tmp_path / "hosts").write_text("one slots=4\ntwo slots=4\n")
    flags = ("--hostfile", tmp_path / "hosts", "--launcher", "openmpi")
    done = launch(*flags)
    assert "on other hosts" in found(done, "GPUs")[0] and found(done, "host memory") == []
    assert "8 GPUs, each" in done.stderr and found(done, "master port")[0].endswith(
        "29500: on rank 0's host, not checked"
    )


def check(
    host=ROOMY,
    build=CUDA_12,
    *,
    profile="baseline",
    overrides=(),
    used=0,
    slots=(1, 2),
    cpu=False,
    hosts=1,
    dry_run=False,
):
    """The findings' texts by topic, on cards with `used` bytes taken."""
    names = ["localhost", *(f"host-{number}" for number in range(1, hosts))]
    ranks = Ranks(None, {name: list(slots) for name in names}, list(slots), 29500, len(slots) if cpu else None, True)
    gpus = [Gpu(index, "RTX 4090", f"GPU-{index}", f"0000:0{index}:00.0", used, 24 * GIB, 0) for index in range(3)]
    cards = None if cpu else Cards(Snapshot(datetime.now(), "550.54.14", "12.4", gpus, [0, 1, 2], {}))
    report = check_machine(load_profile(profile, overrides), 78, ranks, cards, dry_run=dry_run, host=host, build=build)
    return {finding.topic: PLAIN.text([finding.words()]) for finding in report.findings}


def test_every_batch_that_is_offered_fits():
    refused = 0
    for used in range(18 * GIB, 22 * GIB, GIB // 16):
        try:
            check(profile="large", used=used, overrides=["train_micro_batch_size_per_gpu=320"])
        except UserError as error:
            if "not even one window" in str(error):
                continue
            refused += 1
            flags = str(error).split(": ")[-1].split(",")[0]
            size, *accumulation = re.findall(r"\d+", flags)
            overrides = [f"train_micro_batch_size_per_gpu={size}"]
            overrides += [f"gradient_accumulation_steps={steps}" for steps in accumulation]
            assert "planned" in check(profile="large", used=used, overrides=overrides)["GPU memory"]
    assert refused > 3


def test_a_torch_without_cuda_starts_no_ranks_on_cards():
    cpu_build = Build("2.13.0+cpu", None)
    with pytest.raises(UserError, match=r"torch 2\.13\.0\+cpu is built without CUDA.* for CUDA 12\.4.*LOCAL_SIZE=8"):
        check(build=cpu_build)
    assert "warning: torch 2.13.0+cpu is built without CUDA" in check(build=cpu_build, dry_run=True)["driver"]


def test_host_memory():
    assert "warning" not in check(replace(ROOMY, memory_bytes=7 * GIB))["host memory"]
    low = replace(ROOMY, memory_bytes=5 * GIB, memory_limit="left under the control group's memory limit")
    line = check(low)["host memory"]
    assert "warning: 2 ranks of about 3." in line and line.endswith(
        "5.00 GiB is left under the control group's memory limit"
    )
    assert "warning" not in check(low, cpu=True)["host memory"]
    with pytest.raises(UserError, match=r"host memory: 2 ranks need 1\.00 GiB or more, but 512\.0 MiB is available"):
        check(replace(ROOMY, memory_bytes=GIB // 2))
    with pytest.raises(UserError, match="host memory: 2 ranks"):
        check(replace(ROOMY, memory_bytes=GIB // 4), cpu=True)


def test_a_torch_that_tells_nothing_is_a_warning():
    assert "is not known" in check(build=Build("", None))["driver"]


@pytest.mark.parametrize(
    ("cuda", "serves", "usable"),
    [
        (None, "12.4", False),
        ("12.8", "12.4", True),
        ("13.0", "12.4", False),
        ("12.8", "13.0", True),
        ("13.0", "", True),
    ],
)
def test_the_demo_takes_cards_that_torch_can_use(cuda, serves, usable):
    assert Build("2.13.0", cuda).can_use_cards(serves) is usable


def test_shared_memory_of_a_container():
    docker = replace(ROOMY, shm_total_bytes=64 << 20, shm_free_bytes=64 << 20)
    line = check(docker)["/dev/shm"]
    assert "warning: 64.0 MiB of 64.0 MiB free" in line and "--shm-size=1g" in line
    assert check(docker, slots=(1,))["/dev/shm"].endswith("not used by one rank")
    assert "killed runs" in check(replace(ROOMY, shm_free_bytes=1 << 20))["/dev/shm"]
    assert "warning: there is no /dev/shm" in check(replace(ROOMY, shm_total_bytes=None))["/dev/shm"]


def test_locked_memory_matters_between_hosts_with_infiniband():
    locked = replace(ROOMY, memlock_bytes=8 << 20)
    assert "warning" not in check(locked)["pinned memory"]
    assert "warning" not in check(locked, hosts=2)["pinned memory"]
    line = check(replace(locked, infiniband=True), hosts=2)["pinned memory"]
    assert "warning: RLIMIT_MEMLOCK is 8.0 MiB" in line and "--nccl_ib_disable" in line


def write(root, **files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used", "droppable"),
    [
        ("0::/job/step", "sys/fs/cgroup/job", "memory.max", "memory.current", "inactive_file"),
        # A container that sees its own group as the root, but is told its path on the host.
        ("0::/docker/abc", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("4:memory:/job", "sys/fs/cgroup/memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes",
         "total_inactive_file"),
    ],
)  # fmt: skip
def test_the_least_memory_that_a_control_group_leaves(tmp_path, line, folder, limit, used, droppable):
    files = {f"{folder}/{limit}": "7000000\n", f"{folder}/{used}": "5000000\n"}
    write(
        tmp_path,
        **{
            "proc/self/cgroup": f"9:name=systemd:/\n{line}\n",
            f"{folder}/memory.stat": f"anon 9\n{droppable} 400000\n{droppable.replace('inactive', 'active')} 600000\n",
        },
    )
    write(tmp_path, **files)
    host = Host.read(tmp_path)
    assert (host.memory_bytes, host.memory_limit) == (3_000_000, "left under the control group's memory limit")
    write(tmp_path, **{f"{folder}/{limit}": "max\n"})
    assert Host.read(tmp_path).memory_limit == "available on this machine"


def test_strict_overcommit_promises_no_more_than_its_limit(tmp_path):
    write(tmp_path, **{"proc/meminfo": "CommitLimit:     9000 kB\nCommitted_AS:    4000 kB\n"})
    for mode, bytes_left in (("0", None), ("2", 5000 * 1024)):
        write(tmp_path, **{"proc/sys/vm/overcommit_memory": f"{mode}\n"})
        assert (Host.read(tmp_path).memory_bytes == bytes_left) == (mode == "2")


def test_this_machine_has_memory():
    host = Host.read()
    assert 0 < host.memory_bytes < 1 << 50
    if Path("/dev/shm").is_dir():
        assert 0 <= host.shm_free_bytes <= host.shm_total_bytes


def test_slices_of_a_card_hide_its_own_memory():
    slices = (GpuSlice(0, "1g.10gb", "MIG-0", GIB, 10 * GIB),)
    gpu = Gpu(0, "H100", "GPU-0", "0000:00:00.0", 70 * GIB, 80 * GIB, None, slices=slices)
    assert Room.of(gpu).free_bytes == 9 * GIB
