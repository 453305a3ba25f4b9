"""Train residual vector-quantized VAEs for human motion under DeepSpeed.

Public names load on first use: importing torch alone takes two seconds.
"""

import importlib
from typing import Any

__version__ = "0.6.0"

_HOMES = {
    "Profile": "ds_rvqvae.config.profile",
    "load_profile": "ds_rvqvae.config.profile",
    "RVQVAE": "ds_rvqvae.model.rvqvae",
    "RVQVAEOutput": "ds_rvqvae.model.rvqvae",
    "ResidualQuantizer": "ds_rvqvae.model.quantizer",
    "MotionTokenizer": "ds_rvqvae.tokenizer.tokenizer",
    "BodyTokenizer": "ds_rvqvae.tokenizer.body",
    "Codes": "ds_rvqvae.tokenizer.codes",
    "read_codes": "ds_rvqvae.tokenizer.codes",
    "read_body_codes": "ds_rvqvae.tokenizer.codes",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
