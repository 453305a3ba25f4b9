"""A plan as text for a terminal."""

import pytest

from ds_rvqvae.cli import main
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.plan import make_plan
from ds_rvqvae.gpu.plan_table import described_parts, plan_table
from ds_rvqvae.process.terminal import Terminal


def test_what_does_not_fit_says_so(capsys):
    assert main(["plan", "large", "--gpu_memory", "2GiB", "--gpus", "1"]) == 0
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed and "not even a micro batch of one window" in printed


def plan_of(*overrides, profile="baseline", gpus=7):
    return make_plan(load_profile(profile, overrides), 78, gpus, CARDS["4090"].with_memory(24 << 30))


def explanations(plan):
    return {name: explanation for name, _, explanation in described_parts(plan)}


@pytest.mark.parametrize("gpus", [1, 7])
@pytest.mark.parametrize(
    "override",
    [
        "rvqvae.training.ema_decay=0.999",
        "rvqvae.training.gradient_checkpointing=true",
        'zero_optimization.offload_optimizer={"device": "cpu"}',
        "zero_optimization.stage=1",
    ],
)
def test_the_parts_that_are_shown_add_up_to_the_total(override, gpus):
    plan = plan_of(override, gpus=gpus)
    assert sum(count for _, count, _ in described_parts(plan)) == plan.total_bytes


def test_each_part_says_what_it_is():
    plain = explanations(plan_of("rvqvae.training.gradient_checkpointing=false"))
    assert plain["weights"] == "bf16, complete on every GPU" and plain["gradients"] == "of 1/7 of the weights"
    assert plain["optimizer"] == "fp32 master weights and two moments, 1/7" and plain["activations"] == "all kept"
    assert "weight average" not in plain
    alone = explanations(plan_of("rvqvae.training.ema_decay=0.999", "bf16.enabled=false", gpus=1))
    assert alone["weights"] == "fp32, complete on every GPU" and alone["gradients"] == "complete on every GPU"
    assert alone["optimizer"] == "fp32 master weights and two moments" and alone["weight average"] == "fp32"
    offloaded = explanations(plan_of('zero_optimization.offload_optimizer={"device": "cpu"}'))
    assert offloaded["optimizer"] == "in the host's memory"


def test_the_longest_bar_is_the_largest_part_and_the_verdict_is_its_sum():
    plan = plan_of(profile="large")
    lines = plan_table(plan, Terminal(120)).splitlines()
    assert lines[0] == "7 x RTX 4090 with 24.00 GiB each; 230,822,606 trainable parameters"
    largest = max(described_parts(plan), key=lambda part: part[1])[0]
    assert [line.split("  ")[1] for line in lines if line.count("█") == 24] == [largest]
    share = round(100 * plan.total_bytes / (24 << 30))
    assert any(line.startswith("  total ") and f"fits: {share}% of the GPU" in line for line in lines)


@pytest.mark.parametrize("recomputed", [True, False])
def test_recomputed_work_is_told_where_there_is_some(recomputed):
    text = plan_table(plan_of(f"rvqvae.training.gradient_checkpointing={str(recomputed).lower()}"))
    assert (" recomputed\n" in text) is recomputed
    assert f"activation checkpointing {'on' if recomputed else 'off'}" in text


@pytest.mark.parametrize(
    ("overrides", "noted"),
    [
        (["rvqvae.training.compile=true", "rvqvae.training.compile_mode=reduce-overhead"], True),
        (["rvqvae.training.compile=true", "rvqvae.training.compile_mode=max-autotune-no-cudagraphs"], False),
        (["rvqvae.training.compile_mode=reduce-overhead"], False),
    ],
)
def test_the_memory_of_cuda_graphs_is_told_as_not_counted(overrides, noted):
    assert ("CUDA graphs (compile_mode) keep memory" in plan_table(plan_of(*overrides))) is noted
