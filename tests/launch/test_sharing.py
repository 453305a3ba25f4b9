"""GPUs that CUDA_VISIBLE_DEVICES gives a start, and GPUs that another user computes on; the GPUs are simulated."""

import json
import os
import re
import subprocess
import sys

import pytest

from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.gpu.nvml import Gpu
from ds_rvqvae.launch.visible import numbers_may_differ, visible_slots
from tests.launch.launching import ROOT

GIB = 1 << 30

_DRY_RUNS = """
import contextlib, io, json, os, sys
from pathlib import Path
from ds_rvqvae.launch import hosts
from ds_rvqvae.launch.main import main
from ds_rvqvae.process.torch_build import Build
found = []
for cards, flags, variables in json.load(sys.stdin):
    file = Path(os.environ['NVML_STAND_IN'])
    file.with_suffix('.new').write_text(''.join(f'{line}\\n' for line in cards))
    file.with_suffix('.new').replace(file)
    hosts.warn.cache_clear(); hosts.note.cache_clear()
    before = dict(os.environ)
    os.environ.update(variables)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(['--dry_run', *flags])
    os.environ.clear(); os.environ.update(before)
    found.append([status, out.getvalue(), err.getvalue()])
json.dump(found, sys.stdout)
"""


@pytest.fixture
def dry_runs(stand_in, torch_with_cuda, demo_folder, tmp_path):
    """Dry runs of the launcher in one process: status, slots and errors of each (cards, flags, variables)."""

    def run(*starts):
        unset = ("DS_ACCELERATOR", "LOCAL_SIZE", "OMP_NUM_THREADS")
        environment = {name: value for name, value in stand_in.environment.items() if name not in unset}
        starts = [(cards, [f"--data_path={demo_folder}", *flags], variables) for cards, flags, variables in starts]
        environment["PYTHONPATH"] = f"{torch_with_cuda}:{ROOT}"
        line = [sys.executable, "-c", _DRY_RUNS]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, input=json.dumps(starts), text=True, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return [(status, re.findall(r"localhost:(\S*)", out), err) for status, out, err in json.loads(done.stdout)]

    return run


@pytest.fixture
def other():
    """A process of another user than this test's."""
    if os.getuid() != 0:
        yield 1
        return
    with subprocess.Popen(["sleep", "120"], user=65534) as process:
        yield process.pid
        process.kill()


def gpu(index, name="RTX 4090"):
    return Gpu(index, name, f"GPU-{index}abc", f"0000:0{index}:00.0", 0, 24 * GIB, 0)


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("1,2", [1, 2]),
        (" 2 , 1 ", [1, 2]),
        ("GPU-2,GPU-0abc", [0, 2]),
        ("GPU-1abc,2", [1, 2]),
        ("01,", [1]),
        ("7", [7]),
    ],
)
def test_gpus_by_number_and_uuid(text, slots):
    assert visible_slots(text, [gpu(0), gpu(1), gpu(2)]) == slots


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "CUDA_VISIBLE_DEVICES='': hides every GPU; unset CUDA_VISIBLE_DEVICES"),
        (" ", "hides every GPU"),
        ("-1", "hides every GPU; "),
        ("NoDevFiles", "hides every GPU, as SLURM sets it in a job without GPUs"),
        ("1,-1", "-1 is not a GPU"),
        ("1,,2", "an empty entry is not a GPU"),
        ("1;2", "1;2 is not a GPU; write numbers or UUIDs"),
        ("GPU-", "GPU- is not a GPU"),
        ("\u0661", "is not a GPU"),
        ("1,1", "names GPU 1 twice"),
        ("GPU-2,2", "names GPU 2 twice"),
        ("GPU-10", "GPU-10 matches the UUIDs of GPUs 3 and 4"),
        ("GPU-9", "no GPU has the UUID GPU-9; there are 0 GPU-0abc, 1 GPU-1abc, "),
        ("MIG-x", "MIG-x is a MIG slice"),
    ],
)
def test_what_names_no_gpus_is_refused(text, words):
    alike = [Gpu(index, "", f"GPU-10{index}", "", 0, 1, 0) for index in (3, 4)]
    with pytest.raises(UserError) as error:
        visible_slots(text, [gpu(0), gpu(1), gpu(2), *alike])
    assert words in str(error.value) and str(error.value).startswith("CUDA_VISIBLE_DEVICES=")
    assert error.value.status == ExitStatus.BAD_INPUT


def test_numbers_of_gpus_that_differ_may_be_others_to_cuda():
    mixed = [gpu(0), gpu(1, "RTX 3090")]
    assert numbers_may_differ("1", mixed, None) and numbers_may_differ("1,GPU-0", mixed, "FASTEST_FIRST")
    assert not numbers_may_differ("1", mixed, "PCI_BUS_ID") and not numbers_may_differ("GPU-1", mixed, None)
    assert not numbers_may_differ("1", [gpu(0), gpu(1)], None)


def test_a_start_takes_the_gpus_of_the_variable_where_no_flag_names_others(dry_runs):
    variable = "CUDA_VISIBLE_DEVICES"
    says = "GPU 1, 2 (NVIDIA GeForce RTX 4090), as CUDA_VISIBLE_DEVICES=1,2 says"
    gives_way = "warning: CUDA_VISIBLE_DEVICES=1,2 has no effect: {} chooses the GPUs"
    starts = {
        (): (says, ["1,2"]),
        ("--body_part=upper,hands",): (says, ["1,2", "1,2"]),
        ("--demo",): (says, ["1,2"]),
        ("--include=localhost:4",): (gives_way.format("--include"), ["4"]),
        ("--num_gpus=2",): (gives_way.format("--num_gpus"), ["0,1"]),
        ("--exclude=localhost:0,1",): (gives_way.format("--exclude"), ["2,3,4,5,6,7"]),
        ("--include=localhost:2,1",): (None, ["1,2"]),
    }
    ran = dry_runs(*(([], flags, {variable: "1,2"}) for flags in starts))
    for (words, slots), (status, taken, said) in zip(starts.values(), ran, strict=True):
        assert (status, taken) == (0, slots), said
        assert said.count(variable) == 0 if words is None else said.count(words) == 1, said
    uuid = "GPU-00000003-0000-4090-8000-000000000000"
    others = [
        ([], [], {variable: f"{uuid},2"}),
        (["2 name RTX 3090"], [], {variable: "1,2"}),
        ([], [], {variable: "1,9"}),
        ([], [], {variable: "-1"}),
        ([], ["--include=localhost:4"], {variable: ""}),
        ([], ["--demo"], {variable: ""}),
        ([], [], {variable: "9", "LOCAL_SIZE": "8"}),
    ]
    others += [(["3 error 15"], ["--demo"], {})]
    by_uuid, mixed, missing, hidden, empty, demo, on_cpu, lost = dry_runs(*others)
    assert lost[:2] == (0, ["0,1,2,4,5,6,7"]) and "GPU 3 left out: other users compute there, or it" in lost[2]
    assert by_uuid[:2] == (0, ["2,3"]) and " DS_ACCELERATOR=cuda" in by_uuid[2]
    assert (
        mixed[:2] == (0, ["1,2"]) and "warning: CUDA_VISIBLE_DEVICES=1,2: the GPUs of this machine differ" in mixed[2]
    )
    assert missing[0] == 2 and "error: CUDA_VISIBLE_DEVICES=1,9: no GPU 9 on this machine" in missing[2]
    assert hidden[0] == 2 and "error: CUDA_VISIBLE_DEVICES=-1: hides every GPU" in hidden[2]
    assert empty[:2] == (0, ["4"]) and "warning: CUDA_VISIBLE_DEVICES='' has no effect: --include" in empty[2]
    assert demo[:2] == (0, ["0,1"]) and "CUDA_VISIBLE_DEVICES='' hides every GPU: the demo trains on CPU" in demo[2]
    assert on_cpu[:2] == (0, ["1,2,3,4,5,6,7"]) and variable not in on_cpu[2]


def test_gpus_that_another_user_computes_on(dry_runs, other):
    mine = os.getpid()
    on_3 = [f"3 process {other} {5 * GIB}", f"3 used {5 * GIB}"]
    full = [f"3 process {other} {22 * GIB}", f"3 used {22 * GIB}"]
    starts = [
        # cards, flags, status, what is said, what is not
        (on_3, [], 3, f"GPU 3: process {other} of ", None),
        (
            on_3,
            [],
            3,
            "5.00 GiB); wait, use others with --include localhost:1,2,4,5,6,7, or share them with --share_g",
            None,
        ),
        (on_3, ["--share_gpus"], 0, "warning: GPU 3 is not idle: 5.0 GiB in use; process", None),
        (on_3, ["--include=localhost:1,2"], 0, "GPUs           GPU 1, 2: ", f"process {other}"),
        (on_3, ["--demo"], 0, "GPUs           GPU 0, 1, 2, 4, 5, 6, 7: ", f"process {other}"),
        (full, ["--profile=large"], 3, f"GPU 3: process {other} of ", None),
        (full, ["--profile=large", "--share_gpus"], 2, "so others must free some", None),
        (
            [f"* process {other} 1"],
            [],
            3,
            "; GPU 4, 5, 6, 7 likewise; wait, or share them with --share_gpus",
            "--include",
        ),
        (
            [f"* process {other} 1"],
            ["--demo"],
            0,
            "warning: other users compute on every GPU: the demo trains on CPU",
            None,
        ),
        ([f"3 process {mine} {GIB}", f"3 process {other} {GIB}"], [], 3, f"GPU 3: process {other} of ", f"{mine} of"),
        # Both draws and computes, as a browser may; a client of MPS.
        ([f"3 graphics {other} {GIB}", f"3 process {other} {GIB}"], [], 3, f"process {other} of ", None),
        ([f"3 mps {other} {GIB}"], [], 3, f"process {other} of ", None),
        ([f"3 graphics {other} {GIB // 2}", f"3 used {GIB // 2}"], [], 0, "checks", f"process {other}"),
        # Another container's, or hidden.
        (
            ["3 process 4194303 1073741824"],
            [],
            3,
            "process 4194303 of a user not visible from here (1.00",
            None,
        ),
        (
            ["3 process 4194303 1"],
            [],
            3,
            "error: another or an unknown user computes on GPUs of this run: GPU 3: ",
            None,
        ),
        (["3 process 4194303 1"], ["--share_gpus"], 0, "process 4194303, not visible from here", None),
        (
            [f"3 process {mine} {5 * GIB}", f"3 used {5 * GIB}"],
            [],
            0,
            "warning: GPU 3 is not idle: 5.0 GiB in use; ",
            None,
        ),
        ([f"3 process {mine} {5 * GIB}", f"3 used {5 * GIB}"], [], 0, ", of this user\n", None),
        ([f"3 used {9 * GIB}"], [], 0, "9.00 GiB of it belongs to no process that the driver lists here", None),
        (["3 processes !4"], [], 0, "warning: the processes on GPU 3 are not known (not permitted", None),
        (["3 processes !3", f"3 used {5 * GIB}"], [], 0, "warning: GPU 3 is not idle: 5.0 GiB in use\n", None),
        # GPU 0 belongs to the desktop: a warning, or an error with --require_idle.
        ([f"0 process {other} 1"], [], 0, "warning: GPU 0 is not idle: ", None),
        ([f"0 process {other} 1"], ["--include=localhost:0,1"], 0, f"process {other} (", None),
        ([f"0 process {other} 1"], ["--require_idle"], 3, "error: --require_idle: GPU 0 is not idle", None),
        (on_3, ["--require_idle=3", "--share_gpus"], 3, "error: --require_idle: GPU 3 is not idle", None),
    ]
    ran = dry_runs(*((cards, flags, {}) for cards, flags, *_ in starts))
    for (cards, flags, status, words, absent), (ended, taken, said) in zip(starts, ran, strict=True):
        assert ended == status and words in said, (cards, flags, ended, said)
        assert absent is None or absent not in said, (cards, flags, said)
        assert bool(taken) == (status == 0)
        assert status == 0 or len(re.findall("^error: ", said, re.MULTILINE)) == 1
