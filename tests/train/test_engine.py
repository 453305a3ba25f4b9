"""The learning rate by step; the recomputation that a profile asks for, and that it changes no gradient."""

import itertools

import pytest
import torch

from ds_rvqvae import load_profile
from ds_rvqvae.config.training import ScheduleConfig
from ds_rvqvae.train.engine import learning_rate
from tests.ranks import run_ranks


def test_steps_down_by_gamma_at_each_milestone():
    schedule = ScheduleConfig(milestones=[50_000, 200_000, 400_000], gamma=0.05)
    rates = {0: 2e-4, 49_999: 2e-4, 50_000: 1e-5, 199_999: 1e-5, 200_000: 5e-7, 400_000: 2.5e-8}
    for step, rate in rates.items():
        assert learning_rate(step, 2e-4, schedule, 500_000) == pytest.approx(rate)


def test_warm_up_rises_in_equal_steps_and_ends_at_the_base():
    schedule = ScheduleConfig(milestones=[], warm_up_iter=4)
    assert [learning_rate(step, 1.0, schedule, 10) for step in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_cosine_falls_from_the_base_to_nothing_after_the_warm_up():
    schedule = ScheduleConfig(kind="cosine", warm_up_iter=4, milestones=[2])
    rates = [learning_rate(step, 1.0, schedule, 104) for step in range(104)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[54] == pytest.approx(0.5) and 0 < rates[103] < 0.001
    assert all(first > second for first, second in itertools.pairwise(rates[4:]))


def gradients_by_kind():
    """Names of the recomputations, and whether each gives the same gradients as no recomputation."""
    import deepspeed

    from ds_rvqvae import RVQVAE
    from ds_rvqvae.train.engine import checkpoint_function, start_distributed

    start_distributed()
    settings = {
        "own": [],
        "torch": ["rvqvae.training.compile=true"],
        "deepspeed": ["activation_checkpointing.partition_activations=true"],
        "cpu": ["activation_checkpointing.cpu_checkpointing=true"],
        "off": ["rvqvae.training.gradient_checkpointing=false"],
    }
    torch.manual_seed(0)
    config = load_profile("demo", ["rvqvae.model.width=32"]).rvqvae.model
    model, motion = RVQVAE(6, config), torch.randn(4, 32, 6)
    result, gradients = {}, {}
    for name, overrides in settings.items():
        function = checkpoint_function(load_profile("demo", overrides))
        model.set_checkpointing(function)
        model.zero_grad()
        model.set_step(0, 1)
        output = model(motion)
        (output.reconstruction.square().mean() + output.commit_loss).backward()
        gradients[name] = [parameter.grad.clone() for parameter in model.parameters()]
        result[name] = [getattr(getattr(function, "func", function), "__name__", None)]
    for name in ("own", "torch", "deepspeed", "cpu"):
        result[name] += [all(map(torch.equal, gradients[name], gradients["off"]))]
    return {**result, "operations": vars(deepspeed.ops).get("__compatible_ops__")}


def test_deepspeeds_section_says_how_and_ours_whether(tmp_path):
    (result,) = run_ranks(1, gradients_by_kind, tmp_path)
    assert result == {
        "own": ["recompute", True],
        "torch": ["checkpoint", True],
        "deepspeed": ["non_reentrant_checkpoint", True],
        "cpu": ["_checkpoint_on_cpu", True],
        "off": [None],
        # DeepSpeed's table has this entry of ours only: filled by DeepSpeed it has all operations, each tried out.
        "operations": {"deepspeed_shm_comm": False},
    }
