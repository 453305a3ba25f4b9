"""Simulated GPUs of a given size, on a CPU: `python -m tests.train.limited [9,5] FLAGS` trains with them.

In training, after the encoder, a batch over this rank's limit raises torch's own out-of-memory error.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_forward_hook

from ds_rvqvae.model.nets import Encoder


@contextmanager
def limited_memory(windows: int, error: Exception | None = None) -> Iterator[None]:
    """Inside, a batch with more frames than so many `windows` of 32 frames raises `error`, by default torch's own
    out-of-memory error."""

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor], latents: torch.Tensor) -> None:
        if isinstance(module, Encoder) and module.training and inputs[0].shape[0] * inputs[0].shape[-1] > windows * 32:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = register_module_forward_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    from ds_rvqvae.train.rank import main

    with limited_memory(json.loads(sys.argv[1])[int(os.environ["RANK"])]):
        sys.exit(main(sys.argv[2:]))
