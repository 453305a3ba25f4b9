"""Codebooks that are moving averages of the vectors assigned to their codes.

In training, a forward pass only adds to staged statistics. `update_codebooks` runs once per optimizer step: it sums the
statistics over all ranks in one all-reduce, and then every rank does the same arithmetic.

Sources: EMA codebooks, VQ-VAE-2 (Razavi et al. 2019); replacement by relative use, Moshi (Défossez et al. 2024).
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.model.levels import LevelledQuantizer
from ds_rvqvae.model.ranks import fold_seed, world_of
from ds_rvqvae.model.vq import repeats


class _Staged(NamedTuple):
    """Views into the flat tensor that the ranks sum in an update."""

    counts: Tensor
    """`[Q, K]`: uses of each code."""
    sums: Tensor
    """`[Q or 1, K, D]`: sums of the vectors assigned to each code."""
    candidates: Tensor
    """`[Q or 1, R, D]`: vectors that may replace dead codes."""
    refused: Tensor
    """Scalar: not 0 if a rank refuses the statistics."""


class AveragedCodebooks(LevelledQuantizer):
    """Levels with codebooks, their update from a step's statistics, and the replacement of dead codes.

    A derived class quantizes, and passes the vectors and codes to `_stage`. It may override the methods from `_decay`
    on, which are the arithmetic of an update.

    Args:
        shared_codebook: whether all levels use one codebook, updated once after the last level.
        mu: decay of the averages.
        mu_warm_up: update t decays by `min(mu, t / (t + mu_warm_up))`.
        codebook_distance: "euclidean", or "cosine" of a vector and a code.
        dead_code_threshold: a code is replaced if its average count is below this fraction of uniform use.

    `LevelledQuantizer` explains the other arguments.

    Buffers, persistent and always fp32:
        codebooks, ema_sum: `[Q or 1, K, D]`.
        ema_count: `[Q or 1, K]`.
    """

    codebooks: Tensor
    ema_sum: Tensor
    ema_count: Tensor

    def __init__(
        self,
        num_quantizers: int,
        nb_code: int,
        code_dim: int,
        quantize_dropout_prob: float,
        quantize_dropout_min_levels: int,
        *,
        shared_codebook: bool,
        mu: float,
        mu_warm_up: int,
        codebook_distance: str,
        dead_code_threshold: float,
    ) -> None:
        super().__init__(num_quantizers, nb_code, code_dim, quantize_dropout_prob, quantize_dropout_min_levels)
        self.shared_codebook = shared_codebook
        self.mu, self.mu_warm_up = mu, mu_warm_up
        self.codebook_distance = codebook_distance
        self.dead_code_threshold = dead_code_threshold
        self.replacements = self._most_replacements(nb_code)

        books = 1 if shared_codebook else num_quantizers
        self.register_buffer("codebooks", torch.randn(books, nb_code, code_dim))
        self.register_buffer("ema_sum", self.codebooks.clone())
        self.register_buffer("ema_count", torch.ones(books, nb_code))
        self._sizes = [num_quantizers * nb_code, books * nb_code * code_dim, books * self.replacements * code_dim, 1]
        self.register_buffer("staged", torch.zeros(sum(self._sizes)), persistent=False)
        self._staged_latents: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update_codebooks(
        self,
        group: dist.ProcessGroup | None = None,
        applied: bool = True,
        share: tuple[int, int, int] | None = None,
    ) -> None:
        """Commits the staged statistics: the codebooks' optimizer step, called once after the engine's on every rank.

        Args:
            group: the ranks; each of them calls this. All have the same number of vectors, unless `share` is given.
            applied: whether the engine applied its step. False on any rank, or a number that is not finite, drops the
                statistics on all ranks.
            share: the position of this rank's batches in the global batch, which is in rank order: index of the first,
                index after the last, and number of batches of all ranks.

        This is one all-reduce of one flat fp32 tensor. The host does not wait for the device.
        """
        world_size, rank = world_of(group)
        staged = self._staged_views()
        if self._staged_latents:
            staged.candidates.copy_(self._replacement_candidates(*(share or (rank, rank + 1, world_size))))
        staged.refused.fill_(0.0 if applied else 1.0)
        if world_size > 1:
            dist.all_reduce(self.staged, group=group)
        commit = torch.isfinite(self.staged).all() & (staged.refused == 0)
        self._commit(commit, staged)
        self.drop_staged()

    def drop_staged(self) -> None:
        """Drops the statistics that forward passes have staged since the last update."""
        super().drop_staged()
        self._staged_latents.clear()

    def average_counts(self) -> Tensor:
        """Moving average `[Q or 1, K]` of each code's uses in an update."""
        return self.ema_count

    def _book_index(self, level: int) -> int:
        return 0 if self.shared_codebook else level

    def _book(self, level: int) -> Tensor:
        return self.codebooks[self._book_index(level)]

    def _seen(self, vectors: Tensor) -> Tensor:
        """Vectors as distances compare them: for cosine at length 1, so that the nearest code is the one by angle."""
        return functional.normalize(vectors, dim=-1) if self.codebook_distance == "cosine" else vectors

    def _stage(self, residuals: list[Tensor], codes: Tensor, counts: Tensor) -> None:
        """Keeps the statistics of a batch for the next `update_codebooks`: uses and sums of each code."""
        staged = self._staged_views()
        staged.counts.add_(counts)
        for level, residual in enumerate(residuals):
            staged.sums[self._book_index(level)].index_add_(0, codes[:, level], residual)
        self._staged_latents.append((residuals[0], codes))

    def _staged_views(self) -> _Staged:
        counts, sums, candidates, refused = torch.split(self.staged, self._sizes)
        return _Staged(
            counts.view(self.num_quantizers, self.nb_code),
            sums.view_as(self.codebooks),
            candidates.view(len(self.codebooks), self.replacements, self.code_dim),
            refused[0],
        )

    def _replacement_candidates(self, first: int, stop: int, count: int) -> Tensor:
        """Vectors `[Q or 1, R, D]` drawn over the global batch; each rank fills in its own and leaves zeros elsewhere.

        The vectors are inputs of a level: latents minus the codes of the levels before it.
        """
        rows = torch.cat([rows for rows, _ in self._staged_latents])
        codes = torch.cat([codes for _, codes in self._staged_latents])
        shape = (len(self.codebooks), self.replacements)
        each = len(rows) // (stop - first)
        draws = torch.stack([self._candidate_rows(shape, count * each) - first * each, self._draw_levels(shape)])
        if rows.is_cuda:
            # A copy from pageable memory would make the host wait for the device.
            draws = draws.pin_memory()
        row, level = draws.to(rows.device, non_blocking=True).unbind()
        mine = (row >= 0) & (row < len(rows))
        row = row.clamp(0, len(rows) - 1)
        levels = torch.arange(self.num_quantizers, device=rows.device)
        book = torch.zeros_like(levels) if self.shared_codebook else levels
        before = self.codebooks[book, codes[row].clamp(min=0)] * (levels < level.unsqueeze(-1)).unsqueeze(-1)
        vectors = self._set_apart(rows[row] - before.sum(dim=2), count * each)
        return vectors * mine.unsqueeze(-1)

    def _draw_levels(self, shape: tuple[int, int]) -> Tensor:
        """The level of each candidate; a shared codebook draws among the active levels."""
        if not self.shared_codebook:
            return torch.arange(shape[0]).unsqueeze(1).expand(shape)
        seed, step, _, _ = self._position
        generator = torch.Generator().manual_seed(fold_seed("candidate levels", seed, step))
        return torch.randint(self.active_levels(), shape, generator=generator)

    def _commit(self, commit: Tensor, staged: _Staged) -> None:
        """Updates averages and codebooks by the global statistics if `commit` holds."""
        book_counts = staged.counts.sum(dim=0, keepdim=True) if self.shared_codebook else staged.counts
        used = book_counts.sum(dim=1, keepdim=True) > 0
        changes = commit & used
        decay = self._decay()
        count = decay * self.ema_count + (1 - decay) * book_counts
        total = decay * self.ema_sum + (1 - decay) * staged.sums
        # A code that was unused for so long that its count is almost 0 keeps its vector.
        book = torch.where((count > 1e-6).unsqueeze(-1), total / count.unsqueeze(-1), self.codebooks)
        count, total, book = self._replace_dead(count, total, book, staged.candidates)
        for buffer, value in ((self.ema_count, count), (self.ema_sum, total), (self.codebooks, book)):
            mask = changes if value.dim() == 2 else changes.unsqueeze(-1)
            buffer.copy_(torch.where(mask, value, buffer))
        self.updates += changes.any()
        self.usage_counts += torch.where(commit, staged.counts, 0.0)

    def _decay(self) -> Tensor | float:
        """Decay of the averages in the next update."""
        update = (self.updates + 1).float()
        return torch.clamp(update / (update + self.mu_warm_up), max=self.mu)

    @staticmethod
    def _most_replacements(nb_code: int) -> int:
        """How many codes of a codebook one update can replace."""
        # A quarter: all-reducing a vector for each code would double the traffic.
        return min(nb_code, max(64, nb_code // 4))

    def _candidate_rows(self, shape: tuple[int, int], rows: int) -> Tensor:
        """Each candidate's row of the global batch; exact integers, so that the draw does not depend on the ranks."""
        seed, step, _, _ = self._position
        generator = torch.Generator().manual_seed(fold_seed("candidates", seed, step))
        return (torch.randint(2**32, shape, generator=generator) * rows) >> 32

    def _set_apart(self, candidates: Tensor, rows: int) -> Tensor:
        """Candidates `[Q or 1, R, D]` as codes take them; `rows` is the number of rows that they were drawn from."""
        return candidates

    def _replace_dead(
        self, count: Tensor, total: Tensor, book: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Replaces dead codes, the least used first, by candidates: vector, sum and count together."""
        share = count.sum(dim=1, keepdim=True) / self.nb_code
        order = count.argsort(dim=1, stable=True)[:, : self.replacements]
        dead = count.gather(1, order) < self.dead_code_threshold * share
        if self.distinct_replacements:
            repeated = repeats(self._seen(candidates), self._seen(book))
            apart_first = repeated.byte().argsort(dim=1, stable=True)
            candidates = torch.take_along_dim(candidates, apart_first.unsqueeze(-1), dim=1)
            dead &= ~repeated.gather(1, apart_first)
        vectors = order.unsqueeze(-1).expand_as(candidates)
        new_book = torch.where(dead.unsqueeze(-1), candidates, book.gather(1, vectors))
        new_count = torch.where(dead, share, count.gather(1, order))
        new_total = torch.where(dead.unsqueeze(-1), candidates * share.unsqueeze(-1), total.gather(1, vectors))
        return (
            count.scatter(1, order, new_count),
            total.scatter(1, vectors, new_total),
            book.scatter(1, vectors, new_book),
        )
