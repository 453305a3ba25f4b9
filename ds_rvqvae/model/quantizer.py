"""Residual vector quantization with codebooks that are moving averages.

The forward pass never communicates: while training it only adds to staged statistics. `update_codebooks`, once an
optimizer step, sums them over all ranks in one all-reduce and then does the same arithmetic everywhere.

Sources: residual levels and quantizer dropout, SoundStream (Zeghidour et al. 2021); EMA codebooks, VQ-VAE-2 (Razavi et
al. 2019); one straight-through estimator around all levels, EnCodec (Défossez et al. 2022); replacement by relative
use, Moshi (Défossez et al. 2024); the `lineage` arithmetic, MoMask (Guo et al. 2024).
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.model.first_codes import first_codes, first_rows, left_out_residuals
from ds_rvqvae.model.gradients import Commitment, RotationTrick, StraightThrough
from ds_rvqvae.model.levels import LevelledQuantizer
from ds_rvqvae.model.ranks import fold_seed, gather_rows, world_of
from ds_rvqvae.model.vq import (
    beam_search,
    first_least,
    nearest_codes,
    noise_of_copies,
    perplexity_of,
    repeats,
    squared_distances,
)


class ResidualQuantizer(LevelledQuantizer):
    """Quantizes latents by `num_quantizers` codebooks, each on what the levels before it left.

    Args:
        num_quantizers: levels, Q.
        nb_code: codes a level, K.
        code_dim: length of a code vector, D.
        shared_codebook: one codebook for all levels, updated once after the last.
        mu: decay of the averages.
        mu_warm_up: update t decays by `min(mu, t / (t + mu_warm_up))`.
        quantize_dropout_prob: share of steps that use only the first levels.
        quantize_dropout_min_levels: how many they use at the least; up to Q.
        sample_codebook_temp: Gumbel noise on squared distances while training, relative to the mean nearest.
        sample_anneal_iter: steps over which that noise falls to nothing; without it, it stays.
        codebook_distance: "euclidean", or "cosine" of a vector and a code.
        gradient: "straight_through" or "rotation_trick".
        codebook_init: "samples" or "kmeans".
        beam_size: sums of codes that are followed from level to level outside training; 1 takes the nearest code.
            More than 1 goes by euclidean distance to codebooks that levels do not share.
        dead_code_threshold: a code whose average count is below this share of uniform use is replaced.
        lineage: MoMask's arithmetic in all of this, for comparison.

    Buffers, persistent and always fp32 where floating:
        codebooks, ema_sum: `[Q or 1, K, D]`.
        ema_count: `[Q or 1, K]`.
        initialized: whether codebooks come from data.
        updates: committed updates, int64.
    `usage_counts [Q, K]`, not persistent: committed uses over all ranks since `take_usage_counts`.
    """

    def __init__(
        self,
        num_quantizers: int,
        nb_code: int,
        code_dim: int,
        *,
        shared_codebook: bool = False,
        mu: float = 0.99,
        mu_warm_up: int = 9,
        quantize_dropout_prob: float = 0.0,
        quantize_dropout_min_levels: int = 1,
        sample_codebook_temp: float = 0.0,
        sample_anneal_iter: int | None = None,
        codebook_distance: str = "euclidean",
        gradient: str = "straight_through",
        codebook_init: str = "samples",
        beam_size: int = 1,
        dead_code_threshold: float = 0.1,
        lineage: bool = False,
    ) -> None:
        super().__init__(num_quantizers, nb_code, code_dim, quantize_dropout_prob, quantize_dropout_min_levels)
        self.shared_codebook = shared_codebook
        self.mu, self.mu_warm_up = mu, mu_warm_up
        self.sample_codebook_temp, self.sample_anneal_iter = sample_codebook_temp, sample_anneal_iter
        self.codebook_distance = codebook_distance
        self.gradient = gradient
        self.codebook_init = codebook_init
        self.beam_size = beam_size
        self.dead_code_threshold = dead_code_threshold
        self.lineage = lineage
        # A quarter of the codes can be replaced an update: all-reducing a vector for each would double the traffic.
        self.replacements = nb_code if lineage else min(nb_code, max(64, nb_code // 4))

        books = 1 if shared_codebook else num_quantizers
        self.register_buffer("codebooks", torch.randn(books, nb_code, code_dim))
        self.register_buffer("ema_sum", self.codebooks.clone())
        self.register_buffer("ema_count", torch.ones(books, nb_code))
        self._sizes = [num_quantizers * nb_code, books * nb_code * code_dim, books * self.replacements * code_dim, 1]
        self.register_buffer("_staged", torch.zeros(sum(self._sizes)), persistent=False)
        self._staged_latents: list[tuple[Tensor, Tensor]] = []

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantizes `latents [B, T, D]`; while training, also keeps what the next `update_codebooks` needs of them.

        Returns:
            quantized `[B, T, D]` in the latents' dtype, with the gradient that `gradient` names; codes `[B, T, Q]`
            int64, -1 at levels dropped; commitment loss, the mean over active levels of the squared distance to the
            code; perplexity `[Q]` of this batch, 0 at levels dropped.
        """
        active = self._active_levels()
        with torch.autocast(latents.device.type, enabled=False):
            rows = latents.float().reshape(-1, self.code_dim)
            with torch.no_grad():
                residuals, total, codes = self._quantize(rows, active)
                counts = self._count(codes)
                if self.training:
                    self._stage(residuals[:-1], codes, counts)
                left = torch.stack(residuals[1:])
                commit_loss = left.square().mean()
            quantized = self._with_gradient(rows, total, active)
            commit_loss = Commitment.apply(rows, commit_loss, left)
        return (
            quantized.reshape(latents.shape).to(latents.dtype),
            codes.reshape(*latents.shape[:-1], self.num_quantizers),
            commit_loss,
            perplexity_of(counts),
        )

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Codes `[B, T, Q]` int64 of `latents [B, T, D]`: all levels, no noise, nothing staged."""
        rows = latents.float().reshape(-1, self.code_dim)
        return self._codes(rows).reshape(*latents.shape[:-1], self.num_quantizers)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Quantized latents `[..., D]` fp32 of `codes [..., q]`, 1 <= q <= Q; -1 adds nothing.

        Raises:
            ValueError: too many levels, or a code outside -1 … K - 1.
        """
        self._check_codes(codes)
        quantized = self.codebooks.new_zeros(*codes.shape[:-1], self.code_dim)
        for level in range(codes.shape[-1]):
            code = codes[..., level]
            quantized += self._book(level)[code.clamp(min=0)] * (code >= 0).unsqueeze(-1)
        return quantized

    @torch.no_grad()
    def initialize_codebooks(self, latents: Tensor, group: dist.ProcessGroup | None = None) -> int:
        """Sets every level's codebook from the latents of the first global batch, or batches.

        No two codes of a level are equal. Where a level has fewer distinct vectors than codes, the rest are copies, a
        little apart.

        Args:
            latents: `[..., D]`, each rank's own; ranks in order make up the global batch.
            group: the ranks; all of them call this. They end equal, as one rank with all latents would.

        Returns:
            how many codes of all levels are copies.

        Raises:
            ValueError: no finite latent on any rank.
        """
        rows = gather_rows(latents.detach().float().reshape(-1, self.code_dim), group)
        rows = rows[torch.isfinite(rows).all(dim=1)]
        if not len(rows):
            raise ValueError("no finite latents to initialise the codebooks from")
        residual, by_angle, copies = rows, self.codebook_distance == "cosine", 0
        for level in range(len(self.codebooks)):
            generator = torch.Generator().manual_seed(fold_seed("first codes", self._position[0], level))
            if self.lineage:
                self.codebooks[level] = first_rows(residual, self.nb_code, generator)
                # MoMask goes on from what its sampled codes leave.
                residual = residual - self._book(level)[self._choose(residual, level)]
            else:
                codes, found = first_codes(
                    residual, self.nb_code, kind=self.codebook_init, generator=generator, direction_only=by_angle
                )
                self.codebooks[level] = codes
                copies += self.nb_code - found
                if level + 1 < len(self.codebooks):
                    residual = left_out_residuals(residual, codes[:found], by_angle)
        if world_of(group)[0] > 1:
            # Ranks on unlike devices may round differently.
            dist.broadcast(self.codebooks, src=dist.get_global_rank(group, 0) if group else 0, group=group)
        self.ema_sum.copy_(self.codebooks)
        self.ema_count.fill_(1.0)
        self.updates.zero_()
        self.initialized.fill_(True)
        return copies

    @torch.no_grad()
    def update_codebooks(
        self,
        group: dist.ProcessGroup | None = None,
        applied: bool = True,
        share: tuple[int, int, int] | None = None,
    ) -> None:
        """Commits the staged statistics: the codebooks' optimizer step, called once after the engine's on every rank.

        Args:
            group: the ranks, each of which calls this; they bring equally many vectors, unless `share` says else.
            applied: whether the engine applied its step. False on any rank, or a number that is not finite, drops the
                statistics on all ranks.
            share: where this rank's batches lie in the global batch, whose parts follow each other in rank order: the
                first, the one after the last, and how many there are of all ranks.

        One all-reduce of one flat fp32 tensor, and no wait of the host for the device.
        """
        world_size, rank = world_of(group)
        counts, sums, candidates, refused = self._staged_views()
        if self._staged_latents:
            candidates.copy_(self._replacement_candidates(*(share or (rank, rank + 1, world_size))))
        refused.fill_(0.0 if applied else 1.0)
        if world_size > 1:
            dist.all_reduce(self._staged, group=group)
        commit = torch.isfinite(self._staged).all() & (refused == 0)
        self._commit(commit, counts, sums, candidates)
        self.drop_staged()

    def drop_staged(self) -> None:
        """Forgets what forward passes have staged since the last update."""
        self._staged.zero_()
        self._staged_latents.clear()

    def average_counts(self) -> Tensor:
        """Moving average `[Q or 1, K]` of each code's uses in an update."""
        return self.ema_count

    def _book_index(self, level: int) -> int:
        return 0 if self.shared_codebook else level

    def _book(self, level: int) -> Tensor:
        return self.codebooks[self._book_index(level)]

    def _quantize(self, rows: Tensor, levels: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of `rows [N, D]`: what each level found and what the last left, `[N, D]` each; the sum of the codes' vectors;
        the codes `[N, Q]`, -1 past `levels`."""
        residuals, total = [rows], torch.zeros_like(rows)
        codes = torch.full((len(rows), self.num_quantizers), -1, device=rows.device)
        searched = self._codes(rows) if self.beam_size > 1 and not self.training else None
        choose = self._choose if self.training else self._nearest
        for level in range(levels):
            index = choose(residuals[-1], level) if searched is None else searched[:, level]
            codes[:, level] = index
            vector = self._book(level).index_select(0, index)
            total += vector
            residuals.append(residuals[-1] - vector)
        return residuals, total, codes

    def _stage(self, residuals: list[Tensor], codes: Tensor, counts: Tensor) -> None:
        """Keeps what the next `update_codebooks` needs of a batch: uses and sums of each code."""
        staged_counts, sums, _, _ = self._staged_views()
        staged_counts += counts
        for level, residual in enumerate(residuals):
            sums[self._book_index(level)].index_add_(0, codes[:, level], residual)
        self._staged_latents.append((residuals[0], codes))

    def _codes(self, rows: Tensor) -> Tensor:
        """Codes `[N, Q]` of `rows [N, D]`: all levels, no noise."""
        if self.beam_size > 1:
            return beam_search(rows, [self._book(level) for level in range(self.num_quantizers)], self.beam_size)
        codes = []
        for level in range(self.num_quantizers):
            codes.append(self._nearest(rows, level))
            rows = rows - self._book(level)[codes[-1]]
        return torch.stack(codes, dim=-1)

    def _choose(self, rows: Tensor, level: int) -> Tensor:
        """Code `[N]` of each of `rows [N, D]` at a level while training: the nearest, or a noisy choice."""
        scale = self._temperature()
        if not scale:
            return self._nearest(rows, level)
        distances = squared_distances(rows, self._searched(level))
        if not self.lineage:
            scale = scale * (distances.amin(dim=1) + (rows**2).sum(dim=1)).clamp(min=0).mean()
        generator = torch.Generator(rows.device).manual_seed(fold_seed("noise", *self._position, level))
        minus_gumbel = torch.empty_like(distances).exponential_(generator=generator).log_()
        return first_least(distances + scale * minus_gumbel)

    def _temperature(self) -> float:
        """Of the sampling noise at this step."""
        if self.sample_anneal_iter is None:
            return self.sample_codebook_temp
        return self.sample_codebook_temp * max(0.0, 1.0 - self._position[1] / self.sample_anneal_iter)

    def _nearest(self, rows: Tensor, level: int) -> Tensor:
        return nearest_codes(rows, self._searched(level))

    def _searched(self, level: int) -> Tensor:
        """The vectors `[K, D]` to the nearest of which a level goes."""
        return self._seen(self._book(level))

    def _seen(self, vectors: Tensor) -> Tensor:
        """Codes as distances see them: of codes of length 1 the nearest is that by angle."""
        return functional.normalize(vectors, dim=-1) if self.codebook_distance == "cosine" else vectors

    def _with_gradient(self, latents: Tensor, quantized: Tensor, levels: int) -> Tensor:
        if self.gradient == "rotation_trick":
            return RotationTrick.apply(latents, quantized)
        # MoMask has an estimator a level, so that the gradient comes as often.
        return StraightThrough.apply(latents, quantized, levels if self.lineage else 1)

    def _staged_views(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views into the flat staged tensor: counts, sums, replacement candidates, refusals."""
        counts, sums, candidates, refused = self._staged.split(self._sizes)
        return (
            counts.view(self.num_quantizers, self.nb_code),
            sums.view_as(self.codebooks),
            candidates.view(len(self.codebooks), self.replacements, self.code_dim),
            refused[0],
        )

    def _replacement_candidates(self, first: int, stop: int, count: int) -> Tensor:
        """Vectors `[Q or 1, R, D]` drawn over the global batch; each rank fills in its own, zeros elsewhere.

        Vectors are what a level was asked to quantize: latents less the codes of the levels before it.
        """
        rows = torch.cat([rows for rows, _ in self._staged_latents])
        codes = torch.cat([codes for _, codes in self._staged_latents])
        shape = (len(self.codebooks), self.replacements)
        each = len(rows) // (stop - first)
        draws = torch.stack([self._draw_rows(shape, count * each) - first * each, self._draw_levels(shape)])
        if rows.is_cuda:
            # A copy from pageable memory would make the host wait for the device.
            draws = draws.pin_memory()
        row, level = draws.to(rows.device, non_blocking=True)
        mine = (row >= 0) & (row < len(rows))
        row = row.clamp(0, len(rows) - 1)
        levels = torch.arange(self.num_quantizers, device=rows.device)
        book = torch.zeros_like(levels) if self.shared_codebook else levels
        before = self.codebooks[book, codes[row].clamp(min=0)] * (levels < level.unsqueeze(-1)).unsqueeze(-1)
        vectors = rows[row] - before.sum(dim=2)
        if self.lineage and count * each < self.replacements:
            generator = torch.Generator().manual_seed(fold_seed("copies", *self._position[:2]))
            noise = noise_of_copies(vectors.shape, generator)
            vectors = vectors + (noise.pin_memory() if rows.is_cuda else noise).to(rows.device, non_blocking=True)
        return vectors * mine.unsqueeze(-1)

    def _draw_rows(self, shape: tuple[int, int], rows: int) -> Tensor:
        """Each candidate's row of the global batch; exact integers, so that any number of ranks draws the same."""
        if self.lineage:
            return torch.arange(shape[1]).expand(shape) % rows
        seed, step, _, _ = self._position
        generator = torch.Generator().manual_seed(fold_seed("candidates", seed, step))
        return (torch.randint(2**32, shape, generator=generator) * rows) >> 32

    def _draw_levels(self, shape: tuple[int, int]) -> Tensor:
        """The level that each candidate is for; a shared codebook draws among the active ones."""
        if not self.shared_codebook:
            return torch.arange(shape[0]).unsqueeze(1).expand(shape)
        seed, step, _, _ = self._position
        generator = torch.Generator().manual_seed(fold_seed("candidate levels", seed, step))
        return torch.randint(self._active_levels(), shape, generator=generator)

    def _commit(self, commit: Tensor, counts: Tensor, sums: Tensor, candidates: Tensor) -> None:
        """Moves averages and codebooks by the global statistics where `commit` holds."""
        book_counts = counts.sum(dim=0, keepdim=True) if self.shared_codebook else counts
        used = book_counts.sum(dim=1, keepdim=True) > 0
        changes = commit & used
        update = (self.updates + 1).float()
        decay = self.mu if self.lineage else torch.clamp(update / (update + self.mu_warm_up), max=self.mu)
        count = decay * self.ema_count + (1 - decay) * book_counts
        total = decay * self.ema_sum + (1 - decay) * sums
        # A code unused for so long that its count has vanished stays where it was.
        book = torch.where((count > 1e-6).unsqueeze(-1), total / count.unsqueeze(-1), self.codebooks)
        count, total, book = self._replace_dead(count, total, book, candidates)
        for buffer, value in ((self.ema_count, count), (self.ema_sum, total), (self.codebooks, book)):
            mask = changes if value.dim() == 2 else changes.unsqueeze(-1)
            buffer.copy_(torch.where(mask, value, buffer))
        self.updates += changes.any()
        self.usage_counts += torch.where(commit, counts, 0.0)

    def _replace_dead(self, count: Tensor, total: Tensor, book: Tensor, candidates: Tensor) -> tuple[Tensor, ...]:
        """Gives dead codes, the least used first, a candidate: vector, sum and count together."""
        if self.lineage:
            return count, total, torch.where((count >= 1.0).unsqueeze(-1), book, candidates)
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
