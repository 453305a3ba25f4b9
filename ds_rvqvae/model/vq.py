"""Arithmetic of codes and vectors: distances, nearest codes, noise, perplexity.

Distances are computed in three ways. `squared_distances` are complete, in the type of their input: in fp64 every
processor agrees on which vectors are equal. `ranking_distances`, the hot path of every forward pass, are in fp32 and
omit a term that does not change which code is nearest. `repeats` must resolve distances near zero in fp32, where the
error of a matrix product grows with the vectors' length: so it computes differences to the few nearest vectors.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

_ROWS_AT_ONCE = 16_384
"""Vectors whose distances to all codes are in memory at once."""
_DISTANCES_AT_ONCE = 2**24
_BLOCK, _FEW = 32, 8_192
"""Codes per block in the search for the nearest on a CPU; up to the second number of distances, blocks do not pay."""
_APART, _NEAREST = 1e-8, 4
"""Two vectors count as equal if their squared distance is below this fraction of squared lengths: rounding, not
distance, would choose between them. The second is the number of nearest vectors compared."""


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared distances `[N, K]` of `left [N, D]` to `right [K, D]`, in their own floating type."""
    distances = torch.addmm(right.square().sum(dim=1), left, right.t(), alpha=-2.0)
    return distances.add_(left.square().sum(dim=1, keepdim=True))


class SearchedBook(NamedTuple):
    """A codebook prepared for `ranking_distances`."""

    vectors: Tensor
    """`[K, D]`."""
    squares: Tensor
    """`[K]`: squared lengths of the vectors."""
    kernel: Tensor | None
    """`[K, D, 1, 1]`: on CPUs, the vectors times -2 as the weights of a convolution."""


def searched_books(books: Tensor) -> list[SearchedBook]:
    """Each of the codebooks `[Q, K, D]`, prepared for `ranking_distances` with the same few operations for all."""
    squares = books.square().sum(dim=-1).unbind()
    on_cpu = books.device.type == "cpu"
    kernels = (-2.0 * books)[..., None, None].unbind() if on_cpu else [None] * len(books)
    return list(map(SearchedBook, books.unbind(), squares, kernels))


def ranking_distances(rows: Tensor, book: SearchedBook) -> Tensor:
    """Squared distances `[N, K]` of `rows [N, D]` to the book's vectors minus the rows' squares, which change no
    ranking."""
    if book.kernel is None or not len(rows):
        return torch.addmm(book.squares, rows, book.vectors.t(), alpha=-2.0)
    # The rows are the pixels of one image in channels-last memory: oneDNN's 1x1 convolution gives the same numbers as
    # a matrix product, and is faster on AMD processors.
    image = rows.reshape(1, 1, *rows.shape).permute(0, 3, 1, 2)
    distances: Tensor = functional.conv2d(image, book.kernel, book.squares)
    return distances.permute(0, 2, 3, 1).reshape(len(rows), -1)


def checked_latents(latents: Tensor) -> Tensor:
    """Returns latents `[N, D]`; raises ValueError if they, or their distances to each other, overflow fp32."""
    if not torch.isfinite(4.0 * latents.float().square().sum(dim=-1)).all():
        raise ValueError("motion has values so large that the nets overflow")
    return latents


def nearest_codes(rows: Tensor, book: SearchedBook) -> Tensor:
    """Index `[N]` of the code nearest to each of `rows [N, D]`; the first of several equally near."""
    if len(rows) <= _ROWS_AT_ONCE:
        return first_least(ranking_distances(rows, book))
    blocks = [first_least(ranking_distances(block, book)) for block in torch.split(rows, _ROWS_AT_ONCE)]
    return torch.cat(blocks)


def beam_search(rows: Tensor, books: Sequence[SearchedBook], beam_size: int) -> Tensor:
    """Codes `[N, Q]` whose vectors, one of each of the books, add up to a sum near to each of `rows [N, D]`.

    After each level the best `beam_size` sums are kept, not only that of the nearest code. The codes belong together:
    the first of them alone may be farther from the row than its nearest code. Sources: Babenko and Lempitsky 2014
    (additive quantization), Liu et al. 2015 (the same for residual quantization).
    """
    blocks = [_beam_search(block, books, beam_size) for block in torch.split(rows, max(1, _ROWS_AT_ONCE // beam_size))]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _beam_search(rows: Tensor, books: Sequence[SearchedBook], beam_size: int) -> Tensor:
    left = rows.unsqueeze(1)
    codes = torch.empty(len(rows), 1, 0, dtype=torch.int64, device=rows.device)
    for book in books:
        distances = ranking_distances(left.reshape(-1, left.shape[-1]), book).view(*left.shape[:2], len(book.squares))
        # Different sums of one row are compared here, so their own squares count.
        distances += left.square().sum(dim=-1, keepdim=True)
        each, code = distances.topk(min(beam_size, len(book.squares)), dim=-1, largest=False)
        chosen = each.flatten(1).topk(min(beam_size, each.shape[1] * each.shape[2]), dim=-1, largest=False).indices
        code, path = code.flatten(1).gather(1, chosen), chosen // each.shape[-1]
        left = torch.take_along_dim(left, path.unsqueeze(-1), dim=1) - book.vectors[code]
        codes = torch.cat([torch.take_along_dim(codes, path.unsqueeze(-1), dim=1), code.unsqueeze(-1)], dim=-1)
    return codes[:, 0]


def first_least(distances: Tensor) -> Tensor:
    """Index `[N]` of the least value in each row of `distances [N, K]`; the first if several are equal."""
    rows, codes = distances.shape
    if distances.device.type != "cpu" or codes % _BLOCK or rows * codes <= _FEW:
        return distances.argmin(dim=1)
    # torch uses vector instructions to find the least value, but not its index: so only one block per row is searched.
    blocks = distances.view(rows, codes // _BLOCK, _BLOCK)
    block = blocks.amin(dim=2).argmin(dim=1)
    inside = blocks.gather(1, block.view(rows, 1, 1).expand(rows, 1, _BLOCK)).view(rows, _BLOCK).argmin(dim=1)
    return block * _BLOCK + inside


class Pools(NamedTuple):
    """Places in `[Q, K + R]`: each codebook's codes, then the candidates for it."""

    codes: Tensor
    """int64 `[Q, K]`."""
    candidates: Tensor
    """int64 `[Q, R]`."""
    first: Tensor
    """int64 `[Q, 1]`: each pool's first place among those of all pools."""
    later: Tensor
    """Bool `[R, R]`: whether a candidate (column) is another (row) itself or comes after it."""

    @classmethod
    def of(cls, books: int, codes: int, candidates: int, device: torch.device) -> Self:
        places = torch.arange(codes + candidates, device=device).expand(books, -1)
        first = torch.arange(books, device=device).unsqueeze(1) * (codes + candidates)
        later = torch.ones(candidates, candidates, dtype=torch.bool, device=device).triu()
        return cls(places[:, :codes], places[:, codes:], first, later)


def repeats(vectors: Tensor, pools: Pools, distances_at_once: int = _DISTANCES_AT_ONCE) -> Tensor:
    """Whether each candidate equals, up to rounding, a code or an earlier candidate: bool `[Q, R]`.

    Args:
        vectors: `[Q, K + R, D]`: codes, then candidates.
        distances_at_once: how many are in memory at once, over all levels; the result does not depend on it.
    """
    books, count, width = vectors.shape
    squares = vectors.square().sum(dim=-1)
    candidates, own = vectors[:, -len(pools.later) :], squares[:, -len(pools.later) :]
    reach = (_APART * (own + own.mean(dim=1, keepdim=True))).unsqueeze(-1)
    at_once = max(1, distances_at_once // (books * count))
    found = []
    for start in range(0, len(pools.later), at_once):
        block = candidates[:, start : start + at_once]
        distances = torch.baddbmm(squares.unsqueeze(1), block, vectors.transpose(1, 2), alpha=-2.0)
        # A candidate is compared with all codes, and with the candidates before it.
        distances[..., -len(pools.later) :].masked_fill_(pools.later[start : start + at_once], torch.inf)
        nearest, index = distances.topk(min(_NEAREST, count), dim=-1, largest=False, sorted=False)
        # The error of a product's distances grows with the vectors' length; that of differences does not.
        index = (index + pools.first.unsqueeze(1)).view(-1)
        compared = vectors.view(-1, width).index_select(0, index).view(*nearest.shape, width)
        near = (block.unsqueeze(2) - compared).square().sum(dim=-1) <= reach[:, start : start + at_once]
        found.append((near & (nearest < torch.inf)).any(dim=-1))
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def noise_of_copies(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise that makes copies of vectors `[..., D]` distinct codes, as in MoMask."""
    size: float = 0.01 / shape[-1] ** 0.5
    return torch.randn(shape, generator=generator) * size


def perplexity_of(counts: Tensor) -> Tensor:
    """Perplexity `[Q]` of code counts `[Q, K]`: exp of the entropy, 1 … K; 0 if nothing was counted."""
    total = counts.sum(dim=-1, keepdim=True)
    return torch.where(total.squeeze(-1) > 0, perplexity_of_shares(counts / total.clamp(min=1)), 0.0)


def perplexity_of_shares(shares: Tensor) -> Tensor:
    """Perplexity `[Q]` of `shares [Q, K]`, which are each code's fraction of a level's uses."""
    minus_entropy: Tensor = torch.special.xlogy(shares, shares).sum(dim=-1)
    return minus_entropy.neg().exp()


class _StraightThrough(torch.autograd.Function):
    """`quantized` forward, the identity to `latents` backward (van den Oord et al. 2017)."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, quantized: Tensor) -> Tensor:
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Quantization(torch.autograd.Function):
    """`quantized` and the commitment loss, the mean square of `left [levels, N, D]`: latents minus codes by level.

    The gradient passes to `latents` by straight-through estimators, `gain` of them, or by the rotation trick if `gain`
    is None; that of the loss is added in fp32. Besides the rotation's, one tensor of the latents' shape is kept for the
    backward pass, whatever the number of levels.
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor, quantized: Tensor, left: Tensor, gain: int | None) -> tuple[Tensor, Tensor]:
        ctx.gain = gain
        slope = left.sum(dim=0).mul_(2.0 / left.numel())
        rotated = (latents.float().reshape(quantized.shape), quantized) if gain is None else ()
        ctx.save_for_backward(slope, *rotated)
        return quantized.to(latents.dtype, copy=True).view(latents.shape), left.square().mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_loss: Tensor) -> tuple[Tensor, None, None, None]:
        slope, *rotated = ctx.saved_tensors
        passed = gradient.reshape(slope.shape)
        if rotated:
            passed = _rotated(passed.float(), *rotated)
        elif ctx.gain != 1:
            passed = passed.float() * ctx.gain
        return (slope * of_loss).add_(passed).to(gradient.dtype).view(gradient.shape), None, None, None


def _rotated(gradient: Tensor, latents: Tensor, quantized: Tensor) -> Tensor:
    """Gradient to `latents [N, D]` as if `quantized [N, D]` were the latents, rotated and scaled.

    Rotation and scale are constants in the backward pass: latents with the same code get different gradients.
    Source: Fifty et al. 2024, "Restructuring vector quantization with the rotation trick".
    """
    lengths: list[Tensor] = [vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6) for vectors in (latents, quantized)]
    source, target = latents / lengths[0], quantized / lengths[1]
    between = source + target
    between = between / between.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    # The transpose of I - 2 b bᵀ + 2 t sᵀ, which rotates s to t.
    turned = gradient - 2 * between * (between * gradient).sum(-1, keepdim=True)
    turned = turned + 2 * source * (target * gradient).sum(-1, keepdim=True)
    scaled: Tensor = turned * (lengths[1] / lengths[0])
    return scaled


# torch's `apply` comes without types.
straight_through: Callable[[Tensor, Tensor], Tensor] = _StraightThrough.apply
"""Takes latents and quantized latents; returns the quantized, with the gradient passed to the latents."""
quantization: Callable[[Tensor, Tensor, Tensor, int | None], tuple[Tensor, Tensor]] = _Quantization.apply
"""Takes latents `[..., D]`, quantized `[N, D]` fp32, residuals `[levels, N, D]` and a gain or None. Returns the
quantized in the latents' shape and dtype, and the commitment loss; both have a gradient to the latents."""
