"""Scores of small models: their settings, their columns, and a skeleton of three joints."""

import numpy as np
import torch

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.motion.layout import Channels
from ds_rvqvae.motion.skeleton import Skeleton
from ds_rvqvae.tokenizer.scores.metrics import ScoreSums

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=3)
LAYOUT = (
    Channels("hip", "rotation_6d", 0, 6),
    Channels("knee", "rotation_6d", 6, 12),
    Channels("rest", "feature", 12, 14),
)


def make_sums(model, layout=LAYOUT, **more):
    torch.manual_seed(1)
    return ScoreSums(model, layout, torch.randn(14), torch.rand(14) + 0.5, 30.0, **more)


CHAIN = Skeleton(
    ("hip", "knee", "toe"), (-1, 0, 1), np.array([[0, 1, 0], [0, -0.5, 0], [0, -0.4, 0.1]], np.float64), "three joints"
)
