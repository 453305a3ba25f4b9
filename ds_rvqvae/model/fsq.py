"""Finite scalar quantization: codes are cells of a fixed grid, so there is no codebook to learn, move or replace.

Sources: finite scalar quantization, Mentzer et al. 2023; each level quantizes the residual of the levels before it, as
in residual vector quantization; van den Oord et al.'s straight-through estimator around all levels.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ds_rvqvae.model.levels import LevelledQuantizer
from ds_rvqvae.model.vq import perplexity_of, straight_through


class ScalarQuantizer(LevelledQuantizer):
    """Quantizes each number of a latent separately, after tanh has brought it between -1 and 1.

    A level's code says in which of `fsq_levels[i]` equal cells each of its numbers lies. If a latent is as long as
    `fsq_levels`, every level divides the cells of the level before. If it is g times as long, it has g groups of
    numbers, and each level takes the next group; when a group's turn comes again, its cells are divided. With one group
    per level, no number is quantized twice.

    Args:
        num_quantizers: levels, Q.
        fsq_levels: cells for each number that a level quantizes; their product is K, the number of codes per level.
        code_dim: length of a latent, D: 1 to Q times the length of `fsq_levels`.
        quantize_dropout_prob, quantize_dropout_min_levels: as in `ResidualQuantizer`.

    The persistent buffers are those of `LevelledQuantizer`.

    Raises:
        ValueError: `code_dim` is not such a multiple.
    """

    _cells: Tensor
    _radix: Tensor

    def __init__(
        self,
        num_quantizers: int,
        fsq_levels: Sequence[int],
        code_dim: int,
        *,
        quantize_dropout_prob: float = 0.0,
        quantize_dropout_min_levels: int = 1,
    ) -> None:
        nb_code, self.columns = math.prod(fsq_levels), len(fsq_levels)
        self.groups = code_dim // self.columns
        if code_dim % self.columns or not 1 <= self.groups <= num_quantizers:
            raise ValueError(f"code_dim {code_dim} is not 1 to {num_quantizers} times the {self.columns} of fsq_levels")
        super().__init__(num_quantizers, nb_code, code_dim, quantize_dropout_prob, quantize_dropout_min_levels)
        cells = torch.tensor(fsq_levels)
        # Mixed radix; the first number of a latent is the lowest digit.
        self.register_buffer("_cells", cells, persistent=False)
        self.register_buffer("_radix", cells.cumprod(0) // cells, persistent=False)
        self.register_buffer("staged", torch.zeros(num_quantizers * nb_code + 1), persistent=False)
        self.initialized.fill_(True)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantizes `latents [B, T, D]`; in training, also stages statistics for the next `update_codebooks`.

        Returns:
            quantized `[B, T, D]` in the latents' dtype, with tanh's gradient; codes `[B, T, Q]` int64, -1 at dropped
            levels; commitment loss, which is 0, because the grid does not move; perplexity `[Q]` of this batch, 0 at
            dropped levels.
        """
        with torch.autocast(latents.device.type, enabled=False):
            bounded = latents.float().tanh().reshape(-1, self.code_dim)
            with torch.no_grad():
                total, codes = self._quantize(bounded, self.active_levels())
                places = codes + self.first_places[: codes.shape[1]]
                counts = self._count(places.reshape(-1))
                if self.training:
                    self.staged[:-1] += counts.flatten()
            quantized = straight_through(bounded, total)
        return (
            quantized.reshape(latents.shape).to(latents.dtype),
            self._padded(codes, -1).reshape(*latents.shape[:-1], self.num_quantizers),
            bounded.new_zeros(()),
            perplexity_of(counts),
        )

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Codes `[B, T, Q]` int64 of `latents [B, T, D]`: all levels, nothing staged."""
        bounded = latents.float().tanh().reshape(-1, self.code_dim)
        return self._quantize(bounded, self.num_quantizers)[1].reshape(*latents.shape[:-1], self.num_quantizers)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Quantized latents `[..., D]` fp32 of `codes [..., q]`, 1 <= q <= Q; -1 adds nothing.

        Raises:
            ValueError: `codes` have too many levels, or a code outside -1 … K - 1.
        """
        self._check_codes(codes)
        quantized = torch.zeros(*codes.shape[:-1], self.code_dim, device=codes.device, dtype=torch.float32)
        for level in range(codes.shape[-1]):
            code = codes[..., level]
            cell = code.clamp(min=0).unsqueeze(-1) // self._radix % self._cells
            quantized[..., self._columns_of(level)] += self._centres(cell, level) * (code >= 0).unsqueeze(-1)
        return quantized

    def initialize_codebooks(self, latents: Tensor, group: dist.ProcessGroup | None = None) -> int:
        """Does nothing, and returns 0 copies: the grid is fixed from the start."""
        return 0

    @torch.no_grad()
    def update_codebooks(
        self,
        group: dist.ProcessGroup | None = None,
        applied: bool = True,
        share: tuple[int, int, int] | None = None,
    ) -> None:
        """Sums the uses of codes over all ranks, called once after the engine's step on every rank.

        Args:
            group: the ranks; each of them calls this.
            applied: whether the engine applied its step. False on any rank drops the uses on all. After `begin_update`
                it must be equal on all ranks, and the other arguments are not read.
            share: not used here.
        """
        self._sum_staged(group, applied, share)
        commit = self.staged[-1] == 0
        self.usage_counts += torch.where(commit, self.staged[:-1], 0.0).view_as(self.usage_counts)
        self.updates += commit
        self.drop_staged()

    def average_counts(self) -> Tensor:
        """An empty `[0, K]`: only codebooks have averages."""
        return self.usage_counts[:0]

    def _columns_of(self, level: int) -> slice:
        first = level % self.groups * self.columns
        return slice(first, first + self.columns)

    def _widths(self, level: int) -> Tensor:
        """Half the width of the interval that a level divides, for each of its numbers."""
        return 1.0 / self._cells.float() ** (level // self.groups)

    def _centres(self, cell: Tensor, level: int) -> Tensor:
        """Middle of each of the cells `[..., columns]`, relative to the middle of the interval of the level."""
        return ((2 * cell + 1).float() / self._cells - 1) * self._widths(level)

    def _quantize(self, bounded: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Quantizes `bounded [N, D]`; returns the sum of the codes' vectors and codes `[N, levels]`."""
        total, codes = torch.zeros_like(bounded), []
        for level in range(levels):
            columns = self._columns_of(level)
            residual = (bounded[:, columns] - total[:, columns]) / self._widths(level)
            # A latent that is not finite has no cell. Its loss is not finite either, so the step is dropped.
            cell = ((residual.nan_to_num() + 1) / 2 * self._cells).floor().clamp(min=0).minimum(self._cells - 1).long()
            total[:, columns] += self._centres(cell, level)
            codes.append((cell * self._radix).sum(dim=1))
        return total, torch.stack(codes, dim=-1)
