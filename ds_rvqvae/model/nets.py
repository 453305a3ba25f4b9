"""Encoder and decoder: strided 1-D convolutions and dilated residual stacks, as in T2M-GPT and MoMask.

Everything here is channels-first, `[batch, channels, time]`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ds_rvqvae.profile import ModelConfig

Checkpoint = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""Runs `function(input)` and recomputes it in the backward pass."""

_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of `[batch, channels, time]`."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.transpose(1, 2)).transpose(1, 2)


def _norm(kind: str | None, width: int) -> nn.Module:
    if kind is None:
        return nn.Identity()
    return ChannelNorm(width) if kind == "LN" else nn.GroupNorm(32, width, eps=1e-6)


class Dropout(nn.Dropout):
    """Dropout that keeps a byte an element on CPUs too, where torch's own keeps noise in the input's type."""

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return hidden
        return torch.native_dropout(hidden, self.p, True)[0]


class ResidualBlock(nn.Module):
    """Norm, activation, dilated conv 3, norm, activation, conv 1, dropout, add."""

    def __init__(self, config: ModelConfig, dilation: int):
        super().__init__()
        width, activation = config.width, _ACTIVATIONS[config.activation]
        self.norm1 = _norm(config.norm, width)
        self.activation1 = activation()
        self.conv1 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm2 = _norm(config.norm, width)
        self.activation2 = activation()
        self.conv2 = nn.Conv1d(width, width, 1)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(self.activation1(self.norm1(hidden)))
        return hidden + self.dropout(self.conv2(self.activation2(self.norm2(inner))))


class ResidualStack(nn.Module):
    """The `depth` blocks of a stage, the largest dilation first: the unit of activation checkpointing.

    One region a stack keeps fewer bytes than one a block, because only the stack's input has to survive.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        dilations = [config.dilation_growth_rate**index for index in reversed(range(config.depth))]
        self.blocks = nn.Sequential(*(ResidualBlock(config, dilation) for dilation in dilations))
        self.checkpoint: Checkpoint | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.checkpoint is not None and self.training and torch.is_grad_enabled():
            return self.checkpoint(self.blocks, hidden)
        return self.blocks(hidden)


class DownSample(nn.Conv1d):
    """Conv of kernel `2 * stride_t` and that stride: `time` to `time / stride_t`."""

    def __init__(self, width: int, stride: int):
        super().__init__(width, width, 2 * stride, stride=stride, padding=stride // 2)

    def forward(self, hidden: Tensor) -> Tensor:
        # An odd stride needs one frame more on the right than on the left.
        return super().forward(functional.pad(hidden, (0, 1)) if self.stride[0] % 2 else hidden)


class Encoder(nn.Sequential):
    """Motion `[batch, features, time]` to latents `[batch, code_dim, time / stride_t**down_t]`."""

    def __init__(self, in_features: int, config: ModelConfig):
        layers: list[nn.Module] = [
            nn.Conv1d(in_features, config.width, 3, padding=1),
            _ACTIVATIONS[config.activation](),
        ]
        for _ in range(config.down_t):
            layers += [DownSample(config.width, config.stride_t), ResidualStack(config)]
        super().__init__(*layers, nn.Conv1d(config.width, config.code_dim, 3, padding=1))


class Decoder(nn.Sequential):
    """Latents `[batch, code_dim, time / stride_t**down_t]` to motion `[batch, features, time]`."""

    def __init__(self, out_features: int, config: ModelConfig):
        width, activation = config.width, _ACTIVATIONS[config.activation]
        layers: list[nn.Module] = [nn.Conv1d(config.code_dim, width, 3, padding=1), activation()]
        for _ in range(config.down_t):
            upsample = nn.Upsample(scale_factor=config.stride_t, mode="nearest")
            layers += [ResidualStack(config), upsample, nn.Conv1d(width, width, 3, padding=1)]
        last = [nn.Conv1d(width, width, 3, padding=1), activation(), nn.Conv1d(width, out_features, 3, padding=1)]
        super().__init__(*layers, *last)
