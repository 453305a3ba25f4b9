"""Weights of the published evaluators' documented shapes, made at random."""

import torch

from ds_rvqvae.tokenizer.scores.published.gestures import GestureEncoder
from ds_rvqvae.tokenizer.scores.published.matching import MotionEncoder, MovementEncoder


def seeded(net, seed):
    """Returns a state dict of small normal numbers, drawn key by key in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.05 * torch.randn(value.shape, generator=generator) for key, value in sorted(net.items())}


def matching_checkpoint(columns):
    """Returns what `finest.tar` holds, with a stand-in for the text encoder, which is not read."""
    with torch.device("meta"):
        movement, motion = MovementEncoder(columns - 4).state_dict(), MotionEncoder().state_dict()
    text = {"hidden": torch.zeros(2, 1, 512)}
    return {
        "movement_encoder": seeded(movement, 1),
        "motion_encoder": seeded(motion, 2),
        "text_encoder": text,
        "epoch": 1,
    }


def gesture_weights(seed=6):
    with torch.device("meta"):
        net = GestureEncoder().state_dict()
    return seeded(net, seed)


def gesture_checkpoint():
    """Returns what `AESKConv_240_100.bin` holds, with one weight of the decoder, which is not read."""
    weights = {f"module.encoder.{key}": value for key, value in gesture_weights().items()}
    return {"model_state": {**weights, "module.decoder.main.0.model.0.bias": torch.zeros(240)}}
