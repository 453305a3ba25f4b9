"""Sizes of quantizers for the memory plan, by arithmetic and without torch.

Tests compare names and bytes of buffers with the real modules, and the bytes kept by a step with those of autograd.
"""

from dataclasses import dataclass

from ds_rvqvae.config.model import ModelConfig

QUANTIZERS = ("ResidualQuantizer", "MoMaskQuantizer", "ScalarQuantizer")
"""Classes of `model/` that are counted here."""
_FP32, _INT64, _BOOL = 4, 8, 1
_ROWS_AT_ONCE = 16_384
"""Vectors whose distances are in memory at once, as in `model/vq.py`."""


@dataclass(frozen=True)
class QuantizerPass:
    """Bytes and floating point operations of one micro batch in the quantizer, all levels in use."""

    kept: int
    """Bytes that autograd keeps from the forward pass to the backward pass."""
    forward_working: int
    """Bytes that the forward pass holds temporarily."""
    backward_working: int
    """Bytes of gradients that the backward pass holds temporarily."""
    flops: int
    """Operations of the forward pass; the backward pass multiplies no matrices."""


def quantizer_pass(model: ModelConfig, vectors: int) -> QuantizerPass:
    """Bytes and operations of a micro batch of `vectors` latents."""
    rows = vectors * model.code_dim * _FP32
    codes = vectors * (model.num_quantizers + 1) * _INT64  # and the index of a level
    if model.fsq_levels is not None:
        # The output of tanh, the sum of the levels' vectors and a copy.
        return QuantizerPass(kept=rows, forward_working=3 * rows + codes, backward_working=2 * rows, flops=0)
    # With noise: distances, noise, scaled noise and their sum. Without noise: distances, block by block.
    at_once = 4 * vectors if model.sample_codebook_temp else min(vectors, _ROWS_AT_ONCE)
    distances = at_once * model.nb_code * _FP32 + model.nb_code * model.code_dim * _FP32
    # Rows, the residual of each level, its square, the code vectors' sum and the slope of the commitment loss.
    held = 2 * model.num_quantizers + 3
    return QuantizerPass(
        # The slope of the commitment loss, summed over levels; for the rotation trick, source and target too.
        kept=(3 if model.gradient == "rotation_trick" else 1) * rows,
        forward_working=distances + held * rows + codes,
        backward_working=3 * rows,
        flops=2 * model.num_quantizers * vectors * model.nb_code * model.code_dim,
    )


def buffer_bytes(model: ModelConfig) -> dict[str, int]:
    """Bytes of each of the quantizer's buffers by name, in the module's order."""
    codes, books = model.num_quantizers * model.nb_code, codebook_count(model)
    staged = {"staged": staged_count(model) * _FP32}
    always = {"initialized": _BOOL, "updates": _INT64, "usage_counts": codes * _FP32}
    always["first_places"] = model.num_quantizers * _INT64
    if model.fsq_levels is not None:
        grid = len(model.fsq_levels) * _INT64
        return {**always, "_cells": grid, "_radix": grid, **staged}
    vectors, counts = books * model.nb_code * model.code_dim * _FP32, books * model.nb_code * _FP32
    return {**always, "codebooks": vectors, "ema_sum": vectors, "ema_count": counts, **staged}


def staged_vector_bytes(model: ModelConfig) -> int:
    """Bytes that the quantizer keeps per latent until the codebooks' update: the latent (half as many in bf16) and its
    codes."""
    return model.code_dim * _FP32 + model.num_quantizers * _INT64 if codebook_count(model) else 0


def update_bytes(model: ModelConfig) -> int:
    """Bytes that the codebooks' update holds temporarily: replacement candidates, new averages and new codebooks."""
    vectors = codebook_count(model) * model.code_dim * _FP32
    return 2 * vectors * replacement_count(model) * model.num_quantizers + 6 * vectors * model.nb_code


def staged_count(model: ModelConfig) -> int:
    """How many numbers the ranks sum per update: code counts, sums of vectors, replacement candidates, refusals."""
    vectors = codebook_count(model) * (model.nb_code + replacement_count(model)) * model.code_dim
    return model.num_quantizers * model.nb_code + vectors + 1


def codebook_count(model: ModelConfig) -> int:
    """Number of codebooks: one if all levels share it, none if codes are cells of a grid."""
    if model.grid_key is not None:
        return 0
    return 1 if model.shared_codebook else model.num_quantizers


def replacement_count(model: ModelConfig) -> int:
    """Number of dead codes per codebook that one update can replace."""
    return model.nb_code if model.lineage else min(model.nb_code, max(64, model.nb_code // 4))
