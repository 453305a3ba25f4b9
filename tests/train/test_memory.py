"""The message of a rank that runs out of memory."""

import getpass
import json
import os
from dataclasses import replace

import pytest
import torch

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.plan import make_plan
from ds_rvqvae.train.memory import explanation, is_out_of_memory
from tests.ranks import start_ranks
from tests.train.small import SMALL


def raised(error, cause=None, context=None):
    error.__cause__, error.__context__ = cause, context
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no room"), True),
        (raised(RuntimeError("backward failed"), cause=torch.OutOfMemoryError("no room")), True),
        (raised(AssertionError("in the hook"), context=torch.OutOfMemoryError("no room")), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: 8 TB"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the convolution forward propagation"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (raised(RuntimeError("closed"), cause=ConnectionError("by peer")), False),
    ],
)
def test_which_errors_are_for_lack_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_real_allocation_that_fails_is_one():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)


def plan_of(memory_bytes, *overrides):
    card = replace(CARDS["4090"], memory_bytes=memory_bytes)
    return make_plan(load_profile("large", overrides), 78, 7, card)


def test_the_line_has_the_numbers_and_flags_that_keep_the_global_batch():
    plan = plan_of(33 * 2**30 // 10, "train_micro_batch_size_per_gpu=320")
    fitting = plan.largest_micro_batch
    assert 160 <= fitting < 320
    line = explanation(plan, plan.total_bytes, "2.40 GiB allocated and 2.45 GiB reserved at the peak", "also on GPU 3")
    assert line == (
        "micro batch 320 does not fit: 2.40 GiB allocated and 2.45 GiB reserved at the peak; "
        f"{plan.total_bytes / 2**30:.2f} GiB planned, 3.30 GiB available on RTX 4090; also on GPU 3; "
        "try --batch_size 160 --gradient_accumulation_steps 2 or --auto_batch_size; run.log has the details"
    )


@pytest.mark.parametrize(
    ("memory", "overrides", "advice"),
    [
        # Half, if the plan says that this size fits.
        (24 << 30, ["rvqvae.training.auto_batch_size=true"], "try --batch_size 80 --gradient_accumulation_steps 2"),
        (24 << 30, ["train_micro_batch_size_per_gpu=1"], "try other GPUs (--include) or a smaller"),
        (1 << 30, ["rvqvae.training.gradient_checkpointing=false"], "try --gradient_checkpointing on or --auto_batch_"),
        (24 << 30, ["gradient_accumulation_steps=3"], "try --batch_size 80 --gradient_accumulation_steps 6 or --auto_"),
    ],
)
def test_the_advice_is_what_can_still_be_changed(memory, overrides, advice):
    assert f"; {advice}" in explanation(plan_of(memory, *overrides), 0, "", "")


OTHERS = (
    "from ds_rvqvae.train.memory import others_on_card\n"
    "from ds_rvqvae.gpu.nvml import list_gpus\n"
    "print(others_on_card(list_gpus()[3].uuid.removeprefix('GPU-'), own_bytes=0, own_pid=4711))"
)


def test_what_else_sits_on_the_card_leaves_out_this_process(stand_in):
    stand_in.play("3 used 12884901888", "3 process 4711 8589934592", f"3 process {os.getpid()} 4294967296")
    said = stand_in.python(OTHERS)
    assert said.startswith(f"also on GPU 3: 4.0 GiB in use; process {os.getpid()} (")
    assert getpass.getuser() in said and "4711" not in said
    stand_in.play("3 used 8589934592", "3 process 4711 8589934592")
    assert stand_in.python(OTHERS) == "\n"


def test_without_nvml_or_with_a_lost_card_it_says_that_it_cannot_tell(stand_in, monkeypatch):
    code = "from ds_rvqvae.train.memory import others_on_card; print(others_on_card('GPU-0', 0))"
    assert stand_in.python(code) == "other users of the GPU are unknown (NVML does not list it)\n"
    stand_in.play("init 9")
    assert stand_in.python(code).startswith("other users of the GPU are unknown (")


@pytest.mark.processes
def test_the_rank_that_fails_says_so_in_one_line_with_the_details_in_the_log(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=12"]
    ranks = start_ranks(2, ["-m", "tests.train.limited", "[99, 8]", *flags, "--total_iter=1"])
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert ranks[1].returncode == 70
    (line,) = [line for line in printed[1].splitlines() if line.startswith("error:")]
    assert line.startswith("error: rank 1: OutOfMemory: micro batch 12 does not fit: ")
    assert "GiB resident at the peak" in line and " planned, " in line
    assert "try --batch_size 6 --gradient_accumulation_steps 2 or --auto_batch_size" in line
    log = (tmp_path / "run" / "run.log").read_text()
    planned = next(text for text in log.splitlines() if "planned bytes" in text)
    profile = load_profile(tmp_path / "run" / "profile.json")
    parts = json.loads(planned.partition("planned bytes: ")[2])
    assert parts["optimizer_bytes"] == make_plan(profile, 78, 2, CARDS["4090"]).optimizer_bytes
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB." in log
