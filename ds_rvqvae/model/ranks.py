"""The ranks that train one model, and the seeds of their random draws."""

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor


def world_of(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """World size and rank; (1, 0) if torch.distributed is not running."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(group), dist.get_rank(group)
    return 1, 0


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Rows `[N, D]` of all ranks, in rank order; the ranks may have different numbers of rows."""
    world_size, _ = world_of(group)
    if world_size == 1:
        return rows
    length = torch.tensor([len(rows)], device=rows.device)
    lengths = [torch.empty_like(length) for _ in range(world_size)]
    dist.all_gather(lengths, length, group=group)
    longest = int(torch.stack(lengths).max())
    padded = rows.new_zeros(longest, rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[: int(count)] for part, count in zip(parts, lengths, strict=True)])


def fold_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every one of `parts`; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the default generators of the CPU and of one device: the draws there are those after `torch.manual_seed`,
    which takes longer because it seeds all devices of every kind."""
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
