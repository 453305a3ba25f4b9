"""Sizes of the nets by arithmetic, without torch, so that they are known before a GPU or torch starts."""

from ds_rvqvae.profile import ModelConfig


def parameter_count(in_features: int, config: ModelConfig) -> int:
    """Trainable parameters of encoder and decoder. Codebooks are moving averages and not among them."""
    return sum(parameter_sizes(in_features, config))


def encoder_parameter_count(in_features: int, config: ModelConfig) -> int:
    """Trainable parameters from motion to latents."""
    return sum(_encoder_sizes(in_features, config))


def decoder_parameter_count(in_features: int, config: ModelConfig) -> int:
    """Trainable parameters from quantized latents to motion."""
    return sum(_decoder_sizes(in_features, config))


def parameter_sizes(in_features: int, config: ModelConfig) -> list[int]:
    """Elements of each trainable tensor, in the order of `RVQVAE.parameters()`."""
    return _encoder_sizes(in_features, config) + _decoder_sizes(in_features, config)


def codebook_count(config: ModelConfig) -> int:
    """Codebooks stored: one, where all levels share it; none of finite scalar quantization."""
    if config.fsq_levels is not None:
        return 0
    return 1 if config.shared_codebook else config.num_quantizers


def replacement_count(config: ModelConfig) -> int:
    """Dead codes of a codebook that one update can replace."""
    return config.nb_code if config.lineage else min(config.nb_code, max(64, config.nb_code // 4))


def staged_count(config: ModelConfig) -> int:
    """Numbers that the ranks sum an update: code counts, sums of vectors, replacement candidates, refusals."""
    books = codebook_count(config)
    vectors = books * (config.nb_code + replacement_count(config)) * config.code_dim
    return config.num_quantizers * config.nb_code + vectors + 1


def _encoder_sizes(in_features: int, config: ModelConfig) -> list[int]:
    width = config.width
    stage = _conv(width, width, 2 * config.stride_t) + _stack(config)
    return _conv(in_features, width, 3) + config.down_t * stage + _conv(width, config.code_dim, 3)


def _decoder_sizes(in_features: int, config: ModelConfig) -> list[int]:
    width = config.width
    stage = _stack(config) + _conv(width, width, 3)
    last = _conv(width, width, 3) + _conv(width, in_features, 3)
    return _conv(config.code_dim, width, 3) + config.down_t * stage + last


def _conv(inputs: int, outputs: int, kernel: int) -> list[int]:
    return [inputs * outputs * kernel, outputs]


def _stack(config: ModelConfig) -> list[int]:
    norm = [config.width, config.width] if config.norm else []
    block = norm + _conv(config.width, config.width, 3) + norm + _conv(config.width, config.width, 1)
    return config.depth * block
