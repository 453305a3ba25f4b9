"""Activations and operations by arithmetic, compared with what torch itself saves and counts."""

import functools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ds_rvqvae import RVQVAE, load_profile
from ds_rvqvae.config.model import LossConfig, ModelConfig
from ds_rvqvae.gpu.activations import LAYERS, LOSSES, activations_of
from ds_rvqvae.gpu.quantizers import QUANTIZERS
from ds_rvqvae.gpu.sizes import parameter_sizes
from ds_rvqvae.model.losses import LossColumns, Losses, tokenizer_losses
from tests.settings import ALL_LOSSES, losses_with_another, models_with_another
from tests.settings import SMALL as SMALL_MODEL

ALL_LEVELS = "rvqvae.model.quantize_dropout_prob=0"
SMALL = ["rvqvae.model.width=64", "rvqvae.model.nb_code=32", "rvqvae.model.code_dim=16", ALL_LEVELS]


def profile_with(name, *overrides, checkpointing):
    return load_profile(name, [*overrides, f"rvqvae.training.gradient_checkpointing={str(checkpointing).lower()}"])


def make_model(profile, in_features):
    """The model as the engine trains it; a cast that also works on fake tensors."""
    model = RVQVAE(in_features, profile.rvqvae.model).train()
    dtype = torch.bfloat16 if profile.bf16.enabled else torch.float32
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(parameter.detach().to(dtype)))
    if profile.rvqvae.training.gradient_checkpointing:
        model.set_checkpointing(functools.partial(checkpoint, use_reentrant=False))
    return model


def columns_of(profile, in_features):
    """Loss columns that are all rotations."""
    joints = in_features // 6
    weights = None if profile.rvqvae.loss.joint_weights is None else torch.ones(in_features)
    six = torch.zeros(joints, 6), torch.ones(joints, 6)
    return LossColumns(weights, torch.arange(6 * joints).view(joints, 6), *six, torch.zeros(()))


def loss_of(profile, model, motion, columns=None):
    output = model(motion)
    columns = columns or columns_of(profile, motion.shape[2])
    return tokenizer_losses(output.reconstruction, motion, output.commit_loss, profile.rvqvae.loss, columns).loss


def saved_bytes(profile, in_features, windows):
    """Bytes of distinct storages that autograd saves, without parameters, buffers and the batch."""
    model = make_model(profile, in_features)
    motion = torch.randn(windows, profile.rvqvae.data.window_size, in_features)
    columns = columns_of(profile, in_features)
    data = (motion, *(tensor for tensor in columns if tensor is not None))
    own = [tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), *data)]
    saved, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(profile, model, motion, columns)
    return sum(saved.values())


VARIANTS = {
    "as shipped": [],
    "layer norm": ["rvqvae.model.norm=LN"],
    "layer norm, silu": ["rvqvae.model.norm=LN", "rvqvae.model.activation=silu"],
    "group norm, silu": ["rvqvae.model.norm=GN", "rvqvae.model.activation=silu"],
    "silu in the blocks": ["rvqvae.model.activation=silu", "rvqvae.model.outer_activation=relu"],
    "gelu without dropout": ["rvqvae.model.activation=gelu", "rvqvae.model.dropout=0"],
    "odd stride, l1": ["rvqvae.model.stride_t=3", "rvqvae.data.window_size=36", "rvqvae.loss.recons_loss=l1"],
    "stride 1, l2": ["rvqvae.model.stride_t=1", "rvqvae.loss.recons_loss=l2"],
    "no down-sampling": ["rvqvae.model.down_t=0"],
    "one block": ["rvqvae.model.depth=1", "rvqvae.model.down_t=3"],
    "rotation trick, acceleration": ["rvqvae.model.gradient=rotation_trick", "rvqvae.loss.loss_acc=0.5"],
    "input noise, l1, acceleration": [
        "rvqvae.model.input_noise=0.1",
        "rvqvae.loss.recons_loss=l1",
        "rvqvae.loss.loss_acc=0.5",
    ],
    "loss of rotations, l1": ["rvqvae.loss.loss_rotation=0.5", "rvqvae.loss.recons_loss=l1"],
    "geodesic loss": ["rvqvae.loss.loss_rotation=0.5", "rvqvae.loss.rotation_distance=geodesic"],
    "scalar quantization": [
        "rvqvae.model.fsq_levels=[8,8]",
        "rvqvae.model.nb_code=64",
        "rvqvae.model.code_dim=4",
    ],
    "lineage": ["rvqvae.model.lineage=true", "rvqvae.model.shared_codebook=true"],
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["true", "false"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_bytes_are_autograds_to_the_byte(variant, precision, checkpointing):
    overrides = [*SMALL, f"bf16.enabled={precision}", *VARIANTS[variant]]
    profile = profile_with("baseline", *overrides, checkpointing=checkpointing)
    assert activations_of(profile, 30, 3, device="cpu").kept_bytes == saved_bytes(profile, 30, 3)


@pytest.mark.parametrize("key", [*ModelConfig.model_fields, *LossConfig.model_fields])
def test_kept_bytes_are_autograds_whatever_a_key_says(key):
    is_loss = key in LossConfig.model_fields
    profile = profile_with("baseline", "rvqvae.data.window_size=36", checkpointing=False)
    profile = profile.with_values({"rvqvae.model": SMALL_MODEL, "rvqvae.loss": ALL_LOSSES})
    for config in losses_with_another(key) if is_loss else models_with_another(key):
        profile = profile.with_values({"rvqvae.loss" if is_loss else "rvqvae.model": config})
        profile = profile.with_values({"rvqvae.model.quantize_dropout_prob": 0.0})
        assert activations_of(profile, 30, 3, device="cpu").kept_bytes == saved_bytes(profile, 30, 3), config


def unknown_layers(model):
    """The complaints about modules that the memory plan does not know."""
    found = dict.fromkeys(type(module).__name__ for module in model.modules())
    return [
        f"{name}: not known to the memory plan; count what it keeps in the walk of ds_rvqvae/gpu/activations.py and "
        "name it in LAYERS there, or a quantizer in ds_rvqvae/gpu/quantizers.py and in its QUANTIZERS"
        for name in found
        if name not in (*LAYERS, *QUANTIZERS)
    ]


def small_models():
    """Models on the meta device, with every kind of layer and quantizer that a key can choose."""
    configs = [SMALL_MODEL, *(config for key in ModelConfig.model_fields for config in models_with_another(key))]
    with torch.device("meta"):
        return [RVQVAE(30, config) for config in configs]


def test_the_plan_knows_every_layer_and_parameter():
    models = small_models()
    assert not (unknown := sorted({text for model in models for text in unknown_layers(model)})), "\n".join(unknown)
    there = {type(module).__name__ for model in models for module in model.modules()}
    assert set(LAYERS) <= there, "LAYERS names classes that no model has"
    for model in models:
        assert parameter_sizes(30, model.config) == [one.numel() for one in model.parameters()], model.config


def test_a_layer_that_it_does_not_know_is_named():
    class Snake(nn.Module):
        """Some new activation."""

    model = RVQVAE(30, SMALL_MODEL)
    assert unknown_layers(model) == []
    model.decoder.append(Snake())
    (text,) = unknown_layers(model)
    assert text.startswith("Snake: not known to the memory plan")


def test_the_plan_knows_every_loss():
    unknown = [name for name in Losses._fields if name not in ("loss", *LOSSES)]
    assert not unknown, f"{', '.join(unknown)}: say in LOSSES of ds_rvqvae/gpu/activations.py what it keeps"
    assert set(LOSSES) < set(Losses._fields), "LOSSES names losses that there are not"


@pytest.mark.parametrize("name", ["baseline", "wide", "large"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_bytes_of_the_shipped_profiles_at_their_own_batch(name, checkpointing):
    profile = profile_with(name, ALL_LEVELS, checkpointing=checkpointing)
    windows = profile.train_micro_batch_size_per_gpu
    with FakeTensorMode():
        saved = saved_bytes(profile, 78, windows)
    # Without a layer norm, CUDA keeps the same.
    assert activations_of(profile, 78, windows).kept_bytes == saved


@pytest.mark.parametrize("name", ["baseline", "wide", "large"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(name, checkpointing):
    profile = profile_with(name, ALL_LEVELS, checkpointing=checkpointing)
    with FakeTensorMode():
        model = make_model(profile, 78)
        motion = torch.randn(4, profile.rvqvae.data.window_size, 78)
        with FlopCounterMode(display=False) as counter:
            loss_of(profile, model, motion).backward()
    counted = activations_of(profile, 78, 4)
    assert counted.flops + counted.recomputed_flops == counter.get_total_flops()
    assert (counted.recomputed_flops > 0) == checkpointing


@pytest.mark.parametrize("norm", ["null", '"LN"'])
def test_gradients_are_complete_in_the_order_of_the_backward_pass(norm):
    settings = [f"rvqvae.model.{setting}" for setting in ("depth=1", "down_t=1", f"norm={norm}")]
    profile = load_profile("baseline", settings)
    counted = activations_of(profile, 78, 4)
    sizes = [size for layer in counted.layers for size, _ in layer.parameters]
    assert sizes == parameter_sizes(78, profile.rvqvae.model)
    shares = counted.gradient_shares()
    assert shares == sorted(shares, reverse=True) and shares[0] == 1
    # By hand, in units of a convolution of width 512, kernel 1 and 64 frames: the decoder's last two convolutions and
    # the one after up-sampling have kernel 3 and 128 frames; its stack runs again, and its last convolution is first.
    last = 6 * 78 / 512
    backward = [2 * last, 2 * last + 12, 2 * last + 24, 2 * last + 24 + (4 + 2), 2 * last + 24 + (4 + 2) + 6]
    behind = [shares[index] / shares[-1] * 2 * last for index in (-1, -3, -5, -7, -11 if norm == '"LN"' else -9)]
    assert behind == pytest.approx(backward)
    whole = counted.flops + counted.recomputed_flops - sum(layer.flops for layer in counted.layers)
    assert shares[-1] * whole == 2 * 2 * 4 * 128 * 512 * 78 * 3


def test_a_baseline_step_is_485_gflop():
    assert activations_of(load_profile("baseline"), 78, 80).flops == pytest.approx(485e9, rel=0.01)


def live_peak(profile, in_features, windows):
    """Most bytes of activations alive at once in the backward pass, by the allocations that torch's profiler saw."""
    model = make_model(profile, in_features)
    motion = torch.randn(windows, profile.rvqvae.data.window_size, in_features)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as recorded:
        loss_of(profile, model, motion).backward()
    alive = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("loss", ["loss_vel=0.5", "loss_rotation=0.5"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_peak_is_near_what_is_alive(checkpointing, loss):
    overrides = [
        ALL_LEVELS,
        f"rvqvae.loss.{loss}",
        "bf16.enabled=false",
        "rvqvae.model.width=128",
        "rvqvae.model.nb_code=32",
    ]
    profile = profile_with("baseline", *overrides, checkpointing=checkpointing)
    activations = activations_of(profile, 30, 16, device="cpu")
    peak = live_peak(profile, 30, 16)
    parameters = sum(parameter.numel() for parameter in RVQVAE(30, profile.rvqvae.model).parameters()) * 4
    assert activations.backward_peak() <= 1.1 * peak
    assert peak <= 1.1 * (activations.backward_peak() + parameters)
