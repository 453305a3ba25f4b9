"""Read the weights in checkpoints of other systems, and check keys and shapes against our model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.data.formats.base import missing_key
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.tokenizer.foreign.formats import FIRST_WEIGHT, ForeignFormat, net_keys
from ds_rvqvae.tokenizer.weights import load_saved

_VECTORS_AN_UPDATE = 4096
"""Latents in MoMask's batch: 256 windows of 64 frames, 4 frames each."""
_UPDATES = 100_000
"""Enough updates to reach the full decay of the averages at any `mu` in use (0.99 needs 891)."""
_FIRST_NORM = "encoder.model.2.1.model.0.norm1"
_TRAINED_CODEBOOK = "quantizer.embedding.weight"
"""The codebook of T2M-GPT's `--quantizer orig`; it is used like the others."""

StateDict = dict[str, Tensor]


def read_weights(file: Path, known: ForeignFormat) -> StateDict:
    """Reads the state dict of the net in a file, without prefixes, in fp32."""
    content = load_saved(file, 'torch.save({"net": state_dict}, file)')
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: holds a {type(content).__name__}, not a checkpoint of {known.title}")
    keys = [key for key in known.weights_keys if isinstance(content.get(key), Mapping)]
    if keys:
        content = content[keys[0]]
    elif not any(str(key).endswith(FIRST_WEIGHT) for key in content):
        reason = missing_key([str(key) for key in content], " or ".join(known.weights_keys))
        raise UserError(f"{file}: {reason}; not a checkpoint of {known.title}")
    prefixes = [str(key).removesuffix(FIRST_WEIGHT) for key in content if str(key).endswith(FIRST_WEIGHT)]
    if not prefixes:
        raise UserError(f"{file}: {FIRST_WEIGHT} is missing; not a checkpoint of {known.title}")
    if len(prefixes) > 1:
        raise UserError(f"{file}: {len(prefixes)} keys end in {FIRST_WEIGHT}, so it holds several nets; save one only")
    for key, value in content.items():
        if str(key).endswith(".running_mean") and isinstance(value, Tensor):
            raise UserError(f"{file}: {key} {list(value.shape)}: BatchNorm, which these nets do not have")
    weights = {str(key).removeprefix(prefixes[0]): _fp32(value, str(key), file) for key, value in content.items()}
    if known.one_codebook and _TRAINED_CODEBOOK in weights:
        weights[known.codebook_key(0)] = weights.pop(_TRAINED_CODEBOOK)
    return weights


def _fp32(value: Any, key: str, file: Path) -> Tensor:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
        raise UserError(f"{file}: {key} is a {type(value).__name__}, not a dense tensor with values")
    if not value.is_floating_point():
        raise UserError(f"{file}: {key} {list(value.shape)} is {value.dtype}, not floating-point weights")
    weights = value.detach().float()
    if not torch.isfinite(weights).all():
        raise UserError(f"{file}: {key} {list(value.shape)} holds NaN or infinite values")
    return weights


def shapes_of(weights: StateDict, known: ForeignFormat, file: Path) -> dict[str, int]:
    """Returns the number of columns (`in_features`) and the model's settings, read from the shapes of the weights.

    Without down-sampling layers there are no residual blocks, and `stride_t` and `depth` are not in the result.

    Raises:
        UserError: names a weight that is missing or has another shape.
    """

    def shape(key: str, dimensions: int) -> torch.Size:
        if key not in weights:
            raise UserError(f"{file}: {key} is missing; not a checkpoint of {known.title}")
        if not weights[key].numel():
            raise UserError(f"{file}: {key} {list(weights[key].shape)} is empty")
        if weights[key].dim() != dimensions:
            raise UserError(f"{file}: {key} {list(weights[key].shape)} does not have {dimensions} dimensions")
        return weights[key].shape

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, key) is not None for key in weights)

    width, features, _ = shape(FIRST_WEIGHT, 3)
    down_t = count(r"encoder\.model\.\d+\.0\.weight")
    nb_code, code_dim = shape(known.codebook_key(0), 2)
    levels = 1 if known.one_codebook else count(r"quantizer\.layers\.\d+\.codebook")
    found = {"in_features": features, "width": width, "down_t": down_t}
    if down_t:
        kernel = shape("encoder.model.2.0.weight", 3)[2]
        if kernel % 4:
            # With an odd stride their encoders lose a frame, which ours do not.
            raise UserError(
                f"{file}: encoder.model.2.0.weight has kernel {kernel}, for a stride of {kernel / 2:g}; only with an "
                "even stride is a code a complete group of frames"
            )
        found["stride_t"] = kernel // 2
        found["depth"] = count(r"encoder\.model\.2\.1\.model\.\d+\.conv1\.weight")
    return found | {"code_dim": code_dim, "nb_code": nb_code, "num_quantizers": levels}


def possible_norms(weights: StateDict, width: int) -> tuple[str, ...]:
    """Returns the norms that the blocks may have: layer and group norm have equal shapes; group norm has 32 groups."""
    if f"{_FIRST_NORM}.weight" not in weights:
        return ("none",)
    return ("LN",) if width % 32 else ("LN", "GN")


def check_weights(
    weights: StateDict, features: int, config: ModelConfig, known: ForeignFormat, projected: bool, file: Path
) -> None:
    """Raises UserError unless the keys and shapes are exactly those of a model of this config."""
    with torch.device("meta"):
        model = RVQVAE(features, config)
    ours = model.state_dict()
    expected = {theirs: list(ours[key].shape) for key, theirs in net_keys(config).items()}
    for level in range(config.num_quantizers):
        expected[known.codebook_key(level)] = [config.nb_code, config.code_dim]
        if projected:
            weight, bias = known.projection_keys(level)
            expected |= {weight: [config.code_dim, config.code_dim], bias: [config.code_dim]}
    for key, shape in expected.items():
        if key not in weights:
            raise UserError(f"{file}: {key} {shape} is missing")
        if list(weights[key].shape) != shape:
            raise UserError(f"{file}: {key} is {list(weights[key].shape)}, but the other weights need {shape}")
    for key in weights:
        if key not in expected:
            raise UserError(f"{file}: {key} {list(weights[key].shape)} is not a weight of a {known.title} tokenizer")


def codebooks_of(weights: StateDict, config: ModelConfig, known: ForeignFormat, projected: bool) -> list[Tensor]:
    """Returns the codebook `[nb_code, code_dim]` of each level, as the system's forward pass uses it."""
    books = []
    for level in range(config.num_quantizers):
        book = weights[known.codebook_key(level)]
        if projected:
            weight, bias = (weights[key] for key in known.projection_keys(level))
            book = functional.linear(book, weight, bias)
        books.append(book)
    return books


def quantizer_state(books: Tensor, config: ModelConfig) -> StateDict:
    """Returns the buffers of the quantizer for `books [Q or 1, K, D]`.

    None of these systems saves the averages that train the codebooks. They are set as if each earlier update had added
    4,096 vectors (MoMask's batch), spread evenly over the codes, at the full decay (`updates` 100,000). So no code is
    dead when fine-tuning starts, and with batches of that size the first updates move codes by a hundredth of the way
    to their new vectors, as late in training.
    """
    levels_a_book = config.num_quantizers / len(books)
    count = torch.full(books.shape[:2], levels_a_book * _VECTORS_AN_UPDATE / config.nb_code)
    return {
        "quantizer.codebooks": books,
        "quantizer.ema_sum": books * count.unsqueeze(-1),
        "quantizer.ema_count": count,
        "quantizer.initialized": torch.tensor(True),
        "quantizer.updates": torch.tensor(_UPDATES),
    }
