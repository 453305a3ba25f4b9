"""The peer: a plain PyTorch loop over the same nets, as the single-GPU scripts have it.

Stock convolutions and dropout, `vector_quantize_pytorch.ResidualVQ`, AdamW with its defaults; bf16 by autocast.
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
    """Trains the nets of `model` from its weights, one batch at a time.

    Args:
        model: copied, its convolutions, dropout and up-sampling replaced by PyTorch's own.
        dtype: what autocast computes in; fp32 without it.
        columns: what the profile's losses need to know of them.

    Raises:
        UserError: `vector_quantize_pytorch` is not installed, or the profile's nets are none that stock modules make.
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
        """One optimizer step over a global batch's micro batches, each `[B, T, C]`; gives its loss."""
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
    """`vector_quantize_pytorch.ResidualVQ` of the same shape: EMA codebooks, the plain straight-through estimator."""
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError:
        raise UserError(
            "the plain loops need vector_quantize_pytorch, which comes with the extra `dev`; without it: --no_plain"
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
        raise UserError("the plain loops are made for even stride_t without layer norm; without them: --no_plain")
    net = copy.deepcopy(net)
    for module in net.modules():
        # Ours add no state to what they derive from.
        module.__class__ = _STOCK.get(type(module), type(module))
    return net
