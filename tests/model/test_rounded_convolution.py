"""bf16 convolutions on a CPU without bf16 arithmetic: computed in fp32, rounded to bf16."""

import pytest
import torch
from torch.nn import functional

from ds_rvqvae import RVQVAE
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.model import nets

SHAPES = [(1, 1, 1, 3), (1, 3, 3, 3), (1, 0, 1, 1), (2, 1, 1, 4), (1, 9, 9, 3)]
"""Stride, padding, dilation, kernel."""
SMALL = ModelConfig(width=32, depth=2, code_dim=8, nb_code=16, num_quantizers=3, quantize_dropout_prob=0.0)


@pytest.fixture(autouse=True)
def none(monkeypatch):
    monkeypatch.setattr(nets, "ROUND_TO_BF16", True)


def tensors(kernel, bias, dtype=torch.bfloat16):
    torch.manual_seed(0)
    made = [torch.randn(2, 6, 32), torch.randn(5, 6, kernel), torch.randn(5) if bias else None]
    return [each if each is None else each.to(dtype).requires_grad_() for each in made]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "padding", "dilation", "kernel"), SHAPES)
def test_both_passes_are_those_of_fp32_rounded(stride, padding, dilation, kernel, bias):
    narrow = tensors(kernel, bias)
    wide = [each if each is None else each.detach().float().requires_grad_() for each in narrow]
    output = nets.convolve(*narrow, stride, padding, dilation)
    expected = functional.conv1d(*wide, stride, padding, dilation)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected.bfloat16(), rtol=2**-7, atol=1e-5)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    expected.backward(gradient.float())
    for mine, theirs in zip(narrow, wide, strict=True):
        if mine is not None:
            assert mine.grad.dtype == torch.bfloat16
            torch.testing.assert_close(mine.grad, theirs.grad.bfloat16(), rtol=2**-7, atol=1e-5)


def test_what_is_kept_for_the_backward_pass_is_bf16():
    kept = []
    hidden, weight, bias = tensors(3, True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        nets.convolve(hidden, weight, bias, padding=1)
    assert [tensor.dtype for tensor in kept] == [torch.bfloat16] * 2
    assert kept[1].data_ptr() == weight.data_ptr()


def test_gradients_that_nobody_wants_are_not_computed():
    hidden, weight, _ = tensors(3, False)
    nets.convolve(hidden.detach(), weight, None, padding=1).sum().backward()
    assert hidden.grad is None and weight.grad is not None
    with torch.no_grad():
        assert not nets.convolve(hidden, weight, None, padding=1).requires_grad


def test_autocast_computes_the_same():
    hidden, weight, bias = tensors(3, True)
    expected = nets.convolve(hidden, weight, bias, padding=1)
    wide = [each.detach().float() for each in (hidden, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nets.convolve(*wide, padding=1), expected)


def test_fp32_is_left_as_it_is(monkeypatch):
    hidden, weight, bias = tensors(3, True, torch.float32)
    rounded = nets.convolve(hidden, weight, bias, padding=1)
    monkeypatch.setattr(nets, "ROUND_TO_BF16", False)
    assert torch.equal(rounded, nets.convolve(hidden, weight, bias, padding=1))


def test_a_model_gives_the_same_within_bf16(monkeypatch):
    torch.manual_seed(0)
    model = RVQVAE(5, SMALL).eval().to(torch.bfloat16)
    motion = torch.randn(2, 32, 5)
    model.quantizer.initialize_codebooks(model.encode_latents(motion).detach())

    def gradients():
        model.zero_grad()
        latents = model.encode_latents(motion)
        model.decode_latents(latents).float().square().mean().backward()
        return [latents.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    rounded = gradients()
    monkeypatch.setattr(nets, "ROUND_TO_BF16", False)
    for mine, theirs in zip(rounded, gradients(), strict=True):
        assert (mine - theirs).float().norm() < 0.03 * theirs.float().norm()


def test_compiled_it_computes_the_same():
    hidden, weight, bias = tensors(3, True)
    compiled = torch.compile(nets.convolve, backend="aot_eager", fullgraph=True)
    output = compiled(hidden, weight, bias, padding=1)
    assert torch.equal(output, nets.convolve(hidden, weight, bias, padding=1))
    output.float().sum().backward()
    assert weight.grad.dtype == torch.bfloat16 and torch.isfinite(weight.grad).all()
