"""The baseline: a plain PyTorch loop that trains the same nets, as single-GPU scripts do.

It uses PyTorch's convolutions and dropout, `vector_quantize_pytorch.ResidualVQ`, AdamW with its defaults, and autocast
for bf16.
"""

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.losses import LossColumns, tokenizer_losses
from ds_rvqvae.model.nets import Convolution, DownSample, Dropout, GroupNorm, Upsample
from ds_rvqvae.model.rvqvae import RVQVAE

_STOCK = {
    Convolution: nn.Conv1d,
    DownSample: nn.Conv1d,
    Dropout: nn.Dropout,
    GroupNorm: nn.GroupNorm,
    Upsample: nn.Upsample,
}


class PlainLoop:
    """The plain loop, which trains the nets of `model` from its weights, one batch at a time.

    Args:
        model: it is copied, and its convolutions, dropout and up-sampling are replaced by PyTorch's own.
        dtype: computed in by autocast; float32 means no autocast.
        columns: the facts about columns that the profile's losses need.

    Raises:
        UserError: `vector_quantize_pytorch` is not installed, or PyTorch's own modules cannot build the profile's nets.
    """

    def __init__(
        self,
        model: RVQVAE,
        profile: Profile,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        columns: LossColumns | None = None,
    ) -> None:
        self.loss, self.columns, self.device, self.dtype = profile.rvqvae.loss, columns, device, dtype
        self.encoder, self.decoder = (
            _stock(net, profile.rvqvae.model).to(device, torch.float32).train()
            for net in (model.encoder, model.decoder)
        )
        self.quantizer = residual_vq(profile.rvqvae.model).to(device).train()
        adam = profile.optimizer.params
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        first, second = adam.betas
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=adam.lr, betas=(first, second), weight_decay=adam.weight_decay
        )
        self.max_norm = profile.gradient_clipping

    def step(self, batches: list[Tensor]) -> Tensor:
        """Does one optimizer step over a global batch's micro batches, each `[B, T, C]`; returns its loss."""
        losses = []
        for batch in batches:
            motion = batch.to(self.device, non_blocking=True)
            with self._autocast():
                latents = self.encoder(motion.transpose(1, 2)).transpose(1, 2)
            quantized, _, commit = self.quantizer(latents.float())
            with self._autocast():
                reconstruction = self.decoder(quantized.transpose(1, 2)).transpose(1, 2)
            losses_of_batch = tokenizer_losses(reconstruction, motion, commit.mean(), self.loss, self.columns)
            loss = losses_of_batch.loss / len(batches)
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        if self.max_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).sum()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def residual_vq(config: ModelConfig) -> nn.Module:
    """Returns a `vector_quantize_pytorch.ResidualVQ` of the same shape: EMA codebooks, plain straight-through."""
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError:
        raise UserError(
            "the plain loops need vector_quantize_pytorch: install the extra `dev`, or leave them out by --no_plain"
        ) from None
    quantizer: nn.Module = ResidualVQ(
        dim=config.code_dim,
        num_quantizers=config.num_quantizers,
        codebook_size=config.nb_code,
        shared_codebook=config.shared_codebook,
        decay=config.mu,
        quantize_dropout=config.quantize_dropout_prob > 0,
        rotation_trick=False,
    )
    return quantizer


def _stock(net: nn.Module, config: ModelConfig) -> nn.Module:
    if config.stride_t % 2 or config.norm == "LN":
        raise UserError("the plain loops need an even stride_t and no layer norm; leave them out by --no_plain")
    net = copy.deepcopy(net)
    for module in net.modules():
        # Our modules add no state to PyTorch's, from which they derive.
        module.__class__ = _STOCK.get(type(module), type(module))
    return net
