"""Buckets of weights: views in a training pass, gradients that arrive together and early, parameters otherwise."""

import copy

import pytest
import torch
from torch import nn

from ds_rvqvae.train.zero.weights import FlatWeights


def _net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()])
    place = 0
    for parameter in net.parameters():
        parameter.data = flat[place : place + parameter.numel()].view_as(parameter)
        place += parameter.numel()
    return net, flat


def _train(net, weights, motion):
    weights.begin()
    output = net(motion)
    weights.end_forward()
    output.square().sum().backward()
    weights.show()
    return output.detach()


@pytest.mark.parametrize("lazily", [True, False])
@pytest.mark.parametrize("most", [1, 20, 1000])
def test_gradients_are_those_of_the_parameters(lazily, most):
    net, flat = _net()
    motion = torch.randn(5, 3)
    expected = net(motion)
    expected.square().sum().backward()
    gradients = torch.cat([parameter.grad.reshape(-1) for parameter in net.parameters()])
    net.zero_grad()
    found = torch.zeros_like(flat)

    def take(bucket, each):
        found[bucket.start : bucket.stop] = torch.cat([gradient.reshape(-1) for gradient in each])

    weights = FlatWeights(net, flat, most, take, lazily)
    assert torch.equal(_train(net, weights, motion), expected.detach())
    assert torch.equal(found, gradients)
    assert all(parameter.grad is None for parameter in net.parameters()), "the parameters take no part"
    assert not any("weight" in vars(module) for module in net.modules())
    assert torch.equal(copy.deepcopy(net)(motion), expected)


def test_buckets_arrive_as_the_backward_pass_reaches_their_first_layer():
    net, flat = _net()
    events = []
    weights = FlatWeights(net, flat, 30, lambda bucket, _: events.append(bucket.index))
    for index in (0, 2, 4):
        net[index].register_full_backward_hook(lambda *_, index=index: events.append(f"layer {index}"))
    _train(net, weights, torch.randn(5, 3, requires_grad=True))
    assert [(bucket.start, bucket.stop) for bucket in weights.buckets] == [(16, 46), (0, 16)]
    assert events == ["layer 4", "layer 2", 0, "layer 0", 1]


def test_a_pass_without_gradients_or_outside_of_training_leaves_the_parameters():
    net, flat = _net()
    weights = FlatWeights(net, flat, 20, lambda *_: pytest.fail("no gradient is asked for"))
    net(torch.randn(5, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not any(bucket.hidden for bucket in weights.buckets)
