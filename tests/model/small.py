"""A small model for tests."""

from ds_rvqvae.config.model import ModelConfig

SMALL = ModelConfig(width=32, depth=2, code_dim=8, nb_code=16, num_quantizers=3, quantize_dropout_prob=0.0)
