"""Codebooks that are moving averages of the vectors assigned to their codes.

In training, a forward pass only adds to staged statistics. `update_codebooks` runs once per optimizer step: it sums the
statistics over all ranks in one all-reduce, and then every rank does the same arithmetic.

Sources: EMA codebooks, VQ-VAE-2 (Razavi et al. 2019); replacement by relative use, Moshi (Défossez et al. 2024).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.model.levels import LevelledQuantizer
from ds_rvqvae.model.ranks import fold_seed, world_of
from ds_rvqvae.model.vq import Pools, repeats


class _Staged(NamedTuple):
    """Views into the flat tensor that the ranks sum in an update."""

    counts: Tensor
    """`[Q, K]`: uses of each code."""
    sums: Tensor
    """`[Q or 1, K, D]`: sums of the vectors assigned to each code."""
    candidates: Tensor
    """`[Q or 1, R, D]`: vectors that may replace dead codes."""


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
        self._pools: Pools | None = None

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
                statistics on all ranks. After `begin_update` it must be equal on all ranks, and the other arguments are
                not read.
            share: the position of this rank's batches in the global batch, which is in rank order: index of the first,
                index after the last, and number of batches of all ranks.

        This is one all-reduce of one flat fp32 tensor, unless `begin_update` began it. The host does not wait for the
        device.
        """
        self._sum_staged(group, applied, share)
        # The difference is finite only if all statistics are.
        least, most = self.staged.aminmax()
        self._commit(most - least < torch.inf, self._staged_views())
        self.drop_staged()

    def _complete_staged(self, group: dist.ProcessGroup | None, share: tuple[int, int, int] | None) -> None:
        world_size, rank = world_of(group)
        if self._staged_latents:
            self._draw_candidates(self._staged_views().candidates, *(share or (rank, rank + 1, world_size)))

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

    def _stage(self, latents: Tensor, inputs: Tensor, index: Tensor, counts: Tensor) -> None:
        """Keeps the statistics of a batch for the next `update_codebooks`: uses and sums of each code.

        Args:
            latents: `[N, D]`, in their own dtype; a copy is kept until the update.
            inputs: `[levels, N, D]` fp32: what each level quantized.
            index: `[N, levels]`: rows of the codes in `_code_vectors()`; kept until the update.
            counts: `[Q, K]`: uses of each code.
        """
        staged = self._staged_views()
        staged.counts.add_(counts)
        sums = staged.sums.view(-1, self.code_dim)
        sums.index_add_(0, index.t().reshape(-1), inputs.reshape(-1, self.code_dim))
        # A copy: the next pass of a compiled encoder may write to the same memory.
        self._staged_latents.append((latents.clone(), index))

    def _code_vectors(self) -> Tensor:
        """The vectors `[Q * K or K, D]` of all codes, level by level: a view."""
        return self.codebooks.view(-1, self.code_dim)

    def _sum_of(self, index: Tensor, start: Tensor | None = None) -> Tensor:
        """Sums of code vectors, each in the order of its codes.

        Args:
            index: rows in `_code_vectors()`: `[N, levels]`, or `[n]` if `start` is given.
            start: `[N]`: where each of N sums begins in `index`; it ends where the next one begins.
        """
        return functional.embedding_bag(index, self._code_vectors(), start, mode="sum")

    def _staged_views(self) -> _Staged:
        counts, sums, candidates, _ = torch.split(self.staged, self._sizes)
        return _Staged(
            counts.view(self.num_quantizers, self.nb_code),
            sums.view_as(self.codebooks),
            candidates.view(len(self.codebooks), self.replacements, self.code_dim),
        )

    def _draw_candidates(self, candidates: Tensor, first: int, stop: int, count: int) -> None:
        """Draws `candidates [Q or 1, R, D]` over the global batch; each rank fills in its own, and the others stay 0.

        They are inputs of a level: latents minus the codes of the levels before it.
        """
        latents, index = self._staged_latents[0]
        if len(self._staged_latents) > 1:
            latents, index = map(torch.cat, zip(*self._staged_latents, strict=True))
        levels, each = index.shape[1], len(latents) // (stop - first)
        shape = (len(self.codebooks), self.replacements)
        drawn = self._candidate_rows(shape, count * each).reshape(-1) - first * each
        (mine,) = np.nonzero((drawn >= 0) & (drawn < len(latents)))
        rows, level = drawn[mine], self._candidate_levels(shape).reshape(-1)[mine]
        earlier = np.arange(levels) < level[:, None]
        codes, number = (rows[:, None] * levels + np.arange(levels))[earlier], earlier.sum(axis=1)
        place, row, code, start = _to_device([mine, rows, codes, number.cumsum() - number], latents.device)
        before = self._sum_of(index.view(-1).index_select(0, code), start)
        vectors = self._set_apart(latents.index_select(0, row) - before, place, count * each)
        candidates.view(-1, self.code_dim).index_copy_(0, place, vectors)

    def _candidate_levels(self, shape: tuple[int, int]) -> NDArray[np.int64]:
        """The level of each candidate; a shared codebook draws among the active levels."""
        if not self.shared_codebook:
            return np.broadcast_to(np.arange(shape[0])[:, None], shape)
        return self._draw("candidate levels", self.active_levels(), shape)

    def _draw(self, purpose: str, count: int, shape: tuple[int, int]) -> NDArray[np.int64]:
        """Integers from 0 to `count` - 1: a function of purpose, seed and step, equal on all ranks and devices."""
        seed, step, _, _ = self._position
        generator = torch.Generator().manual_seed(fold_seed(purpose, seed, step))
        drawn: NDArray[np.int64] = torch.randint(count, shape, generator=generator).numpy()
        return drawn

    def _commit(self, commit: Tensor, staged: _Staged) -> None:
        """Updates averages and codebooks by the global statistics if `commit` holds."""
        counts = staged.counts.sum(dim=0, keepdim=True) if self.shared_codebook else staged.counts
        changes = counts.any(dim=1, keepdim=True) & commit
        decay = self._decay()
        count, total = torch._foreach_mul([self.ema_count, self.ema_sum], decay)
        torch._foreach_add_([count, total], torch._foreach_mul([counts, staged.sums], 1 - decay))
        # A code that was unused for so long that its count is almost 0 keeps its vector.
        book = torch.where((count > 1e-6).unsqueeze(-1), total / count.unsqueeze(-1), self.codebooks)
        count, total, book = self._replace_dead(count, total, book, staged.candidates)
        torch.where(changes, count, self.ema_count, out=self.ema_count)
        for buffer, value in ((self.ema_sum, total), (self.codebooks, book)):
            torch.where(changes.unsqueeze(-1), value, buffer, out=buffer)
        self.updates.add_(changes.any())
        self.usage_counts.addcmul_(staged.counts, commit)

    def _decay(self) -> Tensor | float:
        """Decay of the averages in the next update."""
        update = self.updates + 1
        return torch.clamp(update / (update + self.mu_warm_up), max=self.mu)

    @staticmethod
    def _most_replacements(nb_code: int) -> int:
        """How many codes of a codebook one update can replace."""
        # A quarter: all-reducing a vector for each code would double the traffic.
        return min(nb_code, max(64, nb_code // 4))

    def _candidate_rows(self, shape: tuple[int, int], rows: int) -> NDArray[np.int64]:
        """Each candidate's row of the global batch; exact integers, so that the draw does not depend on the ranks."""
        return (self._draw("candidates", 2**32, shape) * rows) >> 32

    def _set_apart(self, candidates: Tensor, place: Tensor, rows: int) -> Tensor:
        """Candidates `[n, D]` as codes take them.

        Args:
            place: `[n]`: their places among the candidates of all codebooks.
            rows: the number of rows that these were drawn from.
        """
        return candidates

    def _replace_dead(
        self, count: Tensor, total: Tensor, book: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Replaces dead codes, the least used first, by candidates: vector, sum and count together."""
        share = count.sum(dim=1, keepdim=True) / self.nb_code
        least, order = (values[:, : self.replacements] for values in count.sort(dim=1, stable=True))
        dead = least < self.dead_code_threshold * share
        pool = torch.cat([book, candidates], dim=1)
        if self._pools is None or self._pools.codes.device != pool.device:
            self._pools = Pools.of(len(book), self.nb_code, self.replacements, pool.device)
        candidate = self._pools.candidates
        if self.distinct_replacements:
            repeated = repeats(self._seen(pool), self._pools)
            repeated, apart_first = repeated.view(torch.uint8).sort(dim=1, stable=True)
            dead, candidate = dead > repeated, apart_first + self.nb_code
        source = self._pools.codes.scatter(1, order, torch.where(dead, candidate, order))
        book = pool.view(-1, self.code_dim).index_select(0, (source + self._pools.first).view(-1)).view_as(book)
        replaced = source >= self.nb_code
        count = torch.where(replaced, share, count)
        total = torch.where(replaced.unsqueeze(-1), book * share.unsqueeze(-1), total)
        return count, total, book


def _to_device(arrays: Sequence[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, ...]:
    """Integers as tensors on the device, in one copy that the host does not wait for."""
    flat = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        # A copy from pageable memory would make the host wait for the device.
        flat = flat.pin_memory()
    return torch.split(flat.to(device, non_blocking=True), [len(array) for array in arrays])
