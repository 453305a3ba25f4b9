"""Environment variables that other programs or runs have left over."""

import json
import os
import shutil
import subprocess
import sys

import psutil
import pytest
import torch

from ds_rvqvae.errors import UserError
from ds_rvqvae.process.interfaces import interfaces_of_one_machine
from ds_rvqvae.runs import variables
from tests.e2e.slurm import variables_of_task
from tests.ranks import ROOT

RANK = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "0", "ROLE_NAME": "x"}
RUN = {"DS_RVQVAE_RUN": "/nowhere", "DS_RVQVAE_STORE": "/nowhere", "DS_RVQVAE_HEARTBEAT": "/nowhere"}
OTHERS = {"PATH": "/bin", "RANKING": "1", "TORCH_NCCL_BLOCKING_WAIT": "1", "DS_RVQVAE_CACHE": "/cache"}


def settled(environment):
    environment = dict(environment)
    variables.settle_rank(environment)
    return environment


def test_what_the_launcher_starts_gets_nothing_of_other_ranks_and_runs():
    left = {**RANK, **TORCHRUN, **RUN, "OMPI_COMM_WORLD_LOCAL_RANK": "3", "PYTHONINSPECT": "1", "DEEPSPEED_TIMEOUT": ""}
    assert variables.without_leftovers({**OTHERS, **left}) == OTHERS
    assert variables.without_leftovers({"DEEPSPEED_TIMEOUT": "20"}) == {"DEEPSPEED_TIMEOUT": "20"}


def test_a_rank_without_a_launcher_is_a_world_of_one_and_of_no_run():
    alone = {name: value for name, value in RANK.items() if name != "RANK"}
    assert settled({**OTHERS, **alone, **TORCHRUN, **RUN, "DS_RVQVAE_LAUNCHER": str(os.getpid())}) == OTHERS
    with pytest.raises(UserError, match="RANK is set in the environment, but not LOCAL_RANK and WORLD_SIZE"):
        settled({**OTHERS, "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"})


def test_a_rank_of_our_launcher_or_of_torchrun_keeps_what_they_gave_it():
    ours = {**OTHERS, **RANK, **RUN, "DS_RVQVAE_LAUNCHER": str(os.getppid())}
    chosen = interfaces_of_one_machine(None)
    assert settled(ours) == {**ours, **chosen}
    assert settled({**OTHERS, **RANK, **TORCHRUN}) == {**OTHERS, **RANK, **TORCHRUN, **chosen}


def test_a_rank_that_srun_started_gets_its_place():
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
    left = {"LOCAL_RANK": "9", "WORLD_SIZE": "9", **TORCHRUN}
    found = settled({**OTHERS, **job, **variables_of_task(3, job), **left})
    assert [found[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["3", "1", "4"]
    assert not set(TORCHRUN) & set(found) and variables.on_several_machines(found)


def test_ranks_on_several_machines():
    for of_rank, several in (
        ({"CROSS_SIZE": "1", "MASTER_ADDR": "host"}, False),
        ({"CROSS_SIZE": "2"}, True),
        ({"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host"}, False),
        ({"LOCAL_WORLD_SIZE": "1"}, True),
        ({"MASTER_ADDR": "127.0.1.1"}, False),
        ({"MASTER_ADDR": "host"}, True),
    ):
        assert variables.on_several_machines({**RANK, **of_rank}) == several


def test_under_deepspeed_torchruns_are_left_over():
    code = "import json, os, sys; from ds_rvqvae.runs.variables import settle_rank; settle_rank(os.environ)\n"
    code += "print([name for name in os.environ if name in sys.argv])"
    # A parent whose command line is that of deepspeed's process.
    parent = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[2:]))"
    command = [sys.executable, "-c", parent, "deepspeed.launcher.launch", sys.executable, "-c", code, "RANK", *TORCHRUN]
    environment = {**os.environ, **RANK, **TORCHRUN, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "['RANK']\n"


def test_ranks_find_the_package_wherever_it_lies(tmp_path):
    code = "from ds_rvqvae.runs.variables import for_modules; print(for_modules({'PYTHONPATH': 'own'})['PYTHONPATH'])"
    # As copied into a container, and as installed by pip beside others, where it is found anyway.
    for name, found in (("app", f"{tmp_path / 'app'}{os.pathsep}own"), ("site-packages", "own")):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "ds_rvqvae", tmp_path / name / "ds_rvqvae", ignore=ignored)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / name)}
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ran.stdout == f"{found}\n", ran.stderr


def test_processes_above_that_one_may_not_look_at_are_passed_over(monkeypatch):
    def parent(process):
        if process.pid != os.getpid():
            raise psutil.AccessDenied(process.pid)  # as with /proc mounted hidepid=1
        return psutil.Process(os.getppid())

    monkeypatch.setattr(psutil.Process, "parent", parent)
    assert [process.pid for process in variables.processes_above()] == [os.getppid()]
    assert settled({**RANK, "DS_RVQVAE_LAUNCHER": str(os.getppid())})["RANK"] == "1"


SETTLED = """
import json, os, pathlib, sys
from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.variables import settle_device
found = []
for cards, environment in json.loads(sys.argv[1]):
    pathlib.Path(os.environ["NVML_STAND_IN"]).write_text(f"cards {cards}")
    try:
        said = settle_device(environment)
    except UserError as error:
        said = f"error: {error}"
    found.append([said, environment])
print(json.dumps(found))
"""


def settled_devices(stand_in, cases, *path):
    """Returns, for each number of GPUs and a rank's variables, what the rank says about its device, and its variables
    afterwards."""
    environment = {**stand_in.environment, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    command = [sys.executable, "-c", SETTLED, json.dumps(cases)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built for CUDA")
def test_a_run_meant_for_gpus_is_refused_and_any_other_says_that_it_is_on_the_cpu(stand_in):
    visible = "CUDA_VISIBLE_DEVICES"
    meant = [
        (8, {}, "the NVIDIA driver lists 8 GPUs"),
        (8, {visible: "1,2"}, f"{visible}=1,2 names GPUs"),
        (0, {visible: "0"}, f"{visible}=0 names GPUs"),
        (0, {"DS_ACCELERATOR": "cuda"}, "DS_ACCELERATOR=cuda"),
        (8, {"DS_ACCELERATOR": "cuda", visible: ""}, "DS_ACCELERATOR=cuda"),
    ]
    reason = f"torch {torch.__version__} is built without CUDA ("
    found = settled_devices(stand_in, [case[:2] for case in meant])
    for (_, given, why), (said, environment) in zip(meant, found, strict=True):
        assert said.startswith(f"error: {why}, so this run is meant for GPUs, but {reason}") and "\n" not in said
        assert environment == given
    for said, environment in settled_devices(stand_in, [(0, {}), (8, {visible: ""}), (8, {visible: "-1"})]):
        assert said.startswith(f"training on the CPU: {reason}") and environment["DS_ACCELERATOR"] == "cpu"


def test_a_run_that_asks_for_the_cpu_says_nothing_of_it():
    environment = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert variables.settle_device(environment) is None
    assert environment == {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "GPU-1"}


def test_uuids_become_numbers_or_are_refused_and_so_are_more_ranks_than_gpus(stand_in):
    visible, second = "CUDA_VISIBLE_DEVICES", "GPU-00000001"
    wrong = {
        f"{second},{second}": "each entry must name one GPU",
        "GPU-00000009": "each entry must name one GPU",
        "GPU-0000000": "each entry must name one GPU",
        f"{second},5000": "each entry must name one GPU",
        "MIG-1": "a MIG slice, on which DeepSpeed cannot train",
    }
    texts = [f"GPU-00000003-0000-4090-8000-000000000000, {second}", *wrong]
    ranks = {"DS_ACCELERATOR": "cuda", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "9"}
    cases = [*((8, {visible: text}) for text in texts), (8, ranks)]
    numbered, *refused, (said, _) = settled_devices(stand_in, cases, ROOT / "tests" / "launch" / "played_cuda")
    assert numbered == [None, {visible: "3,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "DS_ACCELERATOR": "cuda"}]
    for (text, why), (line, environment) in zip(wrong.items(), refused, strict=True):
        assert line.startswith(f"error: {visible}=") and why in line and environment == {visible: text}
    assert said.startswith("error: DS_ACCELERATOR=cuda") and "finds 8 for 9 ranks (NVIDIA driver 550.54.14" in said
