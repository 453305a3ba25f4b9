"""`ds-rvqvae bench`: its measurements as a table, and what it refuses before it measures."""

import pytest

from ds_rvqvae import cli
from ds_rvqvae.cli.bench import bench_table, host_blocks
from ds_rvqvae.process.terminal import PLAIN
from tests.data.formats.bvh_files import write_bvh_motion

RESULT = {
    "device": "a card",
    "versions": {"torch": "2.9", "deepspeed": "0.18", "cuda": None},
    "cpu_bf16_native": None,
    "parameters": 1_234_567,
    "dtype": "bf16",
    "micro_batch": 80,
    "accumulation": 2,
    "window_size": 64,
    "in_features": 78,
    "world_size": 1,
    "activation_checkpointing": False,
    "compile": False,
    "step_s": 0.5,
    "model_s": 0.25,
    "plain_fp32_step_s": 1.25,
    "spread_s": {"step": (0.4, 0.6), "model": (0.2, 0.3), "plain_fp32_step": (1.0, 1.5)},
    "parts_s": {"optimizer": 0.1, "backward": 0.3},
    "conv_share": 0.875,
    "data_wait_share": 0.0125,
    "added_share": 0.5,
    "flops": 2e12,
    "mfu": 0.4,
    "matmul_flops": 1e13,
    "kernels": 1500,
    "peak_memory_bytes": 3 << 30,
    "device_busy_share": None,
}

HOST = {
    "buckets": [7, 1],
    "shrunk": {"rvqvae.model.width": [512, 32], "train_micro_batch_size_per_gpu": [80, 1]},
    "rounds": 40,
    "host_step_s": 0.015,
    "host_plain_bf16_s": 0.02,
    "host_ddp_bf16_s": None,
    "spread_s": {"host_step": [0.014, 0.0161], "host_plain_bf16": [0.019, 0.03]},
    "operations": {"forward: quantizer": 1100, "engine.step": 30, "all": 1130},
    "operations_with_checkpointing": True,
    "host_waits": {"ours": 0, "deepspeed": 3, "where": {"deepspeed/runtime/utils.py:233": 2, "deepspeed/a.py:1": 1}},
}


def test_the_table_says_how_long_each_way_takes():
    lines = bench_table(RESULT).splitlines()
    assert lines[0] == "a card; torch 2.9, deepspeed 0.18"
    assert "1,234,567 parameters, bf16, batch 80 x 64 frames x 78 columns, 1 rank(s), " in lines[1]
    assert lines[1].endswith("activation checkpointing off")
    (ours,) = (line for line in lines if "through DeepSpeed" in line)
    assert ours.split("DeepSpeed")[1].split() == ["0.5000", "(0.4000", "to", "0.6000)"]
    # 1.25 s beside 0.5 s, and only plain loops are compared.
    (plain,) = (line for line in lines if "plain PyTorch loop, fp32" in line)
    assert plain.endswith("(1.0000 to 1.5000), 2.50 times ours")
    assert sum("times ours" in line for line in lines) == 1 and not any("bf16 autocast" in line for line in lines)


def test_the_table_ends_with_shares_and_throughput():
    text = bench_table(RESULT)
    # The largest part comes first; shares are of the parts' sum.
    parts = [line.split()[0] for line in text.splitlines() if line.endswith(" %") and "convolutions" not in line]
    assert parts[:2] == ["backward", "optimizer"] and "75.0 %" in text and "25.0 %" in text
    assert "convolutions 87.5 % of a step; waiting for data 1.25 %" in text
    assert "2,000 GFLOP per step, 40.0 % of the speed of large matrix products (10,000 GFLOP/s)" in text
    assert "1,500 kernels per step; peak memory 3.00 GiB" in text and "the GPU is busy" not in text
    # Two micro batches of 80 windows in half a second.
    assert text.splitlines()[-1] == "320.0 windows per second and rank"


def test_what_was_not_measured_is_not_shown_and_what_was_left_out_is_told():
    alone = {key: value for key, value in RESULT.items() if not key.startswith("plain")}
    assert "plain" not in bench_table(alone)
    text = bench_table({**RESULT, "cpu_bf16_native": False, "checkpointed_step_s": 0.75, "device_busy_share": 0.9})
    assert "left out: PyTorch's own bf16 takes up to ten times as long as fp32" in text
    assert "bf16 arithmetic of this CPU" in text
    assert "with activation checkpointing" in text and "0.7500" in text and "the GPU is busy 90.0 % of a step" in text


def test_the_hosts_table_has_both_loops_the_operations_and_the_waits():
    text = PLAIN.text(host_blocks({**RESULT, **HOST}))
    assert "almost no arithmetic: width 32 for 512, micro batch 1 for 80" in text
    (ours,) = (line for line in text.splitlines() if "through DeepSpeed" in line)
    assert ours.split("DeepSpeed")[1].split() == ["15.00", "(14.00", "to", "16.10)"]
    (plain,) = (line for line in text.splitlines() if "plain PyTorch loop" in line)
    assert plain.endswith("20.00  (19.00 to 30.00); ours takes 0.75 times as long")
    assert "DistributedDataParallel" not in text
    assert "1,130 operations per step, with activation checkpointing" in text
    assert "host waits per step: 0 of ours, 3 of DeepSpeed's" in text
    assert next(line.split() for line in text.splitlines() if "utils.py:233" in line)[1] == "2"


def test_the_compiled_step_has_lines_of_its_own():
    compiled = {"mode": "default", "step_s": 0.25, "uncompiled_step_s": 0.5, "first_step_s": 40.0}
    compiled |= {"graphs": 2, "graph_breaks": 1, "recompilations": 0, "loss_difference": 2e-5}
    compiled["losses"] = {"uncompiled": [1.0] * 30, "compiled": [1.0] * 30}
    text = bench_table({**RESULT, "compiled": compiled})
    assert "compiled (mode default): 0.2500 s per step, not compiled 0.5000 s, in turns" in text
    assert "2 graphs, 1 graph break(s), 0 recompilation(s)" in text
    assert "in fp32 without dropout, losses of 30 steps differ by 2.0e-05 at most" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["demo", "--host", "--compile"], "--compile: not with --host"),
        (["demo", "--compile", "--set", "rvqvae.training.compile=true"], "leave out rvqvae.training.compile=true"),
        (["demo", "--host", "--trace", "trace.json"], "--trace: --host writes no"),
        (["nothing"], "nothing: no such profile"),
        (["demo", "--trace", "nowhere/trace.json"], "is not a folder"),
        (["demo", "--set", "rvqvae.model.widht=3"], "did you mean width?"),
    ],
)
def test_refusals_are_one_line_and_come_before_the_measuring(tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_part_that_the_motion_has_not_is_refused_rather_than_all_of_it_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))
    write_bvh_motion(tmp_path / "data" / "a.bvh", 200)
    command = ["bench", "demo", "--data_path", str(tmp_path / "data"), "--body_part"]
    assert cli.main([*command, "hands"]) == 2
    assert "--body_part hands: " in (said := capsys.readouterr().err) and "has no body parts to select" in said
