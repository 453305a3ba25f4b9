"""Export a tokenizer as a checkpoint that MoMask, GestureLSM or T2M-GPT load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ds_rvqvae.config.names import BODY_PARTS
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import whole_folder
from ds_rvqvae.motion.layout import select_columns, smplx_layout
from ds_rvqvae.tokenizer.foreign.formats import DATASETS, FORMATS, check_expressible, net_keys
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer


def save_foreign(
    tokenizer: MotionTokenizer, format: str, folder: str | Path, *, embedding_proj: bool | None = None
) -> list[Path]:
    """Writes a folder that another system's own code loads: weights that load with `strict=True`, and normalisation.

    Args:
        format: "momask" writes `model/net_best_fid.tar`, `meta/mean.npy`, `meta/std.npy` and `opt.txt`, for
            `checkpoints/DATASET/NAME`; "t2mgpt" writes `net_last.pth`, `meta/mean.npy`, `meta/std.npy` and `run.log`;
            "gesturelsm" writes `net.pth`, `mean.npy` and `std.npy`, of this tokenizer's columns only, and `net.yaml`.
            The option files hold all settings that the weights do not, so that `import_foreign` needs no flags.
        folder: a new or empty one; it is written completely or not at all.
        embedding_proj: whether GestureLSM's quantizer has that layer, which is then written as the identity. By default
            as in the file that the tokenizer was imported from, else True: its code has had it since January 2025.

    Their code decodes to the same motion. It encodes to the same codes if `beam_size` is 1; otherwise to the nearest
    code of each level, which is a little farther from the motion.

    Returns:
        The files written.

    Raises:
        UserError: that code cannot express this model, or the folder is in use or cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: known formats are {', '.join(FORMATS)}")
    known, folder = FORMATS[format], Path(folder)
    check_expressible(tokenizer.model.config, format)
    if embedding_proj is None:
        embedding_proj = came_projected(tokenizer, format)
    weights = foreign_state_dict(tokenizer, format, embedding_proj=embedding_proj and known.can_project)
    content: dict[str, Any] = {known.weights_keys[0]: weights}
    if format == "momask":
        content |= {"ep": 0, "total_it": int(tokenizer.details.get("training_step") or 0)}
    statistics = Path(known.statistics)
    return write_new_folder(
        folder,
        {
            Path(known.weights_file): content,
            statistics / "mean.npy": tokenizer.mean.cpu().numpy(),
            statistics / "std.npy": tokenizer.std.cpu().numpy(),
            Path(known.exported_options): option_text(tokenizer, format, folder),
        },
    )


def came_projected(tokenizer: MotionTokenizer, format: str) -> bool:
    """Returns whether an export has `embedding_proj` by default: yes, unless the tokenizer was imported without it."""
    origin = tokenizer.details.get("imported_from") or {}
    return bool(origin.get("embedding_proj", True)) if origin.get("format") == format else True


def write_new_folder(folder: Path, contents: Mapping[Path, Any]) -> list[Path]:
    """Writes a new or empty folder, completely or not at all; returns the files in it, sorted.

    Args:
        contents: by path in the folder: a text, an array, or an object that torch saves.

    Raises:
        UserError: the folder is in use or cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: exists; name a new folder")
        with whole_folder(folder, replace=False, synced=True) as unfinished:
            for place, content in contents.items():
                file = unfinished / place
                file.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, str):
                    file.write_text(content, encoding="utf-8", errors="replace")
                elif isinstance(content, np.ndarray):
                    np.save(file, content)
                else:
                    torch.save(content, file)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{folder}: cannot be written: {reason.lower()}") from None
    return sorted(folder / place for place in contents)


def foreign_state_dict(tokenizer: MotionTokenizer, format: str, *, embedding_proj: bool = False) -> dict[str, Tensor]:
    """Returns the weights under another system's names, fp32 on the CPU."""
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


def option_text(tokenizer: MotionTokenizer, format: str, folder: Path) -> str:
    """Returns the text of an option file as the other system writes it, plus the frame rate.

    MoMask's scripts build the model from this file. MoMask and T2M-GPT know only data of 263 and 251 columns.
    """
    known, options = FORMATS[format], model_options(tokenizer, format)
    datasets = {columns: name for name, (columns, _) in DATASETS.items()}
    if known.dataset_key is not None:
        options[known.dataset_key] = datasets.get(
            tokenizer.model.in_features, tokenizer.details.get("body_part") or "motion"
        )
    if format == "t2mgpt":
        return f"INFO {json.dumps(options, indent=4, sort_keys=True)}\n"
    if format == "momask":
        options |= {"checkpoints_dir": "./checkpoints", "name": folder.absolute().name}
        lines = [f"{key}: {value}" for key, value in sorted(options.items())]
        return "\n".join(["------------ Options -------------", *lines, "-------------- End ----------------", ""])
    options |= {"mean_pose_path": "mean.npy", "std_pose_path": "std.npy"}
    for part in BODY_PARTS:
        if tokenizer.layout == select_columns(smplx_layout(), part)[1]:
            options["body_part"] = part
    return str(yaml.safe_dump(options))


def model_options(tokenizer: MotionTokenizer, format: str) -> dict[str, Any]:
    """Returns the other system's options for the nets and the frame rate."""
    known, config = FORMATS[format], tokenizer.model.config
    options: dict[str, Any] = {
        "code_dim": config.code_dim,
        "depth": config.depth,
        "dilation_growth_rate": config.dilation_growth_rate,
        "down_t": config.down_t,
        known.fps_key: tokenizer.fps,
        "mu": config.mu,
        "nb_code": config.nb_code,
        "output_emb_width": config.code_dim,
        "stride_t": config.stride_t,
        "vq_act": config.activation,
        "vq_norm": config.norm,
        "width": config.width,
    }
    if not known.one_codebook:
        options |= {
            "num_quantizers": config.num_quantizers,
            "quantize_dropout_prob": config.quantize_dropout_prob,
            "shared_codebook": config.shared_codebook,
        }
    return options
