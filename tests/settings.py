"""Other values for every key of `rvqvae.model` and `rvqvae.loss`, for tests that must hold for each of them."""

import types
import typing

from pydantic import BaseModel

from ds_rvqvae.config.model import LossConfig, ModelConfig

SMALL = ModelConfig(width=32, depth=2, down_t=1, code_dim=4, nb_code=16, num_quantizers=2, dropout=0.1)
ALL_LOSSES = LossConfig(loss_vel=0.5, loss_acc=0.5, loss_rotation=0.5)
_VALUES = {
    "width": [64],
    "depth": [1],
    "down_t": [0, 2],
    "stride_t": [3, 4],
    "dilation_growth_rate": [2],
    "outer_activation": ["silu", "gelu"],
    "dropout": [0.0],
    "code_dim": [8],
    "nb_code": [32],
    "num_quantizers": [3],
    "mu": [0.5],
    "mu_warm_up": [0],
    "quantize_dropout_prob": [0.0],
    "quantize_dropout_min_levels": [2],
    "fsq_levels": [[4, 4]],
    "sample_codebook_temp": [0.5],
    "sample_anneal_iter": [10],
    "input_noise": [0.1],
    "beam_size": [4],
    "dead_code_threshold": [0.0],
    "commit": [0.0],
    "loss_vel": [0.0],
    "loss_acc": [0.0],
    "loss_rotation": [0.0],
    "joint_weights": [{"*": 2.0}],
}
"""Of keys that are neither words nor on or off, or of which a word may mean the same as another."""


def models_with_another(key: str) -> list[ModelConfig]:
    """Small models that differ from `SMALL` in one key."""
    return _with_another(key, SMALL)


def losses_with_another(key: str) -> list[LossConfig]:
    """Losses that differ from `ALL_LOSSES` in one key."""
    return _with_another(key, ALL_LOSSES)


def _with_another(key: str, base: BaseModel) -> list:
    values = _VALUES.get(key) or _words(type(base).model_fields[key].annotation)
    assert values, f"{type(base).__name__}.{key}: give other values of it in tests/settings.py, _VALUES"
    others = [one for one in values if one != getattr(base, key)]
    assert others, f"{key}: all values in tests/settings.py are that of the base; give SMALL or ALL_LOSSES another"
    return [type(base).model_validate({**base.model_dump(), key: one}) for one in others]


def _words(annotation) -> list:
    if annotation is bool:
        return [False, True]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [word for part in typing.get_args(annotation) for word in _words(part)]
    return list(typing.get_args(annotation)) if typing.get_origin(annotation) is typing.Literal else []
