"""Probes of the links between GPUs."""

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator


def join(seconds: float = 30.0) -> torch.device:
    """Joins the other processes of the probe; returns this one's device."""
    on_gpu = get_accelerator().device_name() == "cuda"
    where = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=seconds))
    return where


def all_reduce(sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """Times all-reduces of fp32 numbers; sizes in bytes.

    Returns:
        seconds, bytes per second over the slowest link of a ring (NCCL's "bus bandwidth"), and whether every sum is
        right.
    """
    where = join()
    ranks, rank = dist.get_world_size(), dist.get_rank()
    rows = []
    for size in sizes:
        block = torch.full((max(1, size // 4),), float(rank + 1), device=where)
        dist.all_reduce(block)
        right = bool((block == ranks * (ranks + 1) / 2).all())
        for _ in range(2):
            dist.all_reduce(block)
        _wait(where)
        dist.barrier()
        began = time.perf_counter()
        for _ in range(repeats):
            dist.all_reduce(block)
        _wait(where)
        seconds = (time.perf_counter() - began) / repeats
        rate = 2 * (ranks - 1) / ranks * size / seconds
        rows.append({"bytes": size, "seconds": seconds, "bytes_per_s": rate, "right": right})
    return rows


def _wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)
