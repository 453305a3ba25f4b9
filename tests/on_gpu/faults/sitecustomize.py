"""Gives a rank less memory than it needs, if ON_GPU_FAULT says so. Python imports this file at its start.

ON_GPU_FAULT is JSON: `rank`, the rank with the fault; `bytes`, what its allocator may take of its GPU; `windows`, the
largest batch on a CPU, where torch's error is raised for a larger one.
"""

import importlib.abc
import json
import os
import sys


class _AtEngine(importlib.abc.MetaPathFinder):
    """Limits the memory when the engine's module is imported: then the rank's device is settled, and no batch was tried
    yet."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "ds_rvqvae.train.engine":
            sys.meta_path.remove(self)
            _limit(json.loads(os.environ["ON_GPU_FAULT"]))


def _limit(fault: dict[str, int]) -> None:
    import torch
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() == "cuda":
        device = int(os.environ["LOCAL_RANK"])
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, fault["bytes"] / total), device)
    else:
        from tests.train.limited import limited_memory

        global _limited
        _limited = limited_memory(fault["windows"])
        _limited.__enter__()


if "ON_GPU_FAULT" in os.environ and os.environ.get("RANK") == str(json.loads(os.environ["ON_GPU_FAULT"])["rank"]):
    sys.meta_path.insert(0, _AtEngine())
