"""Saves and loads checkpoints; a checkpoint is either complete or absent.

DeepSpeed writes directly into the tag's folder and replaces `latest` in place. Here every rank saves under a temporary
tag. The folder gets its final name once all files are on disk and in the manifest, and then `latest` points to it.
"""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from ds_rvqvae import __version__
from ds_rvqvae.config.profile import PROFILE_FILE
from ds_rvqvae.config.training import TrainingConfig
from ds_rvqvae.files import read_json, replace_folder, sync
from ds_rvqvae.process.tolerance import tolerated
from ds_rvqvae.runs.abandoned import put_one_aside
from ds_rvqvae.runs.checkpoints import (
    BESIDE,
    BEST,
    LATEST,
    MANIFEST,
    MODEL_FILE,
    UNFINISHED,
    Mark,
    checkpoint_bytes,
    digest_of,
    mark_of,
    point,
    prune,
    read_manifest,
    remove,
    seal,
    step_of,
    sweep,
    tag_of,
    universal_of,
    write_synced,
)
from ds_rvqvae.runs.history import Best, best_before, marks_before

logger = logging.getLogger("ds_rvqvae")

_TOLERATED_FAILED_SAVES = 3


class SaveFailedError(Exception):
    """A checkpoint could not be written; the older ones are unchanged."""


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints a save keeps."""

    newest: int
    every: int | None = None
    """Checkpoints whose step is a multiple of this stay too."""
    best: bool = False
    """Whether the new checkpoint has the best score so far; the best one stays."""
    past: dict[str, Any] = field(default_factory=dict)
    """The history to write into its manifest."""


class Checkpointer:
    """Saves a run's checkpoints, and tolerates a few failed saves.

    Args:
        engine: the engine to save.
        run_folder: checkpoints go into its `checkpoints`.
        settings: say which checkpoints stay, and which step is the last.
        resumed: the checkpoint that the run continues from, in that folder.
        beside: returns the further files of a checkpoint, by name; called on rank 0.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        run_folder: Path,
        settings: TrainingConfig,
        resumed: Path | None = None,
        beside: Callable[[], Mapping[str, bytes]] | None = None,
    ) -> None:
        self._beside = beside
        self._engine, self._folder, self._settings = engine, run_folder / "checkpoints", settings
        self.saved_step = None if resumed is None else step_of(resumed)
        """Step of the newest checkpoint; None if there is none yet."""
        self.saved: Mark | None = None
        """That checkpoint, on rank 0."""
        self._ancestors: list[Mark] = []
        self._best: Best | None = None
        if resumed is not None and dist.get_rank() == 0:
            self.saved, self._ancestors = mark_of(read_manifest(resumed)), marks_before(resumed)
            self._best = best_before(resumed)
        self.failures = 0
        """Number of failed saves in a row."""

    def save(self, step: int, state: dict[str, Any], best: bool = False) -> None:
        """Saves the checkpoint of `step`; a failure is logged, and the next interval tries again.

        Every rank calls it.

        Args:
            state: the state that DeepSpeed does not save itself; the same on all ranks.
            best: whether it has the best score so far.

        Raises:
            SaveFailedError: too many saves in a row failed, or the one of the last step.
        """
        keeping = Keeping(self._settings.keep_checkpoints, self._settings.keep_every, best, self._past(state, best))
        try:
            saved = save_checkpoint(self._engine, self._folder, {"rvqvae": state}, keeping, self._beside)
        except SaveFailedError as failure:
            self.failures += 1
            logger.warning("step %d: no checkpoint saved, the older ones stay: %s", step, failure)
            if self.failures >= _TOLERATED_FAILED_SAVES or step == self._settings.total_iter:
                raise
            return
        self.failures, self.saved_step = 0, step
        if dist.get_rank() == 0:
            self._ancestors += [self.saved] if self.saved else []
            self.saved = mark_of(read_manifest(saved))
            if best:
                self._best = Best(self.saved, state["scores"]["l1"])
        logger.info("step %d: saved %s", step, saved)

    def _past(self, state: dict[str, Any], best: bool) -> dict[str, Any]:
        """The history in the next checkpoint's manifest: the checkpoints before it, the last scores, the best so far.

        A fingerprint of None means its own, which is not known yet.
        """
        found: dict[str, Any] = {"step": self._engine.global_steps, "fingerprint": None, "l1": None}
        if best:
            found["l1"] = state["scores"]["l1"]
        elif self._best is not None:
            found = {**self._best.mark._asdict(), "l1": self._best.l1}
        return {
            "parent": self.saved,
            "ancestors": [*self._ancestors, *([self.saved] if self.saved else [])],
            "scores": state["last_scores"],
            "best": None if found["l1"] is None else found,
        }


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine,
    folder: Path,
    client_state: dict[str, Any],
    keeping: Keeping,
    beside: Callable[[], Mapping[str, bytes]] | None = None,
) -> Path:
    """Saves `folder/global_stepN` and points `latest` at it. Every rank calls it.

    Args:
        client_state: under `rvqvae`, the state that DeepSpeed does not save itself; the same on all ranks.
        beside: returns further files of the checkpoint, by name; only rank 0 calls it.

    Raises:
        SaveFailedError: on every rank, if any rank could not write its files.
    """
    step, rank = engine.global_steps, dist.get_rank()
    unfinished, finished = folder / f"{UNFINISHED}{tag_of(step)}", folder / tag_of(step)
    averaged = client_state["rvqvae"].get("weight_average") is not None
    failures = _on_rank_zero(lambda: _prepare(engine, folder, unfinished, averaged))
    if not failures:
        failures = _write_parts(engine, unfinished, client_state)
    digests: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    if not failures:
        mine, reason = _attempt(lambda: {file.name: digest_of(file) for file in _own_files(unfinished, rank)})
        dist.all_gather_object(digests, mine or {})
        failures = _gather([reason])
    if not failures:
        manifest = _manifest(engine, digests, client_state)
        missing = dist.get_world_size() + 1 - len(manifest["files"])
        failures = [f"{missing} files of the checkpoint are not visible in {unfinished}"] if missing else []
    if not failures and beside is not None:
        failures = _on_rank_zero(lambda: manifest.update(_write_beside(unfinished, beside())))
    if not failures:
        failures = _on_rank_zero(lambda: _finish(manifest, unfinished, finished, keeping))
    if failures:
        _on_rank_zero(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        raise SaveFailedError("; ".join(dict.fromkeys(failures)))
    return finished


def _prepare(engine: deepspeed.DeepSpeedEngine, folder: Path, unfinished: Path, averaged: bool) -> None:
    """Removes the rest of an interrupted save, and checks that the disk has room."""
    sweep(folder)
    unfinished.mkdir(parents=True)
    parameters = sum(parameter.numel() for parameter in engine.module.parameters())
    needed, free = checkpoint_bytes(parameters, averaged), None
    with contextlib.suppress(OSError):  # some file systems do not tell
        free = shutil.disk_usage(folder).free
    if free is not None and free < needed:
        raise OSError(f"the disk of {folder} has {free:,} bytes free, {needed - free:,} too few for a checkpoint")


def _write_parts(engine: deepspeed.DeepSpeedEngine, unfinished: Path, client_state: dict[str, Any]) -> list[str]:
    """Runs DeepSpeed's save. A rank whose disk is full must not leave the others waiting at DeepSpeed's barriers."""
    reasons: list[str | None] = []
    writer, write = engine.checkpoint_engine, engine.checkpoint_engine.save

    def guarded(state_dict: Any, path: str) -> None:
        reasons.append(_attempt(lambda: write(state_dict, path))[1])

    writer.save = guarded
    # DeepSpeed would copy scripts next to the checkpoint, which are part of DeepSpeed; on a full disk this fails too.
    engine._copy_recovery_script = lambda save_path: None
    try:
        engine.save_checkpoint(
            str(unfinished.parent), tag=unfinished.name, client_state=client_state, save_latest=False
        )
    finally:
        writer.save = write
    return _gather(reasons)


def _finish(manifest: dict[str, Any], unfinished: Path, finished: Path, keeping: Keeping) -> None:
    """Finishes a checkpoint on rank 0: manifest, sync to disk, name, `latest`; then removes older checkpoints."""
    folder = finished.parent
    profile = folder.parent / PROFILE_FILE
    if profile.is_file():
        manifest["profile"] = digest_of(profile)
    manifest |= keeping.past
    write_synced(unfinished / MANIFEST, json.dumps(seal(manifest), indent=1))
    for file in [*unfinished.iterdir(), unfinished]:
        sync(file)
    if finished.is_dir():
        logger.warning("a folder had the checkpoint's name and was put aside: %s", put_one_aside(finished))
    remove(universal_of(finished))
    unfinished.rename(finished)
    sync(folder)
    for pointer in (BEST, LATEST) if keeping.best else (LATEST,):
        point(folder, pointer, finished)
    with tolerated("older checkpoints are not all removed", "the next save tries again"):
        prune(finished, keeping.newest, keeping.every)


def load_checkpoint(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> dict[str, Any]:
    """Restores weights, optimizer, codebooks and counters on every rank; returns the client state.

    Args:
        checkpoint: from the same number of ranks; from any number if the engine loads universal checkpoints.
    """
    universal = engine.load_universal_checkpoint()
    tag = universal_of(checkpoint).name if universal else checkpoint.name
    loaded: tuple[str | None, dict[str, Any] | None] = engine.load_checkpoint(str(checkpoint.parent), tag=tag)
    client_state = loaded[1]
    if client_state is None:
        raise RuntimeError(f"{checkpoint}: DeepSpeed loaded nothing")
    if universal:
        _restore_buffers(engine.module, checkpoint)
        place_optimizer_state(engine.optimizer.optimizer)
    return client_state


def place_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Moves each tensor of an optimizer's state to the device of its parameter, in place.

    DeepSpeed 0.19.8 loads the step count of a universal checkpoint onto the CPU, where torch's fused AdamW cannot use
    it. Optimizers that are neither fused nor capturable have it on the CPU by design.
    """
    for group in optimizer.param_groups:
        step_stays = not (group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and not (name == "step" and step_stays):
                    state[name] = value.to(parameter.device)


def make_universal(checkpoint: Path) -> Path:
    """Converts a checkpoint, once, into a folder next to it that any number of ranks can load. Rank 0 calls it."""
    finished = universal_of(checkpoint)
    source = {"of": digest_of(checkpoint / MANIFEST)}
    with contextlib.suppress(OSError, ValueError):
        if read_json(finished / MANIFEST) == {**source, "files": _digests_below(finished)}:
            return finished
    unfinished = checkpoint.parent / f"{UNFINISHED}{finished.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(checkpoint), "--output_folder", str(unfinished), "--num_extract_workers", "1"]
    command += ["--num_merge_workers", "1"]
    # The conversion needs no GPU, and is not a rank of this run.
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    result = subprocess.run(command, env={**environment, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{checkpoint} cannot be converted: {(result.stderr or result.stdout).strip()[-300:]}")
    for path in unfinished.rglob("*"):
        sync(path)
    write_synced(unfinished / MANIFEST, json.dumps({**source, "files": _digests_below(unfinished)}))
    replace_folder(unfinished, finished)
    return finished


def _digests_below(folder: Path) -> dict[str, Any]:
    """Manifest entries of all files in a folder and below, except the manifest itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {str(path.relative_to(folder)): digest_of(path) for path in files}


def _restore_buffers(module: torch.nn.Module, checkpoint: Path) -> None:
    """Restores codebooks and their averages, which a universal checkpoint does not."""
    states = torch.load(checkpoint / MODEL_FILE, map_location="cpu", weights_only=False)
    saved = {name: states["module"][name] for name in states["buffer_names"]}
    buffers = dict(module.named_buffers())
    for name, value in saved.items():
        buffers[name].copy_(value)


def _write_beside(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Writes the further files of a checkpoint; returns their entries in the manifest.

    The manifest lists them apart from the files that a resume needs: a checkpoint without them is complete.
    """
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {BESIDE: {name: digest_of(folder / name) for name in files}}


def _own_files(folder: Path, rank: int) -> list[Path]:
    """The files of a checkpoint that this rank wrote: its optimizer shard, and on rank 0 the model."""
    shards = list(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))
    return [*shards, folder / MODEL_FILE] if rank == 0 else shards


def _manifest(
    engine: deepspeed.DeepSpeedEngine, digests: list[dict[str, Any]], client_state: dict[str, Any]
) -> dict[str, Any]:
    return {
        **client_state["rvqvae"]["record"],
        "step": engine.global_steps,
        "world_size": dist.get_world_size(),
        "global_batch": engine.train_batch_size(),
        "versions": {"ds_rvqvae": __version__, "torch": torch.__version__, "deepspeed": deepspeed.__version__},
        "files": {name: entry for own in digests for name, entry in sorted(own.items())},
    }


def _attempt(task: Callable[[], Any]) -> tuple[Any, str | None]:
    """Returns a task's result, or the reason why it failed."""
    try:
        return task(), None
    except Exception as error:  # torch's writer raises RuntimeError on a full disk
        return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _gather(reasons: list[str | None]) -> list[str]:
    """The failures of all ranks."""
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, [reason for reason in reasons if reason])
    return [reason for of_rank in gathered for reason in of_rank]


def _on_rank_zero(task: Callable[[], Any]) -> list[str]:
    """Runs `task` on rank 0; returns its failure, if any, on all ranks."""
    return _gather([_attempt(task)[1] if dist.get_rank() == 0 else None])
