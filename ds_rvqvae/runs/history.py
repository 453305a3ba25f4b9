"""Read the history of a run's checkpoints: their order and scores. Changes nothing.

Needs torch only for the scores of checkpoints of versions up to 0.3.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rvqvae.config.request import is_abandoned_tag
from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.checkpoints import (
    ABANDONED,
    MANIFEST,
    MODEL_FILE,
    Mark,
    ancestors_of,
    checkpoints,
    digits_of,
    finite_l1,
    history_of,
    l1_of,
    manifest_in,
    mark_in,
    mark_of,
    read_manifest,
    resumed_from,
    step_of,
    whole_checkpoint,
)


@dataclass(frozen=True)
class Best:
    """The checkpoint of a history with the best score."""

    mark: Mark
    l1: float
    """L1 on held-out motion."""


def find_checkpoint(folder: Path, tag: str) -> Path:
    """Returns the checkpoint that `--resume TAG` names, among those of the run's history and those put aside.

    Args:
        folder: the run's `checkpoints`.
        tag: `global_step40`, or `global_step40-1f2e3d4c5b6a` if several of that step were put aside.

    Raises:
        ValueError: no checkpoint, or several, have this name.
    """
    name, _, digits = tag.partition("-")
    here = folder / name
    if here.is_dir() and (not digits or digits_of(here) == digits):
        return here
    aside = [path for path in put_aside(folder) if path.name.startswith(f"{name}-{digits}")]
    if len(aside) == 1:
        return aside[0]
    if aside:
        raise ValueError(f"several were put aside, name one: {', '.join(path.name for path in aside)}")
    there = ", ".join(path.name for path in every_checkpoint(folder)) or "none"
    raise ValueError(f"{here / MANIFEST} is missing; checkpoints there: {there}")


def newest_text(run: Path) -> str:
    """Returns, in words, the newest complete checkpoint of a run's folder, from which a resume continues.

    Files are not read: only their names and sizes are compared with the manifest.
    """
    folder = run / "checkpoints"
    newest, _ = whole_checkpoint(folder, thorough=False)
    if newest is None:
        return f"there is no complete checkpoint in {folder}"
    return f"the newest complete checkpoint is {newest.name} (step {step_of(newest):,}) in {folder}"


def put_aside(folder: Path) -> list[Path]:
    """Returns the checkpoints of other histories, by step."""
    aside = folder / ABANDONED
    return sorted(
        (path for path in aside.glob("*") if is_abandoned_tag(path.name)), key=lambda path: (step_of(path), path.name)
    )


def every_checkpoint(folder: Path) -> list[Path]:
    """Returns the checkpoints of a run's history, and then those that were put aside."""
    return [*checkpoints(folder), *put_aside(folder)]


def unfinished_resume(folder: Path) -> Path | None:
    """Returns the checkpoint that an interrupted resume resumes from, wherever it is now, or None."""
    wanted = resumed_from(folder)
    if wanted is None:
        return None
    return next((path for path in every_checkpoint(folder) if mark_in(path) == wanted), None)


def best_before(head: Path) -> Best | None:
    """Returns the best checkpoint on disk in the history of `head`; of two equal ones, the earlier."""
    scored = [Best(mark_of(read_manifest(path)), l1) for path in history_of(head) if (l1 := _l1_of(path)) is not None]
    return min(scored, key=lambda best: (best.l1, best.mark.step), default=None)


def marks_before(head: Path) -> list[Mark]:
    """Returns the checkpoints before `head` in its history, oldest first."""
    ancestors = ancestors_of(read_manifest(head))
    if ancestors is not None:
        return ancestors
    return [mark for path in history_of(head) if path != head and (mark := mark_in(path)) is not None]


def saved_state(checkpoint: Path) -> dict[str, Any]:
    """Returns the trainer's own state in a checkpoint, memory-mapped: its motion, nets and scores.

    Raises:
        UserError: it cannot be read.
    """
    import torch  # late: most questions about checkpoints do not need it

    try:
        # DeepSpeed's checkpoints are pickles: load only those of the user's own runs.
        states = torch.load(checkpoint / MODEL_FILE, map_location="cpu", weights_only=False, mmap=True)
        state: dict[str, Any] = states["rvqvae"]
        return state
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        reason = f"cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(f"{checkpoint / MODEL_FILE}: {reason}") from None


def old_state(checkpoint: Path) -> dict[str, Any]:
    """Returns `saved_state`; empty if it cannot be read."""
    try:
        return saved_state(checkpoint)
    except UserError:
        return {}


def _l1_of(checkpoint: Path) -> float | None:
    manifest = manifest_in(checkpoint)
    if "scores" in manifest or not manifest:
        return l1_of(manifest)
    return finite_l1(old_state(checkpoint).get("scores") or {})
