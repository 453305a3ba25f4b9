"""First codebooks from data, without two equal codes in a level.

Equal codes are equally near to every vector, so rounding would choose between them, and N ranks would not compute the
same as one rank. Without care they appear: a vector that became a code of its level has a residual of exactly zero, and
all these zeros are among the vectors that the next level draws from.

So each vector is quantized as if it were not in the codebook (leave-one-out, Stone 1974, "Cross-validatory choice and
assessment of statistical predictions"): by the nearest code other than itself. Its residual then has the size of the
residuals of later batches. Codes that are means of their nearest vectors would not solve this: a vector far from all
others is its own mean.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.model.vq import nearest_codes, noise_of_copies, searched_books, squared_distances

_KMEANS_ITERATIONS = 10
_APART, _ROUNDING = 1e-4, 1e-6
"""Two vectors count as equal if their distance is below the first number times the typical distance from the mean, or
below the second times the typical length, which is the resolution of fp32."""
_LEAST_SPREAD = 1e-3
"""Least spread of copies, relative to the vectors' length: noise must not vanish in rounding far from zero."""
_ROWS_AT_ONCE, _DISTANCES_AT_ONCE = 2_048, 2**24
"""Vectors, and distances in fp64, in memory at once."""


def first_codes(
    rows: Tensor, nb_code: int, *, kind: str, generator: torch.Generator, direction_only: bool = False
) -> tuple[Tensor, int]:
    """Returns a codebook `[nb_code, D]` from data, without equal codes, and how many of its codes are not copies.

    If `rows` have fewer distinct vectors than there are codes, the last codes are copies, with noise of a hundredth of
    the vectors' spread.

    Args:
        rows: `[N, D]`, finite.
        kind: "samples", rows drawn without repeats; "kmeans", centres that start from such rows.
        generator: for the draws, on the CPU.
        direction_only: whether codes of the same direction count as equal, whatever their lengths.
    """
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    codes = rows[distinct_rows(rows, order, nb_code, direction_only)]
    if kind == "kmeans":
        candidates = torch.cat([_kmeans(rows, codes), rows[order]])
        order = torch.arange(len(candidates), device=rows.device)
        codes = candidates[distinct_rows(candidates, order, nb_code, direction_only)]
    found = len(codes)
    missing = nb_code - found
    if missing:
        copies = codes.repeat(-(-missing // found), 1)[:missing]
        noise = noise_of_copies(copies.shape, generator).to(copies.device)
        codes = torch.cat([codes, copies + noise * _spread(rows)])
    return codes, found


def distinct_rows(rows: Tensor, order: Tensor, count: int, direction_only: bool = False) -> Tensor:
    """Indices int64 `[n <= count]` of the first of `rows [N, D]`, taken in `order [N]`, that are all distinct.

    There are fewer than `count` if `rows` have fewer distinct vectors.
    """
    points = _Points(rows, direction_only)
    kept = order[:0]
    for block in torch.split(order, _ROWS_AT_ONCE):
        values = points.values[block]
        near = (squared_distances(values, values) <= points.squared_reach).tril(-1).any(dim=1)
        for known in torch.split(points.values[kept], max(1, _DISTANCES_AT_ONCE // len(block))):
            near |= (squared_distances(values, known) <= points.squared_reach).any(dim=1)
        kept = torch.cat([kept, block[~near]])[:count]
        if len(kept) == count:
            break
    return kept


def left_out_residuals(rows: Tensor, book: Tensor, direction_only: bool = False) -> Tensor:
    """Residuals `[N, D]` of `rows [N, D]`: each row minus the nearest code of `book [K, D]` other than itself.

    Distances are in fp64, so that every processor finds the same codes for the same vectors.
    """
    points = _Points(rows, direction_only)
    codes = points.like(book)
    residuals = []
    at_once = max(1, _DISTANCES_AT_ONCE // len(book))
    for block, where in zip(torch.split(rows, at_once), torch.split(points.values, at_once), strict=True):
        distances = squared_distances(where, codes)
        distances.masked_fill_(distances <= points.squared_reach, torch.inf)
        residuals.append(block - book[distances.argmin(dim=1)])
    return torch.cat(residuals)


class _Points:
    """Vectors in fp64 relative to their mean, or their directions.

    `squared_reach`: square of the distance within which two vectors count as equal.
    """

    def __init__(self, rows: Tensor, direction_only: bool) -> None:
        self._place: Callable[[Tensor], Tensor] = functional.normalize if direction_only else Tensor.double
        values = self._place(rows.double())
        self._mean = values.mean(dim=0)
        self.values = values - self._mean
        self.squared_reach = max(_APART**2 * _typical_square(self.values), _ROUNDING**2 * _typical_square(values))

    def like(self, rows: Tensor) -> Tensor:
        """Other vectors, transformed in the same way."""
        return self._place(rows.double()) - self._mean


def _typical_square(values: Tensor) -> float:
    """Median of the squared lengths of `values [N, D]`, robust to outliers; their mean if the median is 0."""
    squares = values.square().sum(dim=1)
    return float(squares.median()) or float(squares.mean())


def _spread(rows: Tensor) -> float:
    """Typical distance of `rows [N, D]` from their mean, but large enough not to vanish in rounding."""
    rows = rows.double()
    about_mean, length = _typical_square(rows - rows.mean(dim=0)), _typical_square(rows)
    return max(about_mean, _LEAST_SPREAD**2 * length) ** 0.5 or 1.0


def _kmeans(rows: Tensor, centres: Tensor) -> Tensor:
    """Centres after Lloyd's iterations; a centre without rows keeps its place."""
    for _ in range(_KMEANS_ITERATIONS):
        (book,) = searched_books(centres.unsqueeze(0))
        index = nearest_codes(rows, book)
        sums = torch.zeros_like(centres).index_add_(0, index, rows)
        counts = centres.new_zeros(len(centres)).index_add_(0, index, rows.new_ones(len(rows)))
        centres = torch.where((counts > 0).unsqueeze(-1), sums / counts.clamp(min=1).unsqueeze(-1), centres)
    return centres
