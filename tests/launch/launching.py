"""The launcher's script, and the variables that it is run with."""

import os
from pathlib import Path

from ds_rvqvae.gpu.nvml import NoDriverError, list_gpus

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "train_8x4090.py"
CPU = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "8"}


def has_driver() -> bool:
    try:
        return bool(list_gpus())
    except NoDriverError:
        return False


def environment(**variables):
    """This process's variables without those that place ranks."""
    unset = ("DS_ACCELERATOR", "LOCAL_SIZE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return {**{name: value for name, value in os.environ.items() if name not in unset}, **variables}
