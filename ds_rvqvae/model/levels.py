"""What residual quantizers have in common, however a level chooses its codes."""

import random
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ds_rvqvae.model.ranks import fold_seed


class LevelledQuantizer(nn.Module):
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
    """

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Averages with decay 0.99 stall in bf16: a cast of the model moves these buffers but leaves their dtype.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.dtype == torch.float32 and moved.dtype != torch.float32:
                return tensor.to(moved.device)
            return moved

        return super()._apply(move, recurse)

    def set_step(self, seed: int, step: int, micro_step: int = 0, rank: int = 0) -> None:
        """Makes the next training forward's draws, and the next update's, a function of these four.

        Level dropout and replacement draw from (seed, step), which ranks share; noise draws from all four.
        """
        self._position = (seed, step, micro_step, rank)

    def take_usage_counts(self) -> Tensor:
        """Committed uses `[Q, K]` of each code over all ranks since the last call."""
        counts = self.usage_counts.clone()
        self.usage_counts.zero_()
        return counts

    def _check_codes(self, codes: Tensor) -> None:
        """Raises ValueError where `codes [..., q]` have too many levels, or a code outside -1 … K - 1."""
        levels = codes.shape[-1]
        if not 1 <= levels <= self.num_quantizers:
            raise ValueError(f"codes have {levels} levels; this quantizer takes 1 to {self.num_quantizers}")
        if codes.numel() and (codes.min() < -1 or codes.max() >= self.nb_code):
            raise ValueError(
                f"codes reach from {codes.min()} to {codes.max()}; this quantizer has 0 to {self.nb_code - 1}"
            )

    def _active_levels(self) -> int:
        """Levels of this forward pass. Of a training step: a function of (seed, step), which ranks share."""
        if not self.training:
            return self.num_quantizers
        seed, step, _, _ = self._position
        draw = random.Random(fold_seed("levels", seed, step))
        if draw.random() < self.quantize_dropout_prob:
            return draw.randint(self.quantize_dropout_min_levels, self.num_quantizers)
        return self.num_quantizers

    def _count(self, codes: Tensor) -> Tensor:
        """Uses `[Q, K]` of each code in `codes [N, Q]`; dropped levels have none."""
        used = codes >= 0
        places = codes.clamp(min=0) + torch.arange(self.num_quantizers, device=codes.device) * self.nb_code
        counts = torch.zeros(self.num_quantizers * self.nb_code, device=codes.device)
        counts.index_add_(0, places.reshape(-1), used.reshape(-1).float())
        return counts.view(self.num_quantizers, self.nb_code)
