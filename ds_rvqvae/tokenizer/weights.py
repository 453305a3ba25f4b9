"""Load and save the net of a tokenizer's folder, and read the files of `torch.save`."""

import json
import logging
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.tokenizer.folder import TokenizerConfig
from ds_rvqvae.tokenizer.saved.reading import Saved, content_of_tensors, metadata_of


def load_model(config: TokenizerConfig, saved: Saved) -> RVQVAE:
    """Loads the net of a tokenizer's folder, in fp32; nothing is allocated if the weights do not fit the config.

    Args:
        saved: the folder's opened files.

    Raises:
        UserError: names the file and the problem, or the context that it cannot be loaded in.
    """
    file = saved.weights.file
    try:
        with torch.device("meta"):
            expected = {name: list(tensor.shape) for name, tensor in _new_model(config).state_dict().items()}
        _check_shapes(saved.weights.shapes, expected)
        model = _new_model(config)
        if any(tensor.is_meta for tensor in model.state_dict().values()):
            raise UserError(_taken_away(config))
        tensors = {name: torch.from_numpy(saved.weights.handle.get_tensor(name)) for name in expected}
        text, content = saved.weights.text, saved.weights.content
        if text is not None and content_of(text, tensors) != content:
            raise UserError(f"{file}: damaged: its content is not what was saved; copy or export it again")
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise UserError(f"{file}: does not hold the weights of this config: {_first_line(error)}") from None
    return model


def save_model(model: RVQVAE, text: str, file: Path) -> str:
    """Writes a net's weights, with the text of their config inside, and returns their content hash."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    content = content_of(text, tensors)
    # Not safetensors' `save_file`: after a kill it leaves a temporary file whose name nothing recognises.
    written = memoryview(save(tensors, metadata_of(text, content)))
    size = int.from_bytes(written[:8], "little")
    header = _in_order(bytes(written[8 : 8 + size]))
    with file.open("wb") as weights:
        for part in (len(header).to_bytes(8, "little"), header, written[8 + size :]):
            weights.write(part)
    return content


def _in_order(header: bytes) -> bytes:
    """Returns a file's header with sorted metadata. safetensors writes them in another order every time; sorted, equal
    tokenizers are equal files. The length stays a multiple of 8, as the format requires."""
    entries = json.loads(header)
    metadata = dict(sorted(entries.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def content_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Returns `content_of_tensors` of tensors on the CPU."""
    values = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        values[name] = (f"{tensor.dtype} {list(tensor.shape)}", flat.numpy())
    return content_of_tensors(text, values)


def _new_model(config: TokenizerConfig) -> RVQVAE:
    model = RVQVAE(config.in_features, config.model)
    if not all(parameter.numel() for parameter in model.parameters()):
        raise UserError(_taken_away(config))
    return model


def _taken_away(config: TokenizerConfig) -> str:
    return (
        f"{config.folder}: cannot be loaded in a context that creates modules without weights (accelerate's "
        "init_empty_weights, deepspeed.zero.Init); load the tokenizer before it, outside"
    )


def _check_shapes(there: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> None:
    """Raises ValueError if a file does not hold exactly the tensors with these names and shapes."""
    for name in [*expected, *there]:
        if there.get(name) != expected.get(name):
            raise ValueError(f"{name} is {there.get(name, 'missing')}, not {expected.get(name, 'known here')}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_fingerprint(saved: Saved, fingerprint: str | None) -> None:
    """Checks weights that carry no content hash: raises UserError if the fingerprint is not that of the config."""
    said = saved.values.get("fingerprint")
    if said is None:
        text = "has no fingerprint, so whether the weights belong to it cannot be checked"
        logging.getLogger("ds_rvqvae").warning("%s: %s", saved.source, text)
    elif said != fingerprint:
        raise UserError(
            f"{saved.source}: has the fingerprint of another tokenizer ({str(said)[:12]}): the weights beside it make "
            f"{str(fingerprint)[:12]} with it; copy or export both again, or remove its key fingerprint if you changed "
            "it on purpose"
        )


def load_saved(file: Path, advice: str) -> Any:
    """Reads a file that `torch.save` wrote, without ever running code of it.

    Args:
        advice: how to save the state dict alone, for the message about a file that holds other Python objects.

    Raises:
        UserError: the file cannot be read, is damaged, or holds Python objects besides tensors.
    """
    if file.exists() and not file.is_file():
        raise UserError(f"{file}: not a regular file; name the checkpoint itself")
    try:
        opened = file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    with opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(opened, map_location="cpu", weights_only=True)
        except Exception as error:  # torch, zipfile and pickle raise a dozen unrelated types on damaged files
            if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
                raise UserError(
                    f"{file}: holds Python objects besides tensors, which are never loaded; if you trust it, save "
                    f"only its state dict, as {advice}"
                ) from None
            raise UserError(f"{file}: not a file that torch saved, or damaged") from None
