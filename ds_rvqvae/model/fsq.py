"""Finite scalar quantization: codes are cells of a fixed grid, so that no codebook is learned, moved or replaced.

Sources: finite scalar quantization, Mentzer et al. 2023; levels on the residual of those before, as residual vector
quantization has them, van den Oord et al.'s estimator around all of it.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ds_rvqvae.model.levels import LevelledQuantizer
from ds_rvqvae.model.ranks import world_of
from ds_rvqvae.model.vq import perplexity_of, straight_through


class ScalarQuantizer(LevelledQuantizer):
    """Quantizes each column of the latents, brought between -1 and 1 by tanh, by itself.

    A level's code says in which of `fsq_levels[i]` equal cells each of its columns lies. With as many columns as one
    level has, every level divides the cells of the one before. With g times as many the levels take g groups of columns
    in turn, the next one always the next group, and divide cells when they come to a group again; with one group a
    level, no column is quantized twice.

    Args:
        num_quantizers: levels, Q.
        fsq_levels: cells a column, of the columns that a level has; their product is the codes a level, K.
        code_dim: length of a latent, D: 1 to Q times as many columns as a level has.
        quantize_dropout_prob, quantize_dropout_min_levels: as `ResidualQuantizer` has them.

    Buffers that `LevelledQuantizer` has, and no others persist.

    Raises:
        ValueError: code_dim is no such multiple.
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
        # Mixed radix, the first column the lowest digit.
        self.register_buffer("_cells", cells, persistent=False)
        self.register_buffer("_radix", cells.cumprod(0) // cells, persistent=False)
        self.register_buffer("staged", torch.zeros(num_quantizers * nb_code + 1), persistent=False)
        self.initialized.fill_(True)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantizes `latents [B, T, D]`; while training, also keeps what the next `update_codebooks` needs of them.

        Returns:
            quantized `[B, T, D]` in the latents' dtype, with tanh's gradient; codes `[B, T, Q]` int64, -1 at levels
            dropped; commitment loss, which is 0, for the grid does not move; perplexity `[Q]` of this batch, 0 at
            levels dropped.
        """
        with torch.autocast(latents.device.type, enabled=False):
            bounded = latents.float().tanh().reshape(-1, self.code_dim)
            with torch.no_grad():
                total, codes = self._quantize(bounded, self.active_levels())
                counts = self._count(codes)
                if self.training:
                    self.staged[:-1] += counts.flatten()
            quantized = straight_through(bounded, total, 1)
        return (
            quantized.reshape(latents.shape).to(latents.dtype),
            codes.reshape(*latents.shape[:-1], self.num_quantizers),
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
            ValueError: too many levels, or a code outside -1 … K - 1.
        """
        self._check_codes(codes)
        quantized = torch.zeros(*codes.shape[:-1], self.code_dim, device=codes.device, dtype=torch.float32)
        for level in range(codes.shape[-1]):
            code = codes[..., level]
            cell = code.clamp(min=0).unsqueeze(-1) // self._radix % self._cells
            quantized[..., self._columns_of(level)] += self._centres(cell, level) * (code >= 0).unsqueeze(-1)
        return quantized

    def initialize_codebooks(self, latents: Tensor, group: dist.ProcessGroup | None = None) -> int:
        """Nothing: the grid is there from the start, without copies."""
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
            group: the ranks, each of which calls this.
            applied: whether the engine applied its step. False on any rank drops the uses on all.
            share: not needed here.
        """
        self.staged[-1] = 0.0 if applied else 1.0
        if world_of(group)[0] > 1:
            dist.all_reduce(self.staged, group=group)
        commit = self.staged[-1] == 0
        self.usage_counts += torch.where(commit, self.staged[:-1], 0.0).view_as(self.usage_counts)
        self.updates += commit
        self.drop_staged()

    def average_counts(self) -> Tensor:
        """None, `[0, K]`: averages are for codebooks."""
        return self.usage_counts[:0]

    def _columns_of(self, level: int) -> slice:
        first = level % self.groups * self.columns
        return slice(first, first + self.columns)

    def _widths(self, level: int) -> Tensor:
        """Half the width of what a level divides in each of its columns."""
        return 1.0 / self._cells.float() ** (level // self.groups)

    def _centres(self, cell: Tensor, level: int) -> Tensor:
        """Middle of each of the cells `[..., columns]`, from the middle of what the level divides."""
        return ((2 * cell + 1).float() / self._cells - 1) * self._widths(level)

    def _quantize(self, bounded: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Of `bounded [N, D]`: the sum of the codes' vectors; the codes `[N, Q]`, -1 past `levels`."""
        total = torch.zeros_like(bounded)
        codes = torch.full((len(bounded), self.num_quantizers), -1, device=bounded.device)
        for level in range(levels):
            columns = self._columns_of(level)
            residual = (bounded[:, columns] - total[:, columns]) / self._widths(level)
            # A latent that is not finite has no cell; its loss is not finite either, and the step is dropped.
            cell = ((residual.nan_to_num() + 1) / 2 * self._cells).floor().clamp(min=0).minimum(self._cells - 1).long()
            total[:, columns] += self._centres(cell, level)
            codes[:, level] = (cell * self._radix).sum(dim=1)
        return total, codes
