"""An untrained model of 14 columns."""

import pytest
import torch

from ds_rvqvae import RVQVAE
from tests.tokenizer.scores.scoring import CONFIG


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RVQVAE(14, CONFIG).eval()
