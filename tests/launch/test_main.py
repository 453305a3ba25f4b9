"""The launcher as a user meets it: its checks, its command line, its exit statuses."""

import os
import shlex
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from ds_rvqvae.config.launch_flags import DEEPSPEED_SWITCHES, DEEPSPEED_VALUES
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.gpu.nvml import Gpu, GpuProcess, NoDriverError, list_gpus
from ds_rvqvae.gpu.processes import Owners
from ds_rvqvae.gpu.snapshot import Snapshot
from ds_rvqvae.launch.slots import Cards, first_slots, parse_include, read_hostfile, slots_but, slots_of_hosts

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "train_8x4090.py"
CPU = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "8"}


def has_driver() -> bool:
    try:
        return bool(list_gpus())
    except NoDriverError:
        return False


def environment(**variables):
    """This process's variables without what says where ranks run."""
    unset = ("DS_ACCELERATOR", "LOCAL_SIZE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return {**{name: value for name, value in os.environ.items() if name not in unset}, **variables}


@pytest.fixture
def launch(tmp_path, demo_folder):
    """Runs the launcher in an empty folder; demo motion and eight CPU slots unless told otherwise."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(*flags, data=demo_folder, variables=CPU):
        line = [sys.executable, str(SCRIPT), *flags]
        if data is not None:
            line += ["--data_path", str(data)]
        return subprocess.run(
            line, cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=60
        )

    run.folder = folder
    return run


def test_a_dry_run_prints_the_whole_command_on_one_line(launch, demo_folder):
    ran = launch("--dry_run", "--profile", "wide", "--width", "256", "--name", "my run", "--master_port", "29123")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n") == 1
    command = shlex.split(ran.stdout)
    assert Path(command[0]).name == "deepspeed" and Path(command[0]).is_file()
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


def test_several_body_parts_are_a_command_each(launch):
    ran = launch("--dry_run", "--body_part", "upper,hands,lower_trans", "--name", "mine", "--width", "256")
    assert ran.returncode == 0, ran.stderr
    commands = [shlex.split(line) for line in ran.stdout.splitlines()]
    for part, command in zip(("upper", "hands", "lower_trans"), commands, strict=True):
        training = command[command.index("ds_rvqvae.train") + 1 :]
        given = dict(zip(training[::2], training[1::2], strict=True))
        assert given["--body_part"] == given["--name"] == part
        assert (given["--out"], given["--width"]) == ("runs/mine", "256")
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
    assert variables["NCCL_IB_DISABLE"] == variables["NCCL_P2P_DISABLE"] == "1"
    assert int(variables["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    command = shlex.split(ran.stdout)
    assert "--enable_each_rank_log=logs" in command and "--bind_cores_to_rank" in command
    assert command.index("--bind_cores_to_rank") < command.index("--module")


def test_each_start_finds_a_port_of_its_own(launch):
    commands = [shlex.split(launch("--dry_run").stdout) for _ in range(2)]
    ports = {command[command.index("--master_port") + 1] for command in commands}
    assert len(ports) == 2


def test_a_batch_larger_than_the_data_is_a_warning(launch):
    ran = launch("--dry_run", "--batch_size", "5000")
    assert ran.returncode == 0
    assert "warning: the global batch of 35,000 is larger than" in ran.stderr


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


def test_a_taken_port(launch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = launch("--dry_run", "--master_port", str(port))
    assert ran.returncode == ExitStatus.BAD_INPUT
    assert f"--master_port {port}: address already in use" in ran.stderr


def test_an_existing_run_needs_resume(launch):
    (launch.folder / "runs" / "mine").mkdir(parents=True)
    ran = launch("--dry_run", "--name", "mine")
    assert ran.returncode == ExitStatus.BAD_INPUT and "--resume" in ran.stderr
    assert launch("--dry_run", "--name", "mine", "--resume").returncode == 0


@pytest.mark.skipif(has_driver(), reason="this machine has cards")
def test_cards_on_a_machine_without_a_driver_are_exit_4_but_bad_input_comes_first(launch):
    ran = launch("--dry_run", variables={})
    assert ran.returncode == ExitStatus.NO_DRIVER
    assert "--demo" in ran.stderr
    assert launch("--dry_run", "--width", "0", variables={}).returncode == ExitStatus.BAD_INPUT
    assert launch("--dry_run", "--name", "a/b", variables={}).returncode == ExitStatus.BAD_INPUT


@pytest.mark.skipif(has_driver(), reason="this machine has cards")
def test_the_demo_takes_two_cpu_ranks_where_there_is_no_card(launch, cache):
    ran = launch("--demo", "--dry_run", data=None, variables={})
    assert ran.returncode == 0, ran.stderr
    command = shlex.split(ran.stdout)
    assert command[command.index("--include") + 1] == "localhost:0,1"
    assert command[command.index("--profile") + 1] == "demo"
    assert command[command.index("--name") + 1] == "demo-upper"
    assert Path(command[command.index("--data_path") + 1]).is_relative_to(cache)


def test_cpu_slots_without_a_number_are_numa_nodes(launch):
    assert launch("--dry_run", "--include", "localhost:0", variables={"DS_ACCELERATOR": "cpu"}).returncode == 0
    ran = launch("--dry_run", "--include", "localhost:4096", variables={"DS_ACCELERATOR": "cpu"})
    assert ran.returncode == ExitStatus.BAD_INPUT and "LOCAL_SIZE=4097" in ran.stderr


@pytest.mark.parametrize(
    ("flags", "include"),
    [
        (["--exclude", "localhost:0,3"], "localhost:1,2,4,5,6,7"),
        (["-e", "localhost:7"], "localhost:0,1,2,3,4,5,6"),
        (["--num_gpus", "2"], "localhost:0,1"),
        (["--num_accelerators=1", "--quiet"], "localhost:0"),
    ],
)
def test_slots_chosen_as_deepspeed_lets_one(launch, flags, include):
    ran = launch("--dry_run", *flags)
    assert ran.returncode == 0, ran.stderr
    command = shlex.split(ran.stdout)
    assert command[command.index("--include") + 1] == include
    assert ("--quiet" in command) == ("--quiet" in flags)
    assert not {"--exclude", "-e", "--num_gpus"} & set(command)


@pytest.mark.parametrize(
    ("flags", "include"),
    [
        (["--exclude", "host-a:0@host-b"], "host-a:1"),
        (["--num_gpus", "1"], "host-a:0@host-b:0"),
        (["--num_gpus", "2", "--num_nodes", "1"], "host-a:0,1"),
    ],
)
def test_slots_of_hosts_chosen_as_deepspeed_lets_one(launch, flags, include):
    (launch.folder / "hosts").write_text("host-a slots=2\nhost-b slots=1\n")
    at = ["--hostfile", "hosts", "--no_ssh", "--master_addr", "127.0.0.1", "--node_rank", "0"]
    ran = launch("--dry_run", *at, *flags)
    assert ran.returncode == 0, ran.stderr
    command = shlex.split(ran.stdout)
    assert command[command.index("--include") + 1] == include
    assert not any(word.startswith(("--num_nodes", "--num_gpus", "--exclude")) for word in command)


def test_two_hosts_started_one_by_one(launch):
    (launch.folder / "hosts").write_text("# two nodes\nhost-a slots=2\nhost-b slots=1\n")
    flags = ["--dry_run", "--hostfile", "hosts", "--no_ssh", "--master_addr", "127.0.0.1"]
    for rank in ("0", "1"):
        ran = launch(*flags, "--node_rank", rank)
        assert ran.returncode == 0, ran.stderr
        command = shlex.split(ran.stdout)
        assert "--include" not in command
        assert {"--hostfile=hosts", f"--node_rank={rank}", "--no_ssh"} <= set(command)
        assert command[command.index("--master_port") + 1] == "29500"
    ran = launch(*flags, "--node_rank", "2")
    assert ran.returncode == ExitStatus.BAD_INPUT and "--node_rank, from 0 to 1" in ran.stderr


def test_the_shell_script_passes_flags_on_from_any_folder(launch, demo_folder):
    line = ["bash", ROOT / "launch" / "train_8x4090.sh", "--dry_run", "--data_path", demo_folder]
    variables = environment(**CPU, VIRTUAL_ENV=sys.prefix)
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


def test_include_lists():
    assert parse_include("localhost:3,1") == {"localhost": [1, 3]}
    assert parse_include("a@b:0,1") == {"a": [], "b": [0, 1]}
    assert slots_of_hosts("a@b:0", {"a": 2, "b": 4}) == {"a": [0, 1], "b": [0]}
    assert slots_of_hosts(None, {"a": 2}) == {"a": [0, 1]}
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
