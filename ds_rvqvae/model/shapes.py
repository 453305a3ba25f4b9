"""Sizes of the nets by arithmetic, without torch, so that they are known before a GPU or torch starts."""

from ds_rvqvae.profile import ModelConfig


def parameter_count(in_features: int, config: ModelConfig) -> int:
    """Trainable parameters of encoder and decoder. Codebooks are moving averages and not among them."""
    return encoder_parameter_count(in_features, config) + decoder_parameter_count(in_features, config)


def encoder_parameter_count(in_features: int, config: ModelConfig) -> int:
    """Trainable parameters from motion to latents."""
    width, stage = config.width, _stack(config) + _conv(config.width, config.width, 2 * config.stride_t)
    return _conv(in_features, width, 3) + config.down_t * stage + _conv(width, config.code_dim, 3)


def decoder_parameter_count(in_features: int, config: ModelConfig) -> int:
    """Trainable parameters from quantized latents to motion."""
    width, stage = config.width, _stack(config) + _conv(config.width, config.width, 3)
    return (
        _conv(config.code_dim, width, 3) + config.down_t * stage + _conv(width, width, 3) + _conv(width, in_features, 3)
    )


def codebook_count(config: ModelConfig) -> int:
    """Codebooks stored: one, where all levels share it."""
    return 1 if config.shared_codebook else config.num_quantizers


def _conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel + outputs


def _stack(config: ModelConfig) -> int:
    norms = 4 * config.width if config.norm else 0
    block = _conv(config.width, config.width, 3) + _conv(config.width, config.width, 1) + norms
    return config.depth * block
