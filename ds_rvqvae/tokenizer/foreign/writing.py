"""Other people's checkpoints out: a tokenizer as MoMask, GestureLSM or T2M-GPT load it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ds_rvqvae.config.facts import ModelFacts, keys_that
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import whole_folder
from ds_rvqvae.tokenizer.foreign.formats import FORMATS, UPSAMPLING, ForeignFormat, net_keys
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

_DATASETS = {263: "t2m", 251: "kit"}
"""What MoMask calls the data sets that it knows, by their columns."""
_REFUSALS = {
    "fsq_levels": "{key}: {title} has codebooks, and finite scalar quantization has none",
    "codebook_distance": "{key} {value}: {title} goes by distance",
    "num_quantizers": "{key} {value}: {title} has one quantizer; export to momask",
    "stride_t": f"{{key}} {{value}}: {{title}}'s decoder up-samples by {UPSAMPLING} only",
    "activation": "{key} {value}: {title} has ReLU outside its residual blocks",
}
"""What is said of keys with a value that cannot be written, in the order in which they are checked; other keys of which
this can be said have a text in common."""


def save_foreign(
    tokenizer: MotionTokenizer, format: str, folder: str | Path, *, embedding_proj: bool | None = None
) -> list[Path]:
    """Writes a folder that another system's own code takes: weights that load with `strict=True`, and normalisation.

    Args:
        format: "momask" writes `model/net_best_fid.tar`, `meta/mean.npy`, `meta/std.npy` and `opt.txt`, for
            `checkpoints/DATASET/NAME`; "t2mgpt" writes `net_last.pth`, `meta/mean.npy` and `meta/std.npy`; "gesturelsm"
            writes `net.pth`, `mean.npy` and `std.npy`, of this tokenizer's columns only.
        folder: a new or empty one; it is whole or it is not there.
        embedding_proj: whether GestureLSM's quantizer has that layer, which is then written as the identity. By default
            as in the file that the tokenizer was imported from, else True, as its code has had since January 2025.

    Their code decodes to the same motion. It encodes to the same codes where `beam_size` is 1; otherwise to the
    nearest code of each level, which is a little farther from the motion.

    Returns:
        The files written.

    Raises:
        UserError: that code cannot express this model, or the folder is in use or cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: known are {', '.join(FORMATS)}")
    known, folder = FORMATS[format], Path(folder)
    _check(tokenizer.model.config, known)
    if embedding_proj is None:
        origin = tokenizer.details.get("imported_from") or {}
        embedding_proj = origin.get("embedding_proj", True) if origin.get("format") == format else True
    weights = foreign_state_dict(tokenizer, format, embedding_proj=embedding_proj and known.can_project)
    content: dict[str, Any] = {known.weights_keys[0]: weights}
    if format == "momask":
        content |= {"ep": 0, "total_it": int(tokenizer.details.get("training_step") or 0)}
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: exists; name a new folder")
        with whole_folder(folder, replace=False) as unfinished:
            for part in (known.weights_file, f"{known.statistics}/mean.npy"):
                (unfinished / part).parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, unfinished / known.weights_file)
            np.save(unfinished / known.statistics / "mean.npy", tokenizer.mean.cpu().numpy())
            np.save(unfinished / known.statistics / "std.npy", tokenizer.std.cpu().numpy())
            if format == "momask":
                (unfinished / "opt.txt").write_text(_momask_options(tokenizer, folder), encoding="utf-8")
            written = sorted(file.relative_to(unfinished) for file in unfinished.rglob("*") if file.is_file())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{folder}: cannot be written: {reason.lower()}") from None
    return [folder / file for file in written]


def foreign_state_dict(tokenizer: MotionTokenizer, format: str, *, embedding_proj: bool = False) -> dict[str, Tensor]:
    """The weights under another system's names, fp32 on the CPU."""
    known, model = FORMATS[format], tokenizer.model
    ours = {key: tensor.detach().float().cpu() for key, tensor in model.state_dict().items()}
    weights = {theirs: ours[key].clone() for key, theirs in net_keys(model.config).items()}
    books = [book.clone() for book in ours["quantizer.codebooks"]]
    code_dim = model.config.code_dim
    for level in range(model.config.num_quantizers):
        weights[known.codebook_key(level)] = books[0 if model.config.shared_codebook else level]
        if embedding_proj:
            weight, bias = known.projection_keys(level)
            weights |= {weight: torch.eye(code_dim), bias: torch.zeros(code_dim)}
    return {known.prefix + key: tensor for key, tensor in weights.items()}


def _check(config: ModelConfig, known: ForeignFormat) -> None:
    """Raises UserError where the other system's code computes something else with these weights."""
    limited = keys_that(ModelConfig, ModelFacts, lambda facts: facts.formats != "any")
    for key in dict.fromkeys((*_REFUSALS, *limited)):
        if not _can_be_written(key, config, known):
            text = _REFUSALS.get(key, "{key} {value}: {title} has nothing of the kind")
            raise UserError(text.format(key=key, value=getattr(config, key), title=known.title))


def _can_be_written(key: str, config: ModelConfig, known: ForeignFormat) -> bool:
    if key == "num_quantizers":
        return config.num_quantizers == 1 or not known.one_codebook
    if key == "stride_t":
        return config.stride_t == UPSAMPLING or not config.down_t
    return bool(getattr(config, key) == ModelConfig.model_fields[key].default)


def _momask_options(tokenizer: MotionTokenizer, folder: Path) -> str:
    """The options file that MoMask's scripts build the model from; they know data of 263 and 251 columns only."""
    config = tokenizer.model.config
    body_part = tokenizer.details.get("body_part")
    options = {
        "checkpoints_dir": "./checkpoints",
        "code_dim": config.code_dim,
        "dataset_name": _DATASETS.get(tokenizer.model.in_features, body_part or "motion"),
        "depth": config.depth,
        "dilation_growth_rate": config.dilation_growth_rate,
        "down_t": config.down_t,
        "mu": config.mu,
        "name": folder.absolute().name,
        "nb_code": config.nb_code,
        "num_quantizers": config.num_quantizers,
        "output_emb_width": config.code_dim,
        "quantize_dropout_prob": config.quantize_dropout_prob,
        "shared_codebook": config.shared_codebook,
        "stride_t": config.stride_t,
        "vq_act": config.activation,
        "vq_norm": config.norm,
        "width": config.width,
    }
    lines = [f"{key}: {value}" for key, value in options.items()]
    return "\n".join(["------------ Options -------------", *lines, "-------------- End ----------------", ""])
