"""The net of a tokenizer's folder, with its weights."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.tokenizer.folder import TokenizerConfig
from ds_rvqvae.tokenizer.saved.reading import Saved, content_of_tensors, metadata_of


def load_model(config: TokenizerConfig, saved: Saved) -> RVQVAE:
    """The net that a tokenizer's folder holds, in fp32; nothing of it is allocated where its weights do not fit.

    Args:
        saved: the folder's files, opened.

    Raises:
        UserError: naming the file and what is wrong with it, or with where it is loaded.
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
            raise UserError(f"{file}: damaged: holds not what was saved; copy or export it again")
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise UserError(f"{file}: does not hold this config's weights: {_first_line(error)}") from None
    return model


def save_model(model: RVQVAE, text: str, file: Path) -> str:
    """Writes a net's weights, which carry the text of their config; gives their content."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    content = content_of(text, tensors)
    # Not its `save_file`, which writes beside the file under a name that nothing would be known by after a kill.
    written = memoryview(save(tensors, metadata_of(text, content)))
    size = int.from_bytes(written[:8], "little")
    header = _in_order(bytes(written[8 : 8 + size]))
    with file.open("wb") as weights:
        for part in (len(header).to_bytes(8, "little"), header, written[8 + size :]):
            weights.write(part)
    return content


def _in_order(header: bytes) -> bytes:
    """A file's header with its metadata sorted, which safetensors writes in another order every time: equal tokenizers
    are equal files. Its length stays a multiple of 8, as the format has it."""
    entries = json.loads(header)
    metadata = dict(sorted(entries.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def content_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """`content_of_tensors` of tensors on the CPU."""
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
        f"{config.folder}: cannot be loaded where new modules are left without their weights (accelerate's "
        "init_empty_weights, deepspeed.zero.Init); load the tokenizer before, outside of that"
    )


def _check_shapes(there: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> None:
    """Raises ValueError where a file does not hold tensors of these shapes by name."""
    for name in [*expected, *there]:
        if there.get(name) != expected.get(name):
            raise ValueError(f"{name} is {there.get(name, 'missing')}, not {expected.get(name, 'known here')}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_fingerprint(saved: Saved, fingerprint: str | None) -> None:
    """Raises UserError where a tokenizer, whose weights say nothing of themselves, is not the one of its config."""
    said = saved.values.get("fingerprint")
    if said is None:
        text = "names no fingerprint, so nothing tells whether the weights are its own"
        logging.getLogger("ds_rvqvae").warning("%s: %s", saved.source, text)
    elif said != fingerprint:
        raise UserError(
            f"{saved.source}: is of another tokenizer ({str(said)[:12]}) than the weights beside it make with it "
            f"({str(fingerprint)[:12]}); copy or export both again, or remove its key fingerprint where it was "
            "changed on purpose"
        )
