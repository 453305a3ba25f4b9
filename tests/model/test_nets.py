"""The nets: parameter counts of the lineage, lengths, precision, activation checkpointing."""

import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ds_rvqvae import RVQVAE, load_profile
from ds_rvqvae.gpu.quantizers import codebook_count
from ds_rvqvae.gpu.sizes import parameter_count
from ds_rvqvae.model.nets import Convolution, Dropout, ResidualStack
from tests.model.small import SMALL

RECOMPUTE = functools.partial(checkpoint, use_reentrant=False)


@pytest.mark.parametrize(
    ("profile", "count"), [("baseline", 17_688_270), ("wide", 127_153_358), ("large", 230_822_606)]
)
def test_parameter_counts_are_the_lineages(profile, count):
    config = load_profile(profile).rvqvae.model
    with torch.device("meta"):
        model = RVQVAE(78, config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert parameter_count(78, config) == count
    assert model.quantizer.codebooks.shape == (codebook_count(config), config.nb_code, config.code_dim)


@pytest.mark.parametrize("norm", [None, "LN", "GN"])
@pytest.mark.parametrize(("down_t", "stride_t"), [(0, 2), (1, 1), (1, 3), (2, 2), (3, 2), (2, 4)])
def test_lengths_and_counts_for_every_shape(norm, down_t, stride_t):
    config = SMALL.model_copy(update={"norm": norm, "down_t": down_t, "stride_t": stride_t})
    model = RVQVAE(5, config).eval()
    stride = stride_t**down_t
    motion = torch.randn(2, 3 * stride, 5)
    output = model(motion)
    assert output.reconstruction.shape == motion.shape
    assert output.codes.shape == (2, 3, 3)
    assert model.encode(motion).dtype == torch.int64
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(5, config)


def test_first_weights_that_keep_the_size_of_what_passes():
    config = SMALL.model_copy(update={"width": 256, "code_dim": 128})
    motion, latents = torch.randn(8, 64, 32), torch.randn(8, 16, 128)
    sizes = {}
    for weight_init, zero in (("torch", False), ("he", True)):
        torch.manual_seed(0)
        model = RVQVAE(32, config.model_copy(update={"weight_init": weight_init, "zero_init_residual": zero}))
        sizes[weight_init] = [model.encode_latents(motion).std().item(), model.decode_latents(latents).std().item()]
    assert all(0.4 < size < 1.6 for size in sizes["he"])
    assert all(size < 0.2 for size in sizes["torch"])


def test_zero_init_residual_makes_every_stack_the_identity_until_it_learns():
    model = RVQVAE(5, SMALL.model_copy(update={"zero_init_residual": True}))
    stacks = [module for module in model.modules() if isinstance(module, ResidualStack)]
    hidden = torch.randn(2, 32, 8)
    assert len(stacks) == 4 and all(torch.equal(stack(hidden), hidden) for stack in stacks)
    model(torch.randn(2, 16, 5)).reconstruction.square().mean().backward()
    assert all(block.conv2.weight.grad.any() for stack in stacks for block in stack.blocks)


def _gradients(model, motion):
    model.zero_grad()
    model.set_step(0, 5)
    output = model(motion)
    (output.reconstruction.square().mean() + output.commit_loss).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_with_checkpointing_are_equal_bit_for_bit(dtype):
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"dropout": 0.3})
    model = RVQVAE(5, config).to(dtype).train()
    motion = torch.randn(4, 32, 5)
    kept = _gradients(model, motion)
    model.set_checkpointing(RECOMPUTE)
    recomputed = _gradients(model, motion)
    assert len(kept) == len(list(model.parameters()))
    for name, gradient in kept.items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, recomputed[name]), name


def test_checkpointing_counts_codes_once():
    model = RVQVAE(5, SMALL)
    model.set_checkpointing(RECOMPUTE)
    motion = torch.randn(2, 16, 5)
    _gradients(model, motion)
    model.quantizer.update_codebooks()
    assert model.quantizer.take_usage_counts().sum(dim=1).tolist() == [8.0, 8.0, 8.0]


def _kept_bytes(model, motion):
    """Bytes that autograd keeps for the backward pass: distinct storages, without parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(motion)
        loss = output.reconstruction.float().square().mean() + output.commit_loss
    loss.backward()
    return sum(size for size, _ in kept.values())


def test_checkpointing_keeps_less_than_half_the_bytes_at_the_baseline_shape():
    config = load_profile("baseline").rvqvae.model
    model = RVQVAE(78, config).to(torch.bfloat16).train()
    motion = torch.randn(80, 128, 78)
    whole = _kept_bytes(model, motion)
    model.set_checkpointing(RECOMPUTE)
    assert _kept_bytes(model, motion) < 0.5 * whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_scales_the_rest(dtype):
    dropout = Dropout(0.2)
    hidden = torch.ones(8, 64, 512, dtype=dtype).transpose(1, 2).requires_grad_()
    torch.manual_seed(0)
    dropped = dropout(hidden)
    kept = dropped != 0
    # 262,144 draws: five standard deviations are 0.004.
    assert kept.float().mean().item() == pytest.approx(0.8, abs=0.004)
    assert dropped[kept].unique().tolist() == [pytest.approx(1.25, rel=1e-3)]
    assert dropped.stride() == hidden.stride()
    (gradient,) = torch.autograd.grad(dropped.sum(), hidden)
    assert torch.equal(gradient, dropped)
    rates = kept.float().mean(dim=(0, 1)), kept.float().mean(dim=(0, 2)), kept.float().mean(dim=(1, 2))
    assert all((rate - 0.8).abs().max() < 0.1 for rate in rates)
    torch.manual_seed(0)
    assert torch.equal(dropout(hidden), dropped)
    assert not torch.equal(dropout(hidden), dropped)
    assert dropout.eval()(hidden) is hidden


@pytest.mark.parametrize("probability", [1e-6, 0.5, 1 - 1e-6, 1.0])
def test_dropout_at_its_ends_is_finite(probability):
    hidden = torch.ones(4, 8, 33)
    dropped = Dropout(probability)(hidden)
    assert torch.isfinite(dropped).all()
    assert probability != 1.0 or not dropped.any()


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_torchs_own(stride):
    torch.manual_seed(0)
    ours = Convolution(6, 7, 4, stride=stride, padding=3, dilation=2)
    theirs = torch.nn.Conv1d(6, 7, 4, stride=stride, padding=3, dilation=2)
    theirs.load_state_dict(ours.state_dict())
    for hidden in (torch.randn(3, 6, 20), torch.randn(3, 20, 6).transpose(1, 2), torch.randn(3, 6, 40)[:, :, 5:25]):
        torch.testing.assert_close(ours(hidden), theirs(hidden))
