"""The RVQ-VAE: motion to codes and back."""

from typing import NamedTuple

import torch
from torch import Tensor

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.model.frozen import Freezable
from ds_rvqvae.model.fsq import ScalarQuantizer
from ds_rvqvae.model.levels import LevelledQuantizer
from ds_rvqvae.model.momask import MoMaskQuantizer
from ds_rvqvae.model.nets import Checkpoint, Decoder, Encoder, ResidualStack
from ds_rvqvae.model.quantizer import ResidualQuantizer
from ds_rvqvae.model.ranks import fold_seed, seed_device


class RVQVAEOutput(NamedTuple):
    """The result of a forward pass."""

    reconstruction: Tensor
    """`[B, T, C]`, in the input's dtype."""
    codes: Tensor
    """`[B, T / code_stride, Q]` int64; -1 at levels that quantizer dropout left out."""
    commit_loss: Tensor
    """Scalar, fp32."""
    perplexity: Tensor
    """`[Q]`, of this rank's batch; 0 at levels left out."""


def quantizer_of(config: ModelConfig) -> LevelledQuantizer:
    """The quantizer for a profile's `rvqvae.model`; only this function knows all kinds."""
    if config.fsq_levels is not None:
        return ScalarQuantizer.from_config(config)
    if config.lineage:
        return MoMaskQuantizer.from_config(config)
    return ResidualQuantizer.from_config(config)


class RVQVAE(Freezable):
    """Residual vector-quantized VAE over motion (T2M-GPT's and MoMask's nets).

    Args:
        in_features: columns of the normalised motion.
        model_config: the profile's `rvqvae.model`.

    Parameters may be bf16: motion is cast to their dtype, codebooks and distances stay fp32.
    """

    def __init__(self, in_features: int, model_config: ModelConfig) -> None:
        super().__init__()
        self.in_features = in_features
        self.config = model_config
        self.encoder = Encoder(in_features, model_config)
        self.quantizer = quantizer_of(model_config)
        self.decoder = Decoder(in_features, model_config)

    def set_step(self, seed: int, step: int, micro_step: int = 0, rank: int = 0) -> None:
        """Makes the random draws of the next training forward a function of these four; call it before each one.

        Level dropout draws from (seed, step), equal on all ranks; sampling noise and block dropout from all four.
        It seeds torch's default generators of the CPU and of the model's device, because block dropout and the noise
        on the input draw from them; a model that has neither leaves them as they are.
        """
        self.quantizer.set_step(seed, step, micro_step, rank)
        if self.config.dropout or self.config.input_noise:
            seed_device(self.quantizer.updates.device, fold_seed("dropout", seed, step, micro_step, rank))

    def set_checkpointing(self, checkpoint: Checkpoint | None) -> None:
        """Wraps the residual stacks, and nothing else, in `checkpoint(function, input)` in training.

        The quantizer stays outside: if recomputed, it would count its statistics twice.
        """
        for module in self.modules():
            if isinstance(module, ResidualStack):
                module.checkpoint = checkpoint

    def encode_latents(self, motion: Tensor) -> Tensor:
        """Normalised motion `[B, T, C]` to latents `[B, T / code_stride, code_dim]`.

        Raises:
            ValueError: C is not `in_features`, or T is not a multiple of the down-sampling.
        """
        if motion.dim() != 3 or motion.shape[2] != self.in_features:
            raise ValueError(f"motion is {tuple(motion.shape)}; this model takes [batch, time, {self.in_features}]")
        if motion.shape[1] % self.config.code_stride or not motion.shape[1]:
            raise ValueError(
                f"{motion.shape[1]} frames are not a multiple of {self.config.code_stride}, the frames per code"
            )
        latents: Tensor = self.encoder(motion.to(self._dtype()).transpose(1, 2))
        return latents.transpose(1, 2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents `[B, T', code_dim]` to normalised motion `[B, T' * code_stride, C]`, in the parameters' dtype."""
        motion: Tensor = self.decoder(latents.to(self._dtype()).transpose(1, 2))
        return motion.transpose(1, 2)

    def forward(self, motion: Tensor) -> RVQVAEOutput:
        """Normalised motion `[B, T, C]` through encoder, quantizer and decoder."""
        seen = motion
        if self.training and self.config.input_noise:
            seen = motion + self.config.input_noise * torch.randn_like(motion)
        quantized, codes, commit_loss, perplexity = self.quantizer(self.encode_latents(seen))
        reconstruction = self.decode_latents(quantized).to(motion.dtype)
        return RVQVAEOutput(reconstruction, codes, commit_loss, perplexity)

    def encode(self, motion: Tensor) -> Tensor:
        """Normalised motion `[B, T, C]` to codes `[B, T / code_stride, Q]`, int64, all levels, without noise."""
        return self.quantizer.encode(self.encode_latents(motion))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `[B, T', q]` with q <= Q to normalised motion `[B, T' * code_stride, C]`; -1 is a dropped level."""
        return self.decode_latents(self.quantizer.decode(codes))

    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype
