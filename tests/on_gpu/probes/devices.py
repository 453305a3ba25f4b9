"""Probes of the device itself: what torch sees, what CUDA takes, and a holder of its memory."""

import time
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from ds_rvqvae.gpu.nvml import list_gpus


def device() -> torch.device:
    return torch.device("cuda", 0) if get_accelerator().device_name() == "cuda" else torch.device("cpu")


def wait_for(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def machine() -> dict[str, Any]:
    """The devices and versions that torch and DeepSpeed see."""
    import deepspeed

    where = device()
    count = torch.cuda.device_count() if where.type == "cuda" else 0
    names = [torch.cuda.get_device_name(index) for index in range(count)]
    product = torch.eye(64, device=where, dtype=torch.bfloat16) @ torch.full((64, 64), 3.0, device=where).bfloat16()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if where.type == "cuda" else None,
        "nccl": list(torch.cuda.nccl.version()) if where.type == "cuda" else None,
        "deepspeed": deepspeed.__version__,
        "accelerator": get_accelerator().device_name(),
        "devices": count,
        "names": names,
        "capability": [list(torch.cuda.get_device_capability(index)) for index in range(count)],
        "bf16_product_is_right": bool((product == 3.0).all()),
    }


def overheads() -> dict[str, float]:
    """Bytes of this process on the GPU apart from torch's allocator: CUDA's context at once, then with the kernels and
    workspaces of a convolution and a matrix product. Zeros on a CPU."""
    where = device()
    if where.type != "cuda":
        return {"context_bytes": 0.0, "outside_bytes": 0.0}
    torch.cuda.init()
    context = _own_bytes(where)
    left = torch.randn(80, 512, 32, device=where, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(512, 512, 3, device=where, dtype=torch.bfloat16, requires_grad=True)
    square = torch.randn(2048, 2048, device=where, dtype=torch.bfloat16)
    (torch.nn.functional.conv1d(left, weight, padding=1).sum() + (square @ square).sum()).backward()
    wait_for(where)
    outside = _own_bytes(where) - torch.cuda.memory_reserved(where)
    return {"context_bytes": float(context), "outside_bytes": float(outside)}


def _own_bytes(where: torch.device) -> int:
    """Memory of the only computing process on an idle GPU, by the driver; else all memory in use."""
    free, total = torch.cuda.mem_get_info(where)
    uuid = str(torch.cuda.get_device_properties(where).uuid)
    gpu = next((gpu for gpu in list_gpus() if gpu.uuid.removeprefix("GPU-") == uuid), None)
    own = [process.memory_bytes for process in (gpu.processes if gpu else ()) if not process.graphics]
    return own[0] if len(own) == 1 and own[0] else total - free


def hold(size: int, until: str, ready: str) -> dict[str, int]:
    """Holds so many bytes of the device until the file `until` exists."""
    where = device()
    block = torch.zeros(size // 4, device=where) if where.type == "cuda" else None
    wait_for(where)
    Path(ready).touch()
    while not Path(until).exists():
        time.sleep(0.05)
    return {"held": 0 if block is None else block.numel() * 4}
