"""What residual quantizers have in common, however a level chooses its codes."""

import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import Self

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.model.ranks import fold_seed


class LevelledQuantizer(nn.Module, ABC):
    """Levels of codes, of which a training step may use only the first.

    Args:
        num_quantizers: levels, Q.
        nb_code: codes a level, K.
        code_dim: length of a latent, D.
        quantize_dropout_prob: share of steps that use only the first levels.
        quantize_dropout_min_levels: how many they use at the least; up to Q.

    Buffers:
        initialized: whether the quantizer can be used as it is.
        updates: committed updates, int64.
        usage_counts: `[Q, K]` fp32, not persistent: committed uses over all ranks since `take_usage_counts`.
        staged: fp32, flat, not persistent: what forward passes have added up since the last `update_codebooks`, which
            sums it over all ranks. First the uses of each code, then what a kind of quantizer has besides.
    """

    initialized: Tensor
    updates: Tensor
    usage_counts: Tensor
    staged: Tensor

    starts_with_first_step = False
    """Whether the first codes are those of the very latents that the first training step quantizes: its batch, with
    dropout. Otherwise they are from latents without dropout, of as many batches as give enough of them."""

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
        self._position = (0, 0, 0, 0)
        self.distinct_replacements = True
        """Whether a code that is replaced gets a vector apart from all others of its level. A run that began without
        goes on without, so that it ends as it would have."""

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """The quantizer of a profile's `rvqvae.model`, whose keys are the arguments of each class by their names."""
        return cls(**{name: getattr(config, name) for name in inspect.signature(cls).parameters})

    @abstractmethod
    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantizes `latents [B, T, D]`; while training, also keeps what the next `update_codebooks` needs of them.

        Returns:
            quantized `[B, T, D]` in the latents' dtype; codes `[B, T, Q]` int64, -1 at levels dropped; commitment loss,
            a scalar; perplexity `[Q]` of this batch, 0 at levels dropped.
        """

    @abstractmethod
    def encode(self, latents: Tensor) -> Tensor:
        """Codes `[B, T, Q]` int64 of `latents [B, T, D]`: all levels, no noise, nothing staged."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Quantized latents `[..., D]` fp32 of `codes [..., q]`, 1 <= q <= Q; -1 adds nothing.

        Raises:
            ValueError: too many levels, or a code outside -1 … K - 1.
        """

    @abstractmethod
    def initialize_codebooks(self, latents: Tensor, group: dist.ProcessGroup | None = None) -> int:
        """Makes the first codes of all levels from `latents [..., D]`, each rank's own, in rank order.

        Returns:
            how many codes of all levels are copies.
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
            group: the ranks, each of which calls this; they bring equally many vectors, unless `share` says else.
            applied: whether the engine applied its step. False on any rank drops the statistics on all.
            share: where this rank's batches lie in the global batch, whose parts follow each other in rank order: the
                first, the one after the last, and how many there are of all ranks.
        """

    @abstractmethod
    def average_counts(self) -> Tensor:
        """Moving average `[Q or 1, K]` of each code's uses in an update; `[0, K]` where none is kept."""

    def set_step(self, seed: int, step: int, micro_step: int = 0, rank: int = 0) -> None:
        """Makes the next training forward's draws, and the next update's, a function of these four.

        Level dropout and replacement draw from (seed, step), which ranks share; noise draws from all four.
        """
        self._position = (seed, step, micro_step, rank)

    def active_levels(self) -> int:
        """Levels of the next forward pass. Of a training step: a function of (seed, step), which ranks share."""
        if not self.training:
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
        """Forgets what forward passes have staged since the last update."""
        self.staged.zero_()

    def take_usage_counts(self) -> Tensor:
        """Committed uses `[Q, K]` of each code over all ranks since the last call."""
        counts = self.usage_counts.clone()
        self.usage_counts.zero_()
        return counts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Averages with decay 0.99 stall in bf16: a cast of the model moves these buffers but leaves their dtype.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.dtype == torch.float32 and moved.dtype != torch.float32:
                return tensor.to(moved.device)
            return moved

        apply: Callable[..., Self] = super()._apply  # torch has no types for it
        return apply(move, recurse)

    def checked_codes(self, codes: Tensor) -> Tensor:
        """Codes `[m, q]` of a clip as int64, with 1 <= q <= Q; -1 drops a level but the first.

        Raises:
            ValueError: no integers, or none of this quantizer's.
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
        """Raises ValueError where `codes [..., q]` have too many levels, or a code outside -1 … K - 1."""
        levels = codes.shape[-1]
        if not 1 <= levels <= self.num_quantizers:
            raise ValueError(f"codes have {levels} levels; this quantizer takes 1 to {self.num_quantizers}")
        if not codes.numel():
            return
        least, most = map(int, codes.aminmax())
        if least < -1 or most >= self.nb_code:
            raise ValueError(f"codes reach from {least} to {most}; this quantizer has 0 to {self.nb_code - 1}")

    def _count(self, codes: Tensor) -> Tensor:
        """Uses `[Q, K]` of each code in `codes [N, Q]`; dropped levels have none."""
        used = codes >= 0
        places = codes.clamp(min=0) + torch.arange(self.num_quantizers, device=codes.device) * self.nb_code
        counts = torch.zeros(self.num_quantizers * self.nb_code, device=codes.device)
        counts.index_add_(0, places.reshape(-1), used.reshape(-1).float())
        return counts.view(self.num_quantizers, self.nb_code)
