"""Checkpoints that are whole or not there, and what a resume needs of them.

DeepSpeed writes straight into the tag's folder and replaces `latest` in place. Here every rank saves under a temporary
tag; it gets its name once all files are on disk, and only then does `latest` point to it.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ds_rvqvae.errors import UserError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_UNFINISHED = ".unfinished-"


def save_checkpoint(engine: "DeepSpeedEngine", folder: Path, client_state: dict[str, Any], keep: int) -> Path:
    """Saves `folder/global_stepN` and points `latest` at it. Every rank calls it.

    Args:
        client_state: what DeepSpeed does not know; the same on all ranks.
        keep: how many of the newest checkpoints stay.
    """
    tag = f"global_step{engine.global_steps}"
    unfinished, finished = folder / f"{_UNFINISHED}{tag}", folder / tag
    engine.save_checkpoint(str(folder), tag=unfinished.name, client_state=client_state, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        _sync(unfinished)
        if finished.exists():
            shutil.rmtree(finished)
        unfinished.rename(finished)
        _point_latest(folder, tag)
        for older in checkpoints(folder)[:-keep]:
            shutil.rmtree(older)
    dist.barrier()
    return finished


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = [path for path in folder.glob("global_step*") if path.is_dir() and checkpoint_step(path) is not None]
    return sorted(found, key=lambda path: checkpoint_step(path) or 0)


def checkpoint_step(path: Path) -> int | None:
    """The step in a checkpoint folder's name."""
    digits = path.name.removeprefix("global_step")
    return int(digits) if digits.isdecimal() else None


def checkpoint_to_resume(folder: Path, world_size: int) -> Path | None:
    """The checkpoint `latest` points at, or None where the run has none.

    Raises:
        UserError: it is damaged, or was saved by another number of ranks.
    """
    found = checkpoints(folder)
    if not found:
        return None
    latest = folder / "latest"
    tag = latest.read_text(encoding="utf-8").strip() if latest.is_file() else found[-1].name
    checkpoint = folder / tag
    if not (checkpoint / "mp_rank_00_model_states.pt").is_file():
        raise UserError(f"{checkpoint}: no whole checkpoint; whole ones here: {', '.join(path.name for path in found)}")
    shards = len(list(checkpoint.glob("*zero_pp_rank_*_optim_states.pt")))
    if shards not in (0, world_size):
        raise UserError(f"{checkpoint}: saved by {shards} ranks, this run has {world_size}; start it with {shards}")
    return checkpoint


def load_checkpoint(engine: "DeepSpeedEngine", checkpoint: Path) -> dict[str, Any]:
    """Restores weights, optimizer, codebooks and counters on every rank; gives the client state."""
    _, client_state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if client_state is None:
        raise RuntimeError(f"{checkpoint}: DeepSpeed loaded nothing")
    return client_state


def _sync(folder: Path) -> None:
    """Waits until a folder's files are on disk."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _point_latest(folder: Path, tag: str) -> None:
    """Replaces `latest` in one step."""
    unfinished = folder / f"{_UNFINISHED}latest"
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(tag)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / "latest")
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
