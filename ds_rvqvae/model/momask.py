"""MoMask's residual quantizer (Guo et al. 2024), for comparison; statistics and ranks work as in this project."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_rvqvae.model.quantizer import ResidualQuantizer
from ds_rvqvae.model.ranks import fold_seed
from ds_rvqvae.model.vq import noise_of_copies


class MoMaskQuantizer(ResidualQuantizer):
    """A `ResidualQuantizer` with MoMask's arithmetic in training.

    - First codes are the first rows of the first batch; the next level starts from the residuals of sampled codes.
    - Sampling noise has an absolute size, independent of the distances.
    - There is one straight-through estimator per level: the gradient is multiplied by the number of active levels.
    - Averages decay by the full `mu` from the first update on.
    - Codes with an average count under 1 are overwritten by the first rows of the batch; their averages stay.

    Args:
        sample_codebook_temp: Gumbel noise on squared distances in training, in the unit of the distances.

    `ResidualQuantizer` explains the other arguments.
    """

    starts_with_first_step = True

    def __init__(
        self,
        num_quantizers: int,
        nb_code: int,
        code_dim: int,
        *,
        shared_codebook: bool = False,
        mu: float = 0.99,
        quantize_dropout_prob: float = 0.0,
        quantize_dropout_min_levels: int = 1,
        sample_codebook_temp: float = 0.0,
        sample_anneal_iter: int | None = None,
    ) -> None:
        super().__init__(
            num_quantizers,
            nb_code,
            code_dim,
            shared_codebook=shared_codebook,
            mu=mu,
            quantize_dropout_prob=quantize_dropout_prob,
            quantize_dropout_min_levels=quantize_dropout_min_levels,
            sample_codebook_temp=sample_codebook_temp,
            sample_anneal_iter=sample_anneal_iter,
        )

    def _first_codes(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """The first of `rows [N, D]`; if they are too few, copies of all rows, each with noise, the originals too.

        None counts as a copy: MoMask does not report copies.
        """
        repeats = -(-self.nb_code // len(rows))
        codes = rows.repeat(repeats, 1)[: self.nb_code]
        if repeats > 1:
            codes = codes + noise_of_copies(codes.shape, generator).to(codes.device)
        return codes, self.nb_code

    def _left_by_first_codes(self, rows: Tensor, level: int, found: int) -> Tensor:
        """Residuals of the codes that a training step would sample."""
        return rows - self._book(level)[self._choose(rows, self._searched()[self._book_index(level)], level)]

    def _noise_scale(self, temperature: float, rows: Tensor, distances: Tensor) -> float:
        return temperature

    def _estimators(self, levels: int) -> int:
        return levels

    def _decay(self) -> float:
        return self.mu

    @staticmethod
    def _most_replacements(nb_code: int) -> int:
        return nb_code

    def _candidate_rows(self, shape: tuple[int, int], rows: int) -> NDArray[np.int64]:
        """The first rows of the global batch, repeated from the start if they are too few."""
        return np.broadcast_to(np.arange(shape[1]) % rows, shape)

    def _set_apart(self, candidates: Tensor, place: Tensor, rows: int) -> Tensor:
        """Candidates with noise if there are more of them than rows, so that some are copies."""
        if rows >= self.replacements:
            return candidates
        generator = torch.Generator().manual_seed(fold_seed("copies", *self._position[:2]))
        noise = noise_of_copies((len(self.codebooks) * self.replacements, self.code_dim), generator)
        if candidates.is_cuda:
            # A copy from pageable memory would make the host wait for the device.
            noise = noise.pin_memory()
        return candidates + noise.to(candidates.device, non_blocking=True)[place]

    def _replace_dead(
        self, count: Tensor, total: Tensor, book: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return count, total, torch.where((count >= 1.0).unsqueeze(-1), book, candidates)
