"""The `rvqvae.model` and `rvqvae.loss` objects of a profile: the nets, the quantizer and the losses."""

import functools
import math
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ds_rvqvae.config.deepspeed import Count, Section, Share
from ds_rvqvae.config.facts import FREE, ModelFacts, facts_of, keys_that

_WEIGHTS = ModelFacts(
    resume="fixed", codes="weights", without_codebooks=False, codebooks_only=False, lineage="same", formats="any"
)
"""Keys that change the shapes of weights."""
_NETS = replace(_WEIGHTS, codes="setting")
"""Keys that change what the same weights compute."""
_TRAINING = replace(_WEIGHTS, resume="free", codes="same")
"""Keys that only training uses."""
_CODEBOOKS = replace(_TRAINING, codebooks_only=True)
"""Keys for training codebooks."""
_GRADIENT = replace(_CODEBOOKS, lineage="gradient")
_AVERAGES = replace(_CODEBOOKS, lineage="averages")
_QUANTIZER = replace(_NETS, codes="setting if set", formats="default")
"""Keys that select a quantizer which the first tokenizers did not have."""
_GRID = replace(_QUANTIZER, without_codebooks=True)
"""Keys that select a quantizer without codebooks."""
_FINEST_GRID = 2**20
"""Most cells between -1 and 1: fp32 has only 2**24 evenly spaced numbers there."""


class ModelConfig(Section):
    """The nets and the quantizer."""

    width: Annotated[Count, _WEIGHTS] = 512
    """Channels inside encoder and decoder."""
    depth: Annotated[Count, _WEIGHTS] = 3
    """Residual blocks per stage."""
    down_t: Annotated[int, Field(ge=0, le=8), _NETS] = 2
    """Down-sampling layers of encoder and decoder. One code covers stride_t**down_t frames."""
    stride_t: Annotated[int, Field(ge=1, le=8), replace(_NETS, formats="some")] = 2
    """Temporal stride of each down-sampling layer."""
    dilation_growth_rate: Annotated[int, Field(ge=1, le=8), _NETS] = 3
    """Block i is dilated by this to the power i. The largest dilation comes first."""
    activation: Annotated[Literal["relu", "silu", "gelu"], replace(_NETS, formats="some")] = "relu"
    """Activation in the residual blocks. T2M-GPT has relu. If `outer_activation` is null, it is used outside them
    too."""
    outer_activation: Annotated[
        Literal["relu", "silu", "gelu"] | None, replace(_NETS, codes="setting if set", formats="some")
    ] = None
    """Activation outside the residual blocks. It follows the first convolution of encoder and decoder and precedes the
    decoder's last. T2M-GPT and MoMask always have relu there; null: that of the blocks."""
    norm: Annotated[Literal["LN", "GN"] | None, _NETS] = None
    """Normalisation in the blocks: layer or group. LN: layer norm over channels; GN: group norm of 32 groups
    (T2M-GPT)."""
    dropout: Annotated[float, Field(ge=0, lt=1), _TRAINING] = 0.2
    """Dropout at the end of each residual block."""
    weight_init: Annotated[Literal["torch", "he"], _TRAINING] = "torch"
    """Initial weights of the convolutions. torch: torch's default, which makes each layer's output smaller than its
    input; he: weights that keep its size (He et al. 2015)."""
    zero_init_residual: Annotated[bool, _TRAINING] = False
    """Residual blocks start as the identity. The weights of their last convolution are 0 (Zhang et al. 2019, Fixup)."""
    code_dim: Annotated[Count, _WEIGHTS] = 128
    """Length of a code vector. With short vectors more of the codes are used (Yu et al. 2021, ViT-VQGAN)."""
    nb_code: Annotated[Count, _WEIGHTS] = 1024
    """Codes per level."""
    num_quantizers: Annotated[Count, replace(_NETS, formats="some")] = 6
    """Levels of the residual quantizer."""
    shared_codebook: Annotated[bool, replace(_NETS, codebooks_only=True)] = False
    """All levels use one codebook. (Lee et al. 2022, RQ-VAE; MoMask.)"""
    mu: Annotated[float, Field(ge=0, lt=1), _CODEBOOKS] = 0.99
    """Decay of the codebooks' moving averages. (Razavi et al. 2019, VQ-VAE-2.)"""
    mu_warm_up: Annotated[int, Field(ge=0), _AVERAGES] = 9
    """How slowly the decay rises to mu; 0: at once. At update t the averages decay by t / (t + this) while that is less
    than mu, as in TensorFlow's ExponentialMovingAverage with 9."""
    quantize_dropout_prob: Annotated[Share, _TRAINING] = 0.2
    """How often a step trains first levels only. A probability (Zeghidour et al. 2021, SoundStream)."""
    quantize_dropout_min_levels: Annotated[Count, _TRAINING] = 1
    """Fewest levels that such a step trains. (As in vector-quantize-pytorch.)"""
    fsq_levels: Annotated[list[Annotated[int, Field(ge=2)]] | None, _GRID] = None
    """Fixed grid, no codebooks: cells per column. One number for each column of the latents that a level has (Mentzer
    et al. 2023, finite scalar quantization). Their product must be nb_code, and code_dim must be 1 to num_quantizers
    times the number of columns. With 1 times, each level divides the cells of the level before; with num_quantizers
    times, each level has columns of its own."""
    sample_codebook_temp: Annotated[float, Field(ge=0), _CODEBOOKS] = 0.0
    """Noise on the choice of codes; 0: off. It is the temperature of Gumbel noise during training (MoMask), relative to
    the level's mean nearest distance."""
    sample_anneal_iter: Annotated[Count | None, _CODEBOOKS] = None
    """Steps over which that noise falls to zero. It falls linearly (annealed as in Jang et al. 2017); null: it
    stays."""
    codebook_distance: Annotated[
        Literal["euclidean", "cosine"], replace(_QUANTIZER, codebooks_only=True, lineage="codes")
    ] = "euclidean"
    """How codes are compared. euclidean: by distance; cosine: by angle, as in ViT-VQGAN (Yu et al. 2021), whatever
    their length."""
    gradient: Annotated[Literal["straight_through", "rotation_trick"], _GRADIENT] = "straight_through"
    """Gradient through the quantizer. straight_through: passed on unchanged (van den Oord et al. 2017); rotation_trick:
    rotated and scaled as the latent is to reach its code (Fifty et al. 2024)."""
    input_noise: Annotated[float, Field(ge=0), _TRAINING] = 0.0
    """Noise on the encoder's input in training. The standard deviation, on normalised motion; the losses compare
    with the motion without noise (Vincent et al. 2008, denoising autoencoders)."""
    codebook_init: Annotated[Literal["samples", "kmeans"], replace(_CODEBOOKS, lineage="codes")] = "samples"
    """How the codebooks are initialised. samples: with latents of the first global batch; kmeans: with their k-means
    centres (Zeghidour et al. 2021, SoundStream)."""
    beam_size: Annotated[int, Field(ge=1, le=64), replace(_CODEBOOKS, codes="setting if set")] = 1
    """Beam of the search for codes; 1: none. Outside training this many candidate sums of codes are kept from level to
    level, and the one nearest to the latent is chosen at the end (Liu et al. 2015, improved residual vector
    quantization). 1 takes the nearest code of each level, as training does. If only the first levels are used, a beam
    may score worse than 1."""
    dead_code_threshold: Annotated[Share, _AVERAGES] = 0.1
    """Codes used less than this are replaced. It is a fraction of uniform use; a latent of the batch replaces the code
    (Défossez et al. 2024, Moshi); 0: none is replaced."""
    lineage: Annotated[bool, _CODEBOOKS] = False
    """MoMask's own arithmetic, for comparison. It has one straight-through estimator per level, an absolute sampling
    temperature, and the full decay mu from the first step; the first rows of the batch overwrite codes with an average
    count under 1."""

    @model_validator(mode="after")
    def _options_fit(self) -> "ModelConfig":
        if self.sample_codebook_temp and self.codebook_distance != "euclidean":
            raise ValueError(
                "rvqvae.model.sample_codebook_temp: is relative to euclidean distances; use 0, or codebook_distance "
                "euclidean"
            )
        for key in _not_of_lineage() if self.lineage else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"rvqvae.model.{key}: lineage (MoMask's arithmetic) replaces it; leave it out")
        if self.beam_size > 1 and (self.lineage or self.shared_codebook or self.codebook_distance != "euclidean"):
            raise ValueError(
                f"rvqvae.model.beam_size: {self.beam_size} cannot be used with lineage, a shared codebook or cosine "
                "distance; use 1"
            )
        return self

    @property
    def code_stride(self) -> int:
        """Frames per code."""
        frames: int = self.stride_t**self.down_t
        return frames

    @property
    def activation_outside(self) -> str:
        """The activation outside the residual blocks."""
        return self.outer_activation or self.activation

    @property
    def grid_key(self) -> str | None:
        """The key that selects a quantizer without codebooks; None if none does."""
        defaults = type(self).model_fields
        return next((key for key in _grid_keys() if getattr(self, key) != defaults[key].default), None)


@functools.cache
def _grid_keys() -> tuple[str, ...]:
    return keys_that(ModelConfig, ModelFacts, lambda facts: facts.without_codebooks)


def _not_of_lineage() -> list[str]:
    """Returns keys that MoMask's arithmetic replaces, in the order in which they are refused."""
    facts, own = facts_of(ModelConfig, ModelFacts), ("gradient", "codes", "averages")
    return sorted((key for key in facts if facts[key].lineage in own), key=lambda key: own.index(facts[key].lineage))


def check_quantizer(model: ModelConfig) -> None:
    """Raises ValueError if the keys of a quantizer do not fit each other."""
    if model.fsq_levels is not None:
        _check_scalar_quantization(model, model.fsq_levels)
    for key in keys_that(ModelConfig, ModelFacts, lambda facts: facts.codebooks_only) if model.grid_key else ():
        if getattr(model, key) != ModelConfig.model_fields[key].default:
            raise ValueError(
                f"rvqvae.model.{key}: is for codebooks, and with {model.grid_key} there are none; leave it out"
            )


def _check_scalar_quantization(model: ModelConfig, cells: list[int]) -> None:
    columns, codes = len(cells), math.prod(cells)
    if codes != model.nb_code:
        raise ValueError(
            f"rvqvae.model.fsq_levels: the product of its numbers is {codes}, but nb_code is "
            f"{model.nb_code}; make them equal"
        )
    if model.code_dim not in range(columns, columns * model.num_quantizers + 1, columns):
        raise ValueError(
            f"rvqvae.model.code_dim: {model.code_dim} is not 1 to {model.num_quantizers} times the {columns} columns "
            f"of fsq_levels; use {columns} to {columns * model.num_quantizers}"
        )
    divisions = -(-model.num_quantizers * columns // model.code_dim)
    # In logarithms, as the power itself may be too large.
    if cells and divisions * math.log2(max(cells)) > math.log2(_FINEST_GRID):
        raise ValueError(
            f"rvqvae.model.fsq_levels: {divisions} levels would divide each column into {max(cells)} cells "
            "again and again, finer than fp32 can represent; use a larger code_dim"
        )


class LossConfig(Section):
    recons_loss: Annotated[Literal["l1", "l2", "l1_smooth"], FREE] = "l1_smooth"
    """Kind of reconstruction loss. The loss of frame differences is of the same kind."""
    commit: Annotated[float, Field(ge=0), FREE] = 0.02
    """Weight of the commitment loss. It is the squared distance of latents to their codes (van den Oord et al.
    2017)."""
    loss_vel: Annotated[float, Field(ge=0), FREE] = 0.5
    """Weight of the loss of frame differences. (T2M-GPT, MoMask, EMAGE.)"""
    loss_acc: Annotated[float, Field(ge=0), FREE] = 0.0
    """Weight of the loss of second differences. (EMAGE.)"""
    loss_rotation: Annotated[float, Field(ge=0), FREE] = 0.0
    """Weight of the loss on rotations. It is computed on the joints' rotations without normalisation (EMAGE)."""
    rotation_distance: Annotated[Literal["matrix", "geodesic"], FREE] = "matrix"
    """How rotations are compared. matrix: mean absolute difference of the matrices; geodesic: the geodesic angle in
    radians (EMAGE)."""
    joint_weights: Annotated[dict[str, Annotated[float, Field(ge=0)]] | None, FREE] = None
    """Weights of joints in the losses, by name. They hold for the reconstruction and its differences. `*Hand` matches
    several joints; joints not named have weight 1; all weights are then scaled to a mean of 1. EMAGE has a loss per
    body part instead."""
