"""The baseline: a plain PyTorch loop that trains the same nets, as single-GPU scripts do.

It uses PyTorch's convolutions and dropout, `vector_quantize_pytorch.ResidualVQ`, AdamW with its defaults, and autocast
for bf16.
"""

import contextlib
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.levels import LevelledQuantizer
from ds_rvqvae.model.losses import LossColumns, tokenizer_losses
from ds_rvqvae.model.nets import Blocks, Convolution, Decoder, DownSample, Dropout, Encoder, GroupNorm, Upsample
from ds_rvqvae.model.rvqvae import RVQVAE

_STOCK = {
    Encoder: nn.Sequential,
    Decoder: nn.Sequential,
    Blocks: nn.Sequential,
    Convolution: nn.Conv1d,
    DownSample: nn.Conv1d,
    Dropout: nn.Dropout,
    GroupNorm: nn.GroupNorm,
    Upsample: nn.Upsample,
}


class PlainLoop:
    """The plain loop, which trains the nets of `model` from its weights, one batch at a time.

    Args:
        model: its nets are copied, and their convolutions, dropout and up-sampling are replaced by PyTorch's own.
        dtype: computed in by autocast; float32 means no autocast.
        columns: the facts about columns that the profile's losses need.
        tuned: whether it is written for speed, to measure the host: the model's own kind of quantizer, which is plain
            PyTorch, AdamW and clipping in one call for all parameters, and DistributedDataParallel among several
            ranks. Otherwise it is as usual scripts are, on one rank.

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
        tuned: bool = False,
    ) -> None:
        self.loss, self.columns, self.device, self.tuned = profile.rvqvae.loss, columns, device, tuned
        self.nets = _Nets(model, profile.rvqvae.model, dtype, tuned).to(device).train()
        self.parameters = list(self.nets.parameters())
        self.module: nn.Module = self.nets
        if tuned and dist.is_initialized() and dist.get_world_size() > 1:
            self.module = _parallel(self.nets, device)
        adam = profile.optimizer.params
        first, second = adam.betas
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=adam.lr, betas=(first, second), weight_decay=adam.weight_decay, fused=tuned or None
        )
        self.max_norm = profile.gradient_clipping
        self.seed, self.steps_done = profile.rvqvae.training.seed, 0

    def step(self, batches: list[Tensor]) -> Tensor:
        """Does one optimizer step over a global batch's micro batches, each `[B, T, C]`; returns its loss."""
        losses = []
        for micro_step, batch in enumerate(batches):
            if isinstance(self.nets.quantizer, LevelledQuantizer):
                self.nets.quantizer.set_step(self.seed, self.steps_done, micro_step)
            last = micro_step + 1 == len(batches)
            with contextlib.nullcontext() if last else self._without_reduction():
                losses.append(self._gradients(batch.to(self.device, non_blocking=True), len(batches)))
        if self.max_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm, foreach=self.tuned or None)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if isinstance(self.nets.quantizer, LevelledQuantizer):
            self.nets.quantizer.update_codebooks()
        self.steps_done += 1
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _gradients(self, motion: Tensor, micro_steps: int) -> Tensor:
        """Adds the gradients of a micro batch `[B, T, C]`; returns its part of the loss."""
        reconstruction, commit = self.module(motion)
        losses = tokenizer_losses(reconstruction, motion, commit, self.loss, self.columns)
        loss = losses.loss if micro_steps == 1 else losses.loss / micro_steps
        torch.autograd.backward(loss)
        return loss.detach()

    def _without_reduction(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, gradients are not summed over ranks."""
        module = self.module
        return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def _parallel(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # Newer torch versions have another name for `broadcast_buffers`, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


class _Nets(nn.Module):
    """Encoder, quantizer and decoder of a plain loop: motion `[B, T, C]` to reconstruction and commitment loss."""

    def __init__(self, model: RVQVAE, config: ModelConfig, dtype: torch.dtype, own_quantizer: bool) -> None:
        super().__init__()
        copied = RVQVAE(model.in_features, config)
        copied.load_state_dict(model.state_dict())
        self.encoder, self.decoder = (_stock(net, config) for net in (copied.encoder, copied.decoder))
        self.quantizer = copied.quantizer if own_quantizer else residual_vq(config)
        self.dtype = dtype

    def forward(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        with self._autocast(motion):
            latents = self.encoder(motion.transpose(1, 2)).transpose(1, 2)
        quantized, _, commit, *_ = self.quantizer(latents.float())
        with self._autocast(motion):
            reconstruction = self.decoder(quantized.transpose(1, 2)).transpose(1, 2)
        return reconstruction, commit.mean() if commit.dim() else commit

    def _autocast(self, motion: Tensor) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(motion.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


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
    """Returns `net` with PyTorch's own modules in place of ours."""
    if config.stride_t % 2 or config.norm == "LN":
        raise UserError("the plain loops need an even stride_t and no layer norm; leave them out by --no_plain")
    for module in net.modules():
        # Our modules add no state to PyTorch's, from which they derive.
        module.__class__ = _STOCK.get(type(module), type(module))
    return net
