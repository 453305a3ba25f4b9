"""Probes of the device itself: what torch sees, what CUDA takes, and a holder of its memory."""

import time
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator


def device() -> torch.device:
    return torch.device("cuda", 0) if get_accelerator().device_name() == "cuda" else torch.device("cpu")


def wait_for(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def machine() -> dict[str, Any]:
    """What torch and DeepSpeed see."""
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
    """Bytes that CUDA takes apart from torch's allocator: the context with its kernels, then the workspaces."""
    where = device()
    if where.type != "cuda":
        return {"context_bytes": 0.0, "workspace_bytes": 0.0}
    before, total = torch.cuda.mem_get_info(where)  # makes the context
    free_at_start = total
    try:
        from ds_rvqvae.gpu.nvml import list_gpus

        uuid = str(torch.cuda.get_device_properties(where).uuid)
        gpu = next(gpu for gpu in list_gpus() if gpu.uuid.removeprefix("GPU-") == uuid.removeprefix("GPU-"))
        own = [process.memory_bytes for process in gpu.processes if not process.graphics and process.memory_bytes]
        context = max(own) if own else free_at_start - before
    except (StopIteration, OSError):
        context = free_at_start - before
    left = torch.randn(80, 512, 32, device=where, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(512, 512, 3, device=where, dtype=torch.bfloat16, requires_grad=True)
    square = torch.randn(2048, 2048, device=where, dtype=torch.bfloat16)
    (torch.nn.functional.conv1d(left, weight, padding=1).sum() + (square @ square).sum()).backward()
    wait_for(where)
    after, _ = torch.cuda.mem_get_info(where)
    outside = before - after - torch.cuda.memory_reserved(where)
    return {"context_bytes": float(context), "workspace_bytes": float(max(0, outside))}


def hold(size: int, until: str, ready: str) -> dict[str, int]:
    """Holds so many bytes of the device until the file `until` exists."""
    where = device()
    block = torch.zeros(size // 4, device=where) if where.type == "cuda" else None
    wait_for(where)
    Path(ready).touch()
    while not Path(until).exists():
        time.sleep(0.05)
    return {"held": 0 if block is None else block.numel() * 4}
