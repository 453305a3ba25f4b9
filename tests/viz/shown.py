"""Tokenizers and a clip whose motion is shown."""

import numpy as np
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.motion.clip import Clip
from ds_rvqvae.motion.layout import select_columns, smplx_layout

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=3)


def make_tokenizer(layout) -> MotionTokenizer:
    torch.manual_seed(0)
    width = layout[-1].stop
    return MotionTokenizer(RVQVAE(width, CONFIG), torch.randn(width), torch.full((width,), 0.5), layout, 30.0)


def upper_tokenizer() -> MotionTokenizer:
    """Returns an untrained tokenizer of the upper body, whose output is far from the original."""
    return make_tokenizer(select_columns(smplx_layout(), "upper")[1])


def moving_clip(frames: int = 60) -> Clip:
    rng = np.random.default_rng(0)
    motion = np.cumsum(rng.normal(size=(frames, 433)) * 0.02, axis=0) + rng.normal(size=433)
    return Clip("clip", motion.astype(np.float32), 30.0, smplx_layout())
