"""The base class of residual quantizers, independent of how a level chooses its codes."""

import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.model.ranks import fold_seed, world_of


class LevelledQuantizer(nn.Module, ABC):
    """Levels of codes; a training step may use only the first of them.

    Args:
        num_quantizers: levels, Q.
        nb_code: codes per level, K.
        code_dim: length of a latent, D.
        quantize_dropout_prob: fraction of steps that use only the first levels.
        quantize_dropout_min_levels: the fewest levels that such a step uses; at most Q.

    Buffers:
        initialized: whether the quantizer is ready for use.
        updates: committed updates, int64.
        usage_counts: `[Q, K]` fp32, not persistent: committed uses over all ranks since `take_usage_counts`.
        first_places: `[Q]` int64, not persistent: place of each level's first code among the codes of all levels.
        staged: fp32, flat, not persistent: statistics of forward passes since the last `update_codebooks`, which sums
            it over all ranks. The uses of each code come first, then statistics of the derived class, and at the end a
            number that is NaN if a rank refuses them.
    """

    initialized: Tensor
    updates: Tensor
    usage_counts: Tensor
    first_places: Tensor
    staged: Tensor

    starts_with_first_step = False
    """Whether the first codes come from the latents that the first training step quantizes: its batch, with dropout.
    Otherwise they come from latents without dropout, of as many batches as are needed."""

    def __init__(
        self,
        num_quantizers: int,
        nb_code: int,
        code_dim: int,
        quantize_dropout_prob: float,
        quantize_dropout_min_levels: int,
    ) -> None:
        super().__init__()
        self.num_quantizers, self.nb_code, self.code_dim = num_quantizers, nb_code, code_dim
        self.quantize_dropout_prob = quantize_dropout_prob
        self.quantize_dropout_min_levels = quantize_dropout_min_levels
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("usage_counts", torch.zeros(num_quantizers, nb_code), persistent=False)
        places = torch.arange(num_quantizers) * nb_code
        self.register_buffer("first_places", places, persistent=False)
        self._position = (0, 0, 0, 0)
        self._begun = False
        self._summing: dist.Work | None = None
        self.distinct_replacements = True
        """Whether a replaced code gets a vector distinct from all others of its level. A run that began without this
        continues without it, so that its result does not change."""

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """The quantizer for a profile's `rvqvae.model`, whose keys are the arguments of each class, by name."""
        return cls(**{name: getattr(config, name) for name in inspect.signature(cls).parameters})

    @abstractmethod
    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantizes `latents [B, T, D]`; in training, also stages statistics for the next `update_codebooks`.

        Returns:
            quantized `[B, T, D]` in the latents' dtype; codes `[B, T, Q]` int64, -1 at dropped levels; commitment loss,
            a scalar; perplexity `[Q]` of this batch, 0 at dropped levels.
        """

    @abstractmethod
    def encode(self, latents: Tensor) -> Tensor:
        """Codes `[B, T, Q]` int64 of `latents [B, T, D]`: all levels, no noise, nothing staged."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Quantized latents `[..., D]` fp32 of `codes [..., q]`, 1 <= q <= Q; -1 adds nothing.

        Raises:
            ValueError: `codes` have too many levels, or a code outside -1 … K - 1.
        """

    @abstractmethod
    def initialize_codebooks(self, latents: Tensor, group: dist.ProcessGroup | None = None) -> int:
        """Makes the first codes of all levels from each rank's own `latents [..., D]`, in rank order.

        Returns:
            the number of codes, over all levels, that are copies.
        """

    @abstractmethod
    def update_codebooks(
        self,
        group: dist.ProcessGroup | None = None,
        applied: bool = True,
        share: tuple[int, int, int] | None = None,
    ) -> None:
        """Commits the staged statistics: the codebooks' optimizer step, called once after the engine's on every rank.

        Args:
            group: the ranks; each of them calls this. All have the same number of vectors, unless `share` is given.
            applied: whether the engine applied its step. False on any rank drops the statistics on all. After
                `begin_update` it must be equal on all ranks, and the other arguments are not read.
            share: the position of this rank's batches in the global batch, which is in rank order: index of the first,
                index after the last, and number of batches of all ranks.
        """

    @torch.no_grad()
    def begin_update(self, group: dist.ProcessGroup | None = None, share: tuple[int, int, int] | None = None) -> None:
        """Begins the next `update_codebooks`: from a step's last forward pass on, its sum over all ranks can run while
        they compute gradients.

        Optional; every rank calls it. Then `update_codebooks` needs neither argument again, and its `applied` must be
        the same on all ranks.
        """
        self._complete_staged(group, share)
        if world_of(group)[0] > 1:
            self._summing = dist.all_reduce(self.staged, group=group, async_op=True)
        self._begun = True

    def _complete_staged(self, group: dist.ProcessGroup | None, share: tuple[int, int, int] | None) -> None:
        """Adds to this rank's staged statistics, before they are summed, what is drawn from all its forward passes."""

    def _sum_staged(self, group: dist.ProcessGroup | None, applied: bool, share: tuple[int, int, int] | None) -> None:
        """Ends the sum of the staged statistics that `begin_update` began, or does all of it; refuses them by NaN."""
        if not self._begun:
            self._complete_staged(group, share)
        elif self._summing is not None:
            self._summing.wait()
        if not applied:
            self.staged[-1].fill_(torch.nan)
        if not self._begun and world_of(group)[0] > 1:
            dist.all_reduce(self.staged, group=group)
        self._begun, self._summing = False, None

    @abstractmethod
    def average_counts(self) -> Tensor:
        """Moving average `[Q or 1, K]` of each code's uses in an update; `[0, K]` if there is none."""

    def set_step(self, seed: int, step: int, micro_step: int = 0, rank: int = 0) -> None:
        """Makes the random draws of the next training forward, and of the next update, a function of these four.

        Level dropout and replacement draw from (seed, step), equal on all ranks; noise draws from all four.
        """
        self._position = (seed, step, micro_step, rank)

    def active_levels(self) -> int:
        """Number of levels in the next forward pass; in training a function of (seed, step), equal on all ranks."""
        if not self.training or not self.quantize_dropout_prob:
            return self.num_quantizers
        seed, step, _, _ = self._position
        draw = random.Random(fold_seed("levels", seed, step))
        if draw.random() < self.quantize_dropout_prob:
            return draw.randint(self.quantize_dropout_min_levels, self.num_quantizers)
        return self.num_quantizers

    def staged_counts(self) -> Tensor:
        """Uses `[Q, K]` of each code in this rank's forward passes since the last update: a view into `staged`."""
        return self.staged[: self.usage_counts.numel()].view_as(self.usage_counts)

    def drop_staged(self) -> None:
        """Drops the statistics that forward passes have staged since the last update."""
        if self._summing is not None:
            self._summing.wait()
        self._begun, self._summing = False, None
        self.staged.zero_()

    def take_usage_counts(self) -> Tensor:
        """Committed uses `[Q, K]` of each code over all ranks since the last call."""
        counts = self.usage_counts.clone()
        self.usage_counts.zero_()
        return counts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Averages with decay 0.99 stall in bf16, so a cast of the model moves these buffers but keeps their dtype.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.dtype == torch.float32 and moved.dtype != torch.float32:
                return tensor.to(moved.device)
            return moved

        apply: Callable[..., Self] = super()._apply  # torch has no types for it
        return apply(move, recurse)

    def checked_codes(self, codes: Tensor) -> Tensor:
        """Codes `[m, q]` of a clip as int64, with 1 <= q <= Q; -1 drops a level, except the first.

        Raises:
            ValueError: `codes` are not integers, or not codes of this quantizer.
        """
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype} {tuple(codes.shape)}; give integers [codes, levels]")
        known = codes.to(torch.int64)
        self._check_codes(known)
        if known.numel() and (known[:, 0].min() < 0 or (codes.dtype == torch.uint64 and known.min() < 0)):
            raise ValueError(
                "codes have -1 on the first level, and only later ones can be dropped; past a clip's end, give lengths"
            )
        return known

    def _check_codes(self, codes: Tensor) -> None:
        """Raises ValueError if `codes [..., q]` have too many levels, or a code outside -1 … K - 1."""
        levels = codes.shape[-1]
        if not 1 <= levels <= self.num_quantizers:
            raise ValueError(f"codes have {levels} levels; this quantizer takes 1 to {self.num_quantizers}")
        if not codes.numel():
            return
        least, most = map(int, codes.aminmax())
        if least < -1 or most >= self.nb_code:
            raise ValueError(f"codes reach from {least} to {most}; this quantizer has 0 to {self.nb_code - 1}")

    def _count(self, places: Tensor) -> Tensor:
        """Uses `[Q, K]` of each code, from places `[levels * N]` among the codes of all levels."""
        counts = torch.zeros(self.num_quantizers * self.nb_code, device=places.device)
        counts.index_add_(0, places, torch.ones(1, device=places.device).expand(len(places)))
        return counts.view(self.num_quantizers, self.nb_code)

    def _padded(self, values: Tensor, value: int) -> Tensor:
        """`values [..., levels]` of the active levels, with `value` for the dropped ones: `[..., Q]`."""
        dropped = self.num_quantizers - values.shape[-1]
        return functional.pad(values, (0, dropped), value=value) if dropped else values
