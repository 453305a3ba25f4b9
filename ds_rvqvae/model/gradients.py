"""Gradients through the quantizer, which has none of its own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """`quantized` forward, `gain` times the identity to `latents` backward (van den Oord et al. 2017)."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, quantized: Tensor, gain: int) -> Tensor:
        ctx.gain = gain
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient if ctx.gain == 1 else gradient * ctx.gain, None, None


class _RotationTrick(torch.autograd.Function):
    """`quantized [N, D]` forward; backward as if it were `latents [N, D]` turned and stretched into it.

    Turn and stretch count as constants: latents that share a code get gradients that differ as the latents do.
    Source: Fifty et al. 2024, "Restructuring vector quantization with the rotation trick".
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor, quantized: Tensor) -> Tensor:
        ctx.save_for_backward(latents, quantized)
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        latents, quantized = ctx.saved_tensors
        lengths = [vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6) for vectors in (latents, quantized)]
        source, target = latents / lengths[0], quantized / lengths[1]
        between = source + target
        between = between / between.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        # The transpose of I - 2 b bᵀ + 2 t sᵀ, which turns s into t.
        turned = gradient - 2 * between * (between * gradient).sum(-1, keepdim=True)
        turned = turned + 2 * source * (target * gradient).sum(-1, keepdim=True)
        return turned * (lengths[1] / lengths[0]), None


class _Commitment(torch.autograd.Function):
    """`loss`, which is the mean square of `left [levels, N, D]`: latents `[N, D]` less the codes up to each level.

    Keeps one tensor of the latents' shape for the backward pass, however many levels there are.
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor, loss: Tensor, left: Tensor) -> Tensor:
        ctx.save_for_backward(left.sum(dim=0).mul_(2.0 / left.numel()))
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None


# torch's `apply` comes without types.
straight_through: Callable[[Tensor, Tensor, int], Tensor] = _StraightThrough.apply
"""Of latents, what they were quantized to and a gain: `quantized`, with the gradient times the gain to `latents`."""
rotation_trick: Callable[[Tensor, Tensor], Tensor] = _RotationTrick.apply
"""Of latents and what they were quantized to, `[N, D]`: `quantized`, with a turned and stretched gradient."""
commitment: Callable[[Tensor, Tensor, Tensor], Tensor] = _Commitment.apply
"""Of latents `[N, D]`, the loss and what the levels left `[levels, N, D]`: the loss, with its gradient to latents."""
