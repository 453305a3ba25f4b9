"""Encoder and decoder: strided 1-D convolutions and dilated residual stacks, as in T2M-GPT and MoMask.

Encoder and decoder take `[batch, channels, time]`. Between their layers a tensor is an image one pixel high,
`[batch, channels, 1, time]`, because torch copies the input of `conv1d`. In memory the channels of one frame are
adjacent, as in the motion itself: oneDNN and cuDNN convolve this layout without copies. The layers that run in chunks
also take `[batch, channels, time]`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.host import has_bf16_arithmetic

Checkpoint = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""Runs `function(input)` and recomputes it in the backward pass."""

_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
ROUND_TO_BF16 = not has_bf16_arithmetic()
"""Whether CPU convolutions of bf16 tensors compute in fp32. Without bf16 instructions, torch's own bf16 convolutions
take twice as long as fp32 (AVX-512) or ten times as long (AVX2, a reference loop), and accumulate in fp32 anyway."""


def convolve(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """`conv1d` of `[batch, channels, time]`, by `convolve_image`."""
    return convolve_image(image_of(hidden), weight, bias, stride, padding, dilation).squeeze(2)


def image_of(hidden: Tensor) -> Tensor:
    """`[batch, channels, time]` as an image `[batch, channels, 1, time]` in channels-last memory."""
    return hidden.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def convolve_image(
    image: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """`conv1d` of each row of an image in channels-last memory.

    Args:
        image: `[batch, channels, height, time]`.
        weight: `[channels', channels, kernel]` or `[channels', channels, 1, kernel]`.
    """
    if weight.dim() == 3:
        weight = weight.unsqueeze(2)
    places = ((1, stride), (0, padding), (1, dilation))
    if not ROUND_TO_BF16 or not _is_in_bf16(image, weight):
        # By this name, which DeepSpeed's flops profiler watches.
        return functional.conv2d(image, weight, bias, *places)
    with torch.autocast("cpu", enabled=False):
        image, weight = image.bfloat16(), weight.bfloat16()
        bias = None if bias is None else bias.bfloat16()
        if torch.compiler.is_compiling():
            # Inductor chooses what to keep for the backward pass.
            wide_bias = None if bias is None else bias.float()
            return functional.conv2d(image.float(), weight.float(), wide_bias, *places).bfloat16()
        return _rounded_convolution(image, weight, bias, *places)


def join_past(past: tuple[Tensor, ...], chunk: Tensor, kept: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Joins the samples kept from the chunk before with a chunk `[batch, channels, time]`, in channels-last memory as
    `convolve` needs it. Also returns a copy of the last `kept` samples for the next chunk."""
    before = past[0] if past else chunk.new_zeros(*chunk.shape[:-1], kept)
    joined = torch.cat([before.transpose(1, 2), chunk.transpose(1, 2)], dim=1).transpose(1, 2)
    return joined, (joined[..., chunk.shape[-1] :].clone(),)


def zero_outside(chunk: Tensor, first: int, length: int | None) -> Tensor:
    """Returns the chunk with zeros at positions before 0 and from `length` on."""
    samples = chunk.shape[-1]
    before = max(-first, 0)
    after = samples if length is None else max(length - first, 0)
    if not before and after >= samples:
        return chunk
    chunk = chunk.clone()
    chunk[..., :before] = 0
    chunk[..., after:] = 0
    return chunk


def _is_in_bf16(image: Tensor, weight: Tensor) -> bool:
    """Whether a convolution computes in bf16 on a CPU, by the tensors' dtype or by autocast."""
    if image.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return image.dtype == weight.dtype == torch.bfloat16


class _RoundedConvolution(torch.autograd.Function):
    """`conv2d` of bf16 tensors: both passes compute in fp32 and round to bf16; tensors for backward stay in bf16."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.places, ctx.bias_sizes = (stride, padding, dilation), None if bias is None else [len(bias)]
        wide_bias = None if bias is None else bias.float()
        return functional.conv2d(image.float(), weight.float(), wide_bias, stride, padding, dilation).bfloat16()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = (tensor.float() for tensor in ctx.saved_tensors)
        wanted = [
            wants and (index < 2 or ctx.bias_sizes is not None) for index, wants in enumerate(ctx.needs_input_grad[:3])
        ]
        gradients = torch.ops.aten.convolution_backward(
            gradient.float(), image, weight, ctx.bias_sizes, *ctx.places, False, [0, 0], 1, wanted
        )
        return *(each if each is None else each.bfloat16() for each in gradients), None, None, None


# torch's `apply` comes without types.
_rounded_convolution: Callable[..., Tensor] = _RoundedConvolution.apply


class Convolution(nn.Conv1d):
    """`nn.Conv1d`, with the same weights, of `[batch, channels, time]` or an image."""

    padding: tuple[int, ...]

    def forward(self, hidden: Tensor) -> Tensor:
        compute = convolve_image if hidden.dim() == 4 else convolve
        return compute(hidden, self.weight, self.bias, self.stride[0], self.padding[0], self.dilation[0])


class Upsample(nn.Upsample):
    """Repeats every frame of `[batch, channels, time]` or an image."""

    scale_factor: float

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.movedim(1, -1).repeat_interleave(int(self.scale_factor), dim=-2).movedim(-1, 1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of `[batch, channels, time]` or an image."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.movedim(1, -1)).movedim(-1, 1)


class GroupNorm(nn.GroupNorm):
    """Group norm of an image, with its output in channels-last memory."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).contiguous(memory_format=torch.channels_last)


def _norm(kind: str | None, width: int) -> nn.Module:
    if kind is None:
        return nn.Identity()
    return ChannelNorm(width) if kind == "LN" else GroupNorm(32, width, eps=1e-6)


class Dropout(nn.Dropout):
    """Dropout that keeps one byte per element for the backward pass.

    On CPUs, torch's own dropout keeps noise in the input's type and draws each element separately, ten times slower.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return hidden
        if hidden.device.type != "cpu" or torch.compiler.is_compiling() or self.p > 1 - 2**-16:
            return torch.native_dropout(hidden, self.p, True)[0]
        return _dropout_on_cpu(hidden, self.p)


def _dropout_on_cpu(hidden: Tensor, probability: float) -> Tensor:
    """Drops elements where 16 random bits, drawn 64 at a time, say so."""
    bits = torch.empty(hidden.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    strides = torch.empty_like(hidden, dtype=torch.int8).stride()
    dropped = round(probability * 2**16)
    kept = bits.as_strided(hidden.shape, strides) >= dropped - 2**15
    # Bytes, because multiplying by bool is slow. Autograd keeps them, and not `hidden`.
    return (hidden * kept.view(torch.uint8)).mul_(2**16 / (2**16 - dropped))


class ResidualBlock(nn.Module):
    """Norm, activation, dilated conv 3, norm, activation, conv 1, dropout, add."""

    def __init__(self, config: ModelConfig, dilation: int) -> None:
        super().__init__()
        width, activation = config.width, _ACTIVATIONS[config.activation]
        self.norm1 = _norm(config.norm, width)
        self.activation1 = activation()
        self.conv1 = Convolution(width, width, 3, padding=dilation, dilation=dilation)
        self.norm2 = _norm(config.norm, width)
        self.activation2 = activation()
        self.conv2 = Convolution(width, width, 1)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(self.activation1(self.norm1(hidden)))
        added: Tensor = self.dropout(self.conv2(self.activation2(self.norm2(inner))))
        return hidden + added


class Blocks(nn.Sequential):
    """Residual blocks, one after another."""

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.dim() == 4:
            # Activations that DeepSpeed partitions between the passes come back in another memory layout.
            hidden = hidden.contiguous(memory_format=torch.channels_last)
        for block in self:
            hidden = block(hidden)
        return hidden


class ResidualStack(nn.Module):
    """The `depth` blocks of a stage, the largest dilation first: the unit of activation checkpointing.

    Checkpointing per stack keeps fewer bytes than per block, because only the input of the stack is kept.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dilations = [config.dilation_growth_rate**index for index in reversed(range(config.depth))]
        self.blocks = Blocks(*(ResidualBlock(config, dilation) for dilation in dilations))
        self.checkpoint: Checkpoint | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.checkpoint is not None and self.training and torch.is_grad_enabled():
            return self.checkpoint(self.blocks, hidden)
        output: Tensor = self.blocks(hidden)
        return output


class DownSample(Convolution):
    """Convolution with kernel `2 * stride_t` and stride `stride_t`: `time` to `time / stride_t`."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__(width, width, 2 * stride, stride=stride, padding=stride // 2)

    def forward(self, hidden: Tensor) -> Tensor:
        # An odd stride needs one more frame of padding on the right than on the left.
        return super().forward(functional.pad(hidden, (0, 1)) if self.stride[0] % 2 else hidden)


def _first_weights(net: nn.Sequential, config: ModelConfig) -> None:
    """Sets the weights that `weight_init` and `zero_init_residual` ask for; the others keep torch's own."""
    before = None
    for module in net.modules():
        if config.weight_init == "he" and isinstance(module, nn.Conv1d):
            activated = isinstance(before, tuple(_ACTIVATIONS.values()))
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if activated else "linear")
            _zero(module.bias)
        before = module
    for module in net.modules():
        if config.zero_init_residual and isinstance(module, ResidualBlock):
            _zero(module.conv2.weight)
            _zero(module.conv2.bias)


def _zero(parameter: Tensor | None) -> None:
    if parameter is not None:
        nn.init.zeros_(parameter)


class Encoder(nn.Sequential):
    """Motion `[batch, features, time]` to latents `[batch, code_dim, time / stride_t**down_t]`."""

    def __init__(self, in_features: int, config: ModelConfig) -> None:
        layers: list[nn.Module] = [
            Convolution(in_features, config.width, 3, padding=1),
            _ACTIVATIONS[config.activation_outside](),
        ]
        for _ in range(config.down_t):
            layers += [DownSample(config.width, config.stride_t), ResidualStack(config)]
        super().__init__(*layers, Convolution(config.width, config.code_dim, 3, padding=1))
        _first_weights(self, config)

    def forward(self, hidden: Tensor) -> Tensor:
        run: Callable[[Tensor], Tensor] = super().forward  # torch has no types for it
        return run(image_of(hidden)).squeeze(2)


class Decoder(nn.Sequential):
    """Latents `[batch, code_dim, time / stride_t**down_t]` to motion `[batch, features, time]`."""

    def __init__(self, out_features: int, config: ModelConfig) -> None:
        width, activation = config.width, _ACTIVATIONS[config.activation_outside]
        layers: list[nn.Module] = [Convolution(config.code_dim, width, 3, padding=1), activation()]
        for _ in range(config.down_t):
            upsample = Upsample(scale_factor=config.stride_t, mode="nearest")
            layers += [ResidualStack(config), upsample, Convolution(width, width, 3, padding=1)]
        last = [Convolution(width, width, 3, padding=1), activation(), Convolution(width, out_features, 3, padding=1)]
        super().__init__(*layers, *last)
        _first_weights(self, config)

    def forward(self, hidden: Tensor) -> Tensor:
        run: Callable[[Tensor], Tensor] = super().forward  # torch has no types for it
        return run(image_of(hidden)).squeeze(2)
