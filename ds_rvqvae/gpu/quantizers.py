"""Sizes of quantizers by arithmetic, without torch: all that the memory plan knows of them.

Tests hold names and bytes of buffers against the real modules, and what a step keeps against what autograd saves.
"""

from dataclasses import dataclass

from ds_rvqvae.config.model import ModelConfig

QUANTIZERS = ("ResidualQuantizer", "MoMaskQuantizer", "ScalarQuantizer")
"""Classes of `model/` that are counted here."""
_FP32, _INT64, _BOOL = 4, 8, 1
_ROWS_AT_ONCE = 16_384
"""Vectors whose distances are held at once, as in `model/vq.py`."""


@dataclass(frozen=True)
class QuantizerPass:
    """One micro batch through the quantizer, all levels in use: bytes, and floating point operations."""

    kept: int
    """What autograd keeps from the forward pass to the backward pass."""
    forward_working: int
    """What the forward pass holds for a moment."""
    backward_working: int
    """Gradients that the backward pass holds for a moment."""
    flops: int
    """Of the forward pass; the backward pass multiplies no matrices."""


def quantizer_pass(model: ModelConfig, vectors: int) -> QuantizerPass:
    """What a micro batch of `vectors` latents takes."""
    rows = vectors * model.code_dim * _FP32
    codes = vectors * (model.num_quantizers + 1) * _INT64  # and the index of a level
    if model.fsq_levels is not None:
        # What tanh gave, the sum of the levels' vectors and a copy.
        return QuantizerPass(kept=rows, forward_working=3 * rows + codes, backward_working=2 * rows, flops=0)
    # Noise, scaled noise and their sum stand beside the distances; without noise these go block by block.
    at_once = 4 * vectors if model.sample_codebook_temp else min(vectors, _ROWS_AT_ONCE)
    distances = at_once * model.nb_code * _FP32 + model.nb_code * model.code_dim * _FP32
    # Rows, what each level left, twice at the end, code vectors and their sum.
    held = 2 * model.num_quantizers + 3
    return QuantizerPass(
        # The slope of the commitment loss, summed over levels; what is turned, and into what.
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
    if model.fsq_levels is not None:
        grid = len(model.fsq_levels) * _INT64
        return {**always, "_cells": grid, "_radix": grid, **staged}
    vectors, counts = books * model.nb_code * model.code_dim * _FP32, books * model.nb_code * _FP32
    return {**always, "codebooks": vectors, "ema_sum": vectors, "ema_count": counts, **staged}


def staged_vector_bytes(model: ModelConfig) -> int:
    """What the quantizer keeps of a latent until the codebooks' update: it and its codes."""
    return model.code_dim * _FP32 + model.num_quantizers * _INT64 if codebook_count(model) else 0


def update_bytes(model: ModelConfig) -> int:
    """What the codebooks' update holds for a moment: candidates for replacement, and averages and codebooks anew."""
    vectors = codebook_count(model) * model.code_dim * _FP32
    return 2 * vectors * replacement_count(model) * model.num_quantizers + 6 * vectors * model.nb_code


def staged_count(model: ModelConfig) -> int:
    """Numbers that the ranks sum an update: code counts, sums of vectors, replacement candidates, refusals."""
    vectors = codebook_count(model) * (model.nb_code + replacement_count(model)) * model.code_dim
    return model.num_quantizers * model.nb_code + vectors + 1


def codebook_count(model: ModelConfig) -> int:
    """Codebooks stored: one, where all levels share it; none where codes are cells of a grid."""
    if model.grid_key is not None:
        return 0
    return 1 if model.shared_codebook else model.num_quantizers


def replacement_count(model: ModelConfig) -> int:
    """Dead codes of a codebook that one update can replace."""
    return model.nb_code if model.lineage else min(model.nb_code, max(64, model.nb_code // 4))
