"""The net of a tokenizer's folder, with its weights."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.tokenizer.folder import WEIGHTS, TokenizerConfig


def load_model(config: TokenizerConfig) -> RVQVAE:
    """The net that a tokenizer's folder holds, in fp32; nothing of it is allocated where its weights do not fit.

    Raises:
        UserError: naming the file and what is wrong with it, or with where it is loaded.
    """
    file = config.folder / WEIGHTS
    try:
        with torch.device("meta"):
            expected = {name: list(tensor.shape) for name, tensor in _new_model(config).state_dict().items()}
        _check_shapes(file, expected)
        model = _new_model(config)
        if any(tensor.is_meta for tensor in model.state_dict().values()):
            raise UserError(_taken_away(config))
        model.load_state_dict(load_file(file))
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: does not hold this config's weights: {_first_line(error)}") from None
    return model


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


def _check_shapes(file: Path, expected: dict[str, list[int]]) -> None:
    """Raises ValueError where a file does not hold tensors of these shapes by name."""
    with safe_open(file, framework="pt") as content:
        there = {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118
    for name in [*expected, *there]:
        if there.get(name) != expected.get(name):
            raise ValueError(f"{name} is {there.get(name, 'missing')}, not {expected.get(name, 'known here')}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
