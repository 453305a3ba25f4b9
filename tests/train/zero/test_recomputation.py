"""Recomputation in one call: gradients, random draws, bytes kept, weights that are views."""

import pytest
import torch
from torch import nn

from ds_rvqvae import RVQVAE, load_profile
from ds_rvqvae.train.zero.recomputation import recompute
from ds_rvqvae.train.zero.weights import FlatWeights


def _model(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    config = load_profile("demo", ["rvqvae.model.width=32", "rvqvae.model.dropout=0.3"]).rvqvae.model
    return RVQVAE(5, config.model_copy(update=settings)).to(dtype).train(), torch.randn(4, 32, 5)


def _gradients(model, motion):
    """Gradients of a training pass, and the draw after it."""
    model.zero_grad()
    model.set_step(0, 5)
    output = model(motion)
    (output.reconstruction.square().mean() + output.commit_loss).backward()
    return [parameter.grad.clone() for parameter in model.parameters()], torch.rand(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"norm": "GN"}, {"norm": "LN", "activation": "silu"}], ids=str)
def test_gradients_are_equal_bit_for_bit(dtype, settings):
    model, motion = _model(dtype, **settings)
    kept, draw = _gradients(model, motion)
    model.set_checkpointing(recompute)
    recomputed, next_draw = _gradients(model, motion)
    assert all(gradient.abs().sum() > 0 for gradient in kept)
    assert all(map(torch.equal, kept, recomputed))
    assert torch.equal(draw, next_draw), "the draws of the recomputation are not missing afterwards"


def test_less_than_half_the_bytes_are_kept():
    model, motion = _model(torch.bfloat16, width=128, depth=3)
    sizes = []
    for checkpoint in (None, recompute):
        model.set_checkpointing(checkpoint)
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
            return tensor

        own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(motion)
            loss = output.reconstruction.float().square().mean()
        loss.backward()
        sizes.append(sum(size for place, (size, _) in kept.items() if place not in own))
    assert sizes[1] < 0.5 * sizes[0]


def test_raw_data_needs_no_gradient_and_a_weight_may_be_frozen():
    net, data = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    net[0].bias.requires_grad_(False)
    net(data).square().sum().backward()
    expected = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    recompute(net, data).square().sum().backward()
    assert expected[1] is net[0].bias.grad is None
    for index, parameter in enumerate(net.parameters()):
        assert index == 1 or torch.equal(parameter.grad, expected[index])


def test_buckets_get_the_gradients_of_a_recomputed_stack():
    model, motion = _model()
    expected, _ = _gradients(model, motion)
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    place = 0
    for parameter in model.parameters():
        parameter.data = flat[place : place + parameter.numel()].view_as(parameter)
        place += parameter.numel()
    found = torch.zeros_like(flat)

    def take(bucket, each):
        found[bucket.start : bucket.stop] = torch.cat([gradient.reshape(-1) for gradient in each])

    weights = FlatWeights(model, flat, 9000, take)
    assert len(weights.buckets) > 2
    model.set_checkpointing(recompute)
    model.set_step(0, 5)
    weights.begin()
    output = model(motion)
    weights.end_forward()
    (output.reconstruction.square().mean() + output.commit_loss).backward()
    weights.show()
    assert torch.equal(found, torch.cat([gradient.reshape(-1) for gradient in expected]))


def test_autocast_holds_in_the_recomputation_too():
    net, data = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    gradients = []
    for run in (lambda value: net(value), lambda value: recompute(net, value)):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = run(data)
        output.float().square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert output.dtype == torch.bfloat16 and all(map(torch.equal, *gradients))
