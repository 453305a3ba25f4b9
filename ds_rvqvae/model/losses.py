"""What training minimises: reconstruction, velocity and commitment."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from ds_rvqvae.profile import LossConfig

_DISTANCES = {"l1": functional.l1_loss, "l2": functional.mse_loss, "l1_smooth": functional.smooth_l1_loss}


class Losses(NamedTuple):
    """Scalars in fp32; `loss` is their weighted sum."""

    loss: Tensor
    recons: Tensor
    velocity: Tensor
    commit: Tensor


def tokenizer_losses(reconstruction: Tensor, motion: Tensor, commit_loss: Tensor, config: LossConfig) -> Losses:
    """Losses of one micro batch.

    Args:
        reconstruction, motion: `[batch, time, features]`, normalised.
        commit_loss: the quantizer's, a scalar.

    The velocity loss is the reconstruction's distance on frame differences (EMAGE, MoMask).
    """
    distance = _DISTANCES[config.recons_loss]
    reconstruction, motion = reconstruction.float(), motion.float()
    recons = distance(reconstruction, motion)
    velocity = distance(reconstruction.diff(dim=1), motion.diff(dim=1))
    loss = recons + config.loss_vel * velocity + config.commit * commit_loss
    return Losses(loss, recons, velocity, commit_loss)
