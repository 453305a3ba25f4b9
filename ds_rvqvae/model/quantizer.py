"""Residual vector quantization with codebooks that are moving averages.

The forward pass never communicates.

Sources: residual levels and quantizer dropout, SoundStream (Zeghidour et al. 2021); one straight-through estimator
around all levels, EnCodec (Défossez et al. 2022).
"""

import torch
import torch.distributed as dist
from torch import Tensor

from ds_rvqvae.model.codebooks import AveragedCodebooks
from ds_rvqvae.model.first_codes import first_codes, left_out_residuals
from ds_rvqvae.model.ranks import fold_seed, gather_rows, world_of
from ds_rvqvae.model.vq import (
    SearchedBook,
    beam_search,
    first_least,
    nearest_codes,
    perplexity_of_shares,
    quantization,
    ranking_distances,
    searched_books,
)


class ResidualQuantizer(AveragedCodebooks):
    """Quantizes latents with `num_quantizers` codebooks; each level quantizes the residual of the levels before it.

    A derived class may override the methods from `_first_codes` on, and those of `AveragedCodebooks` from `_decay` on.

    Args:
        num_quantizers: levels, Q.
        nb_code: codes per level, K.
        code_dim: length of a code vector, D.
        shared_codebook: whether all levels use one codebook, updated once after the last level.
        mu: decay of the averages.
        mu_warm_up: update t decays by `min(mu, t / (t + mu_warm_up))`.
        quantize_dropout_prob: fraction of steps that use only the first levels.
        quantize_dropout_min_levels: the fewest levels that such a step uses; at most Q.
        sample_codebook_temp: Gumbel noise on squared distances in training, relative to the mean nearest distance.
        sample_anneal_iter: steps over which this noise falls to 0; if None, it stays.
        codebook_distance: "euclidean", or "cosine" of a vector and a code.
        gradient: "straight_through" or "rotation_trick".
        codebook_init: "samples" or "kmeans".
        beam_size: number of sums of codes kept from level to level outside training; 1 takes the nearest code.
            More than 1 needs euclidean distance and a codebook per level.
        dead_code_threshold: a code is replaced if its average count is below this fraction of uniform use.

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
    ) -> None:
        super().__init__(
            num_quantizers,
            nb_code,
            code_dim,
            quantize_dropout_prob,
            quantize_dropout_min_levels,
            shared_codebook=shared_codebook,
            mu=mu,
            mu_warm_up=mu_warm_up,
            codebook_distance=codebook_distance,
            dead_code_threshold=dead_code_threshold,
        )
        self.sample_codebook_temp, self.sample_anneal_iter = sample_codebook_temp, sample_anneal_iter
        self.gradient = gradient
        self.codebook_init = codebook_init
        self.beam_size = beam_size

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantizes `latents [B, T, D]`; in training, also stages statistics for the next `update_codebooks`.

        Returns:
            quantized `[B, T, D]` in the latents' dtype, with the gradient that `gradient` names; codes `[B, T, Q]`
            int64, -1 at dropped levels; commitment loss, the mean over active levels of the squared distance to the
            code; perplexity `[Q]` of this batch, 0 at dropped levels.
        """
        with torch.autocast(latents.device.type, enabled=False):
            with torch.no_grad():
                vectors = latents.detach().reshape(-1, self.code_dim)
                residuals, codes = self._quantize(vectors, self.active_levels())
                places = codes + self.first_places[: codes.shape[1]]
                counts = self._count(places.view(-1))
                index = codes if self.shared_codebook else places
                total = self._sum_of(index)
                if self.training:
                    self._stage(vectors, residuals[:-1], index, counts)
                perplexity = perplexity_of_shares(counts[: codes.shape[1]] / max(1, len(codes)))
            quantized, commit_loss = quantization(latents, total, residuals[1:], self._gain(codes.shape[1]))
        return (
            quantized,
            self._padded(codes, -1).reshape(*latents.shape[:-1], self.num_quantizers),
            commit_loss,
            self._padded(perplexity, 0),
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
            ValueError: `codes` have too many levels, or a code outside -1 … K - 1.
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

        No two codes of a level are equal. If a level has fewer distinct vectors than codes, the remaining codes are
        copies with a little noise.

        Args:
            latents: `[..., D]`, each rank's own; in rank order they make up the global batch.
            group: the ranks; each of them calls this. All end with the codebooks that one rank with all latents makes.

        Returns:
            the number of codes, over all levels, that are copies.

        Raises:
            ValueError: no rank has a finite latent.
        """
        rows = gather_rows(latents.detach().float().reshape(-1, self.code_dim), group)
        rows = rows[torch.isfinite(rows).all(dim=1)]
        if not len(rows):
            raise ValueError("no finite latents to initialise the codebooks from")
        copies = 0
        for level in range(len(self.codebooks)):
            generator = torch.Generator().manual_seed(fold_seed("first codes", self._position[0], level))
            self.codebooks[level], found = self._first_codes(rows, generator)
            copies += self.nb_code - found
            if level + 1 < len(self.codebooks):
                rows = self._left_by_first_codes(rows, level, found)
        if world_of(group)[0] > 1:
            # Ranks on different kinds of device may round differently.
            dist.broadcast(self.codebooks, src=dist.get_global_rank(group, 0) if group else 0, group=group)
        self.ema_sum.copy_(self.codebooks)
        self.ema_count.fill_(1.0)
        self.updates.zero_()
        self.initialized.fill_(True)
        return copies

    def _quantize(self, latents: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Quantizes `latents [N, D]` with the first `levels`; returns, in fp32, the latents and what each level leaves
        of them, `[levels + 1, N, D]`; and codes `[N, levels]`."""
        left = torch.empty(levels + 1, *latents.shape, device=latents.device)
        rows, *after = left.unbind()
        rows.copy_(latents)
        books = self._searched()
        searched = self._codes(rows) if self.beam_size > 1 and not self.training else None
        choose = self._choose if self.training else self._nearest
        index = []
        for level, rest in enumerate(after):
            book = self._book_index(level)
            index.append(choose(rows, books[book], level) if searched is None else searched[:, level])
            torch.sub(rows, self.codebooks[book].index_select(0, index[-1]), out=rest)
            rows = rest
        return left, torch.stack(index, dim=-1)

    def _codes(self, rows: Tensor) -> Tensor:
        """Codes `[N, Q]` of `rows [N, D]`: all levels, no noise."""
        books = self._searched()
        if self.beam_size > 1:
            return beam_search(rows, books, self.beam_size)
        codes = []
        for level in range(self.num_quantizers):
            codes.append(self._nearest(rows, books[self._book_index(level)], level))
            rows = rows - self._book(level)[codes[-1]]
        return torch.stack(codes, dim=-1)

    def _choose(self, rows: Tensor, book: SearchedBook, level: int) -> Tensor:
        """Code `[N]` of each of `rows [N, D]` at a level in training: the nearest, or a noisy choice."""
        temperature = self._temperature()
        if not temperature:
            return nearest_codes(rows, book)
        distances = ranking_distances(rows, book)
        scale = self._noise_scale(temperature, rows, distances)
        generator = torch.Generator(rows.device).manual_seed(fold_seed("noise", *self._position, level))
        minus_gumbel = torch.empty_like(distances).exponential_(generator=generator).log_()
        return first_least(distances + scale * minus_gumbel)

    def _temperature(self) -> float:
        """Temperature of the sampling noise at this step."""
        if self.sample_anneal_iter is None:
            return self.sample_codebook_temp
        return self.sample_codebook_temp * max(0.0, 1.0 - self._position[1] / self.sample_anneal_iter)

    def _nearest(self, rows: Tensor, book: SearchedBook, level: int) -> Tensor:
        return nearest_codes(rows, book)

    def _searched(self) -> list[SearchedBook]:
        """The codebooks in which the levels look for the nearest vectors."""
        return searched_books(self._seen(self.codebooks))

    def _gain(self, levels: int) -> int | None:
        """Straight-through estimators for so many active levels, which multiply the gradient; None: the rotation trick
        is used."""
        return None if self.gradient == "rotation_trick" else self._estimators(levels)

    def _first_codes(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """A level's first codebook `[K, D]` from `rows [N, D]`, and how many codes, at its start, are not copies."""
        by_angle = self.codebook_distance == "cosine"
        return first_codes(rows, self.nb_code, kind=self.codebook_init, generator=generator, direction_only=by_angle)

    def _left_by_first_codes(self, rows: Tensor, level: int, found: int) -> Tensor:
        """Residuals of `rows [N, D]` at a level whose codebook is set, for the first codes of the next level."""
        return left_out_residuals(rows, self._book(level)[:found], self.codebook_distance == "cosine")

    def _noise_scale(self, temperature: float, rows: Tensor, distances: Tensor) -> Tensor | float:
        """Factor of the Gumbel noise on `distances [N, K]` of `rows [N, D]`."""
        nearest = distances.amin(dim=1) + (rows**2).sum(dim=1)
        return temperature * nearest.clamp(min=0).mean()

    def _estimators(self, levels: int) -> int:
        """Number of straight-through estimators for so many active levels; it multiplies the gradient."""
        return 1
