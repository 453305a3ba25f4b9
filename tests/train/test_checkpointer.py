"""Which recomputation a profile asks for, and that DeepSpeed's own gives the same gradients."""

import torch

from ds_rvqvae import load_profile
from tests.ranks import run_ranks


def gradients_by_kind():
    """Names of the recomputations, and whether each gives the gradients of none."""
    import deepspeed

    from ds_rvqvae import RVQVAE
    from ds_rvqvae.train.engine import checkpoint_function, start_distributed

    start_distributed()
    settings = {
        "torch": [],
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
        result[name] = [function is None, function is deepspeed.checkpointing.non_reentrant_checkpoint]
    for name in ("torch", "deepspeed", "cpu"):
        result[name] += [all(map(torch.equal, gradients[name], gradients["off"]))]
    return result


def test_deepspeeds_section_says_how_and_ours_whether(tmp_path):
    (result,) = run_ranks(1, gradients_by_kind, tmp_path)
    assert result == {
        "torch": [False, False, True],
        "deepspeed": [False, True, True],
        "cpu": [False, False, True],
        "off": [True, False],
    }
