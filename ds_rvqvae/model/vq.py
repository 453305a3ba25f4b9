"""Arithmetic of codes and vectors: distances, nearest codes, noise, perplexity.

Distances are computed in three ways. `squared_distances` are complete, in the type of their input: in fp64 every
processor agrees on which vectors are equal. `ranking_distances`, the hot path of every forward pass, are in fp32 and
omit a term that does not change which code is nearest. `repeats` must resolve distances near zero in fp32, where the
error of a matrix product grows with the vectors' length: so it computes differences to the few nearest vectors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_ROWS_AT_ONCE = 16_384
"""Vectors whose distances to all codes are in memory at once."""
_DISTANCES_AT_ONCE = 2**24
_BLOCK = 32
_APART, _NEAREST = 1e-8, 4
"""Two vectors count as equal if their squared distance is below this fraction of squared lengths: rounding, not
distance, would choose between them. The second is the number of nearest vectors compared."""


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared distances `[N, K]` of `left [N, D]` to `right [K, D]`, in their own floating type."""
    distances = torch.addmm(right.square().sum(dim=1), left, right.t(), alpha=-2.0)
    return distances.add_(left.square().sum(dim=1, keepdim=True))


def ranking_distances(rows: Tensor, book: Tensor) -> Tensor:
    """Squared distances `[N, K]` of `rows [N, D]` to `book [K, D]` minus the rows' squares, which change no ranking."""
    squares = (book**2).sum(dim=1)
    if rows.device.type != "cpu" or not len(rows):
        return torch.addmm(squares, rows, book.t(), alpha=-2.0)
    # The rows are the pixels of one image in channels-last memory: oneDNN's 1x1 convolution gives the same numbers as
    # a matrix product, and is faster on AMD processors.
    image = rows.reshape(1, 1, *rows.shape).permute(0, 3, 1, 2)
    distances = functional.conv2d(image, (-2.0 * book)[..., None, None], squares)
    return distances.permute(0, 2, 3, 1).reshape(len(rows), len(book))


def checked_latents(latents: Tensor) -> Tensor:
    """Returns latents `[N, D]`; raises ValueError if they, or their distances to each other, overflow fp32."""
    if not torch.isfinite(4.0 * latents.float().square().sum(dim=-1)).all():
        raise ValueError("motion has values so large that the nets overflow")
    return latents


def nearest_codes(rows: Tensor, book: Tensor) -> Tensor:
    """Index `[N]` of the code of `book [K, D]` nearest to each of `rows [N, D]`; the first of several equally near."""
    blocks = [first_least(ranking_distances(block, book)) for block in torch.split(rows, _ROWS_AT_ONCE)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def beam_search(rows: Tensor, books: Sequence[Tensor], beam_size: int) -> Tensor:
    """Codes `[N, Q]` whose vectors, one of each of the `books [K, D]`, add up to a sum near to each of `rows [N, D]`.

    After each level the best `beam_size` sums are kept, not only that of the nearest code. The codes belong together:
    the first of them alone may be farther from the row than its nearest code. Sources: Babenko and Lempitsky 2014
    (additive quantization), Liu et al. 2015 (the same for residual quantization).
    """
    blocks = [_beam_search(block, books, beam_size) for block in torch.split(rows, max(1, _ROWS_AT_ONCE // beam_size))]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _beam_search(rows: Tensor, books: Sequence[Tensor], beam_size: int) -> Tensor:
    left = rows.unsqueeze(1)
    codes = torch.empty(len(rows), 1, 0, dtype=torch.int64, device=rows.device)
    for book in books:
        distances = ranking_distances(left.reshape(-1, left.shape[-1]), book).view(*left.shape[:2], len(book))
        # Different sums of one row are compared here, so their own squares count.
        distances += left.square().sum(dim=-1, keepdim=True)
        each, code = distances.topk(min(beam_size, len(book)), dim=-1, largest=False)
        chosen = each.flatten(1).topk(min(beam_size, each.shape[1] * each.shape[2]), dim=-1, largest=False).indices
        code, path = code.flatten(1).gather(1, chosen), chosen // each.shape[-1]
        left = torch.take_along_dim(left, path.unsqueeze(-1), dim=1) - book[code]
        codes = torch.cat([torch.take_along_dim(codes, path.unsqueeze(-1), dim=1), code.unsqueeze(-1)], dim=-1)
    return codes[:, 0]


def first_least(distances: Tensor) -> Tensor:
    """Index `[N]` of the least value in each row of `distances [N, K]`; the first if several are equal."""
    rows, codes = distances.shape
    if distances.device.type != "cpu" or codes % _BLOCK:
        return distances.argmin(dim=1)
    # torch uses vector instructions to find the least value, but not its index: so only one block per row is searched.
    blocks = distances.view(rows, codes // _BLOCK, _BLOCK)
    block = blocks.amin(dim=2).argmin(dim=1)
    inside = blocks.gather(1, block.view(rows, 1, 1).expand(rows, 1, _BLOCK)).view(rows, _BLOCK).argmin(dim=1)
    return block * _BLOCK + inside


def repeats(candidates: Tensor, books: Tensor, distances_at_once: int = _DISTANCES_AT_ONCE) -> Tensor:
    """Whether each of `candidates [Q, R, D]` equals, up to rounding, a code of the `books [Q, K, D]` or an earlier
    candidate: bool `[Q, R]`.

    Args:
        distances_at_once: how many are in memory at once, over all levels; the result does not depend on it.
    """
    others = torch.cat([books, candidates], dim=1)
    squares, other_squares = candidates.square().sum(dim=-1, keepdim=True), others.square().sum(dim=-1).unsqueeze(1)
    reach = _APART * (squares + squares.mean(dim=1, keepdim=True))
    # A candidate is compared with all codes, and with the candidates before it.
    place = torch.arange(others.shape[1], device=others.device) - books.shape[1]
    at_once = max(1, distances_at_once // (others.shape[0] * others.shape[1]))
    found = []
    for first in range(0, candidates.shape[1], at_once):
        block, near = candidates[:, first : first + at_once], reach[:, first : first + at_once]
        own = torch.arange(first, first + block.shape[1], device=others.device).unsqueeze(1)
        distances = torch.baddbmm(other_squares, block, others.transpose(1, 2), alpha=-2.0)
        distances.masked_fill_(place >= own, torch.inf)
        nearest = distances.topk(min(_NEAREST, distances.shape[-1]), dim=-1, largest=False)
        # The error of a product's distances grows with the vectors' length; that of differences does not.
        compared = torch.take_along_dim(others, nearest.indices.flatten(1).unsqueeze(-1), dim=1)
        apart = block.unsqueeze(2) - compared.view(*nearest.indices.shape, -1)
        found.append(((apart.square().sum(dim=-1) <= near) & nearest.values.isfinite()).any(dim=-1))
    return torch.cat(found, dim=1)


def noise_of_copies(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise that makes copies of vectors `[..., D]` distinct codes, as in MoMask."""
    size: float = 0.01 / shape[-1] ** 0.5
    return torch.randn(shape, generator=generator) * size


def perplexity_of(counts: Tensor) -> Tensor:
    """Perplexity `[Q]` of code counts `[Q, K]`: exp of the entropy, 1 … K; 0 if nothing was counted."""
    total = counts.sum(dim=-1, keepdim=True)
    share = counts / total.clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum(dim=-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


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
    """`quantized [N, D]` forward; backward as if it were `latents [N, D]`, rotated and scaled.

    Rotation and scale are constants in the backward pass: latents with the same code get different gradients.
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
        # The transpose of I - 2 b bᵀ + 2 t sᵀ, which rotates s to t.
        turned = gradient - 2 * between * (between * gradient).sum(-1, keepdim=True)
        turned = turned + 2 * source * (target * gradient).sum(-1, keepdim=True)
        return turned * (lengths[1] / lengths[0]), None


class _Commitment(torch.autograd.Function):
    """`loss`, the mean square of `left [levels, N, D]`: latents `[N, D]` minus the codes up to each level.

    It keeps one tensor of the latents' shape for the backward pass, whatever the number of levels.
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
"""Takes latents, quantized latents and a gain; returns the quantized, with gradient times gain to the latents."""
rotation_trick: Callable[[Tensor, Tensor], Tensor] = _RotationTrick.apply
"""Takes latents and quantized latents `[N, D]`; returns the quantized, with a rotated and scaled gradient."""
commitment: Callable[[Tensor, Tensor, Tensor], Tensor] = _Commitment.apply
"""Takes latents `[N, D]`, the loss and residuals `[levels, N, D]`; returns the loss, with gradient to the latents."""
