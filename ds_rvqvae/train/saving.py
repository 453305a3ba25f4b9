"""Saves and loads checkpoints that are whole or not there.

DeepSpeed writes straight into the tag's folder and replaces `latest` in place. Here every rank saves under a temporary
tag; it gets its name once all files are on disk and in the manifest, and only then does `latest` point to it.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from ds_rvqvae import __version__
from ds_rvqvae.checkpoints import LATEST, MANIFEST, UNFINISHED, digest_of, prune, sweep, tag_of


def save_checkpoint(engine: deepspeed.DeepSpeedEngine, folder: Path, client_state: dict[str, Any], keep: int) -> Path:
    """Saves `folder/global_stepN` and points `latest` at it. Every rank calls it.

    Args:
        client_state: what DeepSpeed does not know; the same on all ranks.
        keep: how many of the newest checkpoints stay.
    """
    step, rank = engine.global_steps, dist.get_rank()
    tag = tag_of(step)
    unfinished, finished = folder / f"{UNFINISHED}{tag}", folder / tag
    if rank == 0:
        sweep(folder)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=unfinished.name, client_state=client_state, save_latest=False)
    digests: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(digests, {file.name: digest_of(file) for file in _own_files(unfinished, rank)})
    if rank == 0:
        _write_synced(unfinished / MANIFEST, json.dumps(_manifest(step, digests), indent=1))
        _sync(unfinished)
        if finished.exists():
            shutil.rmtree(finished)
        unfinished.rename(finished)
        _write_synced(folder / f"{UNFINISHED}{LATEST}", tag)
        (folder / f"{UNFINISHED}{LATEST}").replace(folder / LATEST)
        _sync(folder)
        prune(folder, step, keep)
    dist.barrier()
    return finished


def load_checkpoint(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> dict[str, Any]:
    """Restores weights, optimizer, codebooks and counters on every rank; gives the client state."""
    _, client_state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if client_state is None:
        raise RuntimeError(f"{checkpoint}: DeepSpeed loaded nothing")
    return client_state


def _own_files(folder: Path, rank: int) -> list[Path]:
    """The files of a checkpoint that this rank wrote: its shard of the optimizer, and on rank 0 the model."""
    shards = list(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))
    return [*shards, folder / "mp_rank_00_model_states.pt"] if rank == 0 else shards


def _manifest(step: int, digests: list[dict[str, Any]]) -> dict[str, Any]:
    versions = {"ds_rvqvae": __version__, "torch": torch.__version__, "deepspeed": deepspeed.__version__}
    files = {name: entry for own in digests for name, entry in sorted(own.items())}
    return {"step": step, "world_size": dist.get_world_size(), "versions": versions, "files": files}


def _write_synced(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def _sync(folder: Path) -> None:
    """Waits until a folder and its files are on disk."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
