"""What a run's checkpoints say of their history: which was saved after which, what each scored. Changes nothing.

Without torch, but for what a checkpoint of a version up to 0.3 scored.
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
)


@dataclass(frozen=True)
class Best:
    """The checkpoint of a history that scored best."""

    mark: Mark
    l1: float
    """On held-out motion."""


def find_checkpoint(folder: Path, tag: str) -> Path:
    """The checkpoint that `--resume TAG` names, among those of the run's history and those that were put aside.

    Args:
        folder: the run's `checkpoints`.
        tag: `global_step40`, or `global_step40-1f2e3d4c5b6a` where several of that step were put aside.

    Raises:
        ValueError: none, or several, are called so.
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


def put_aside(folder: Path) -> list[Path]:
    """The checkpoints of other histories, by step."""
    aside = folder / ABANDONED
    return sorted(
        (path for path in aside.glob("*") if is_abandoned_tag(path.name)), key=lambda path: (step_of(path), path.name)
    )


def every_checkpoint(folder: Path) -> list[Path]:
    """The checkpoints of a run's history, and then those that were put aside."""
    return [*checkpoints(folder), *put_aside(folder)]


def unfinished_resume(folder: Path) -> Path | None:
    """The checkpoint that a resume was going on from when it was cut short, wherever it lies by now."""
    wanted = resumed_from(folder)
    if wanted is None:
        return None
    return next((path for path in every_checkpoint(folder) if mark_in(path) == wanted), None)


def best_before(head: Path) -> Best | None:
    """The best of the checkpoints of the history of `head` that are on disk; the earlier one where two are equal."""
    scored = [Best(mark_of(read_manifest(path)), l1) for path in history_of(head) if (l1 := _l1_of(path)) is not None]
    return min(scored, key=lambda best: (best.l1, best.mark.step), default=None)


def marks_before(head: Path) -> list[Mark]:
    """The checkpoints before `head` in its history, oldest first."""
    ancestors = ancestors_of(read_manifest(head))
    if ancestors is not None:
        return ancestors
    return [mark for path in history_of(head) if path != head and (mark := mark_in(path)) is not None]


def saved_state(checkpoint: Path) -> dict[str, Any]:
    """What the trainer adds to a checkpoint, mapped from the disk: its motion, nets and scores.

    Raises:
        UserError: it cannot be read.
    """
    import torch  # late: most of what is asked of checkpoints does without

    try:
        # DeepSpeed's checkpoints are pickles: those of the user's own runs only.
        states = torch.load(checkpoint / MODEL_FILE, map_location="cpu", weights_only=False, mmap=True)
        state: dict[str, Any] = states["rvqvae"]
        return state
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        reason = f"cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(f"{checkpoint / MODEL_FILE}: {reason}") from None


def old_state(checkpoint: Path) -> dict[str, Any]:
    """`saved_state`, empty where it cannot be read."""
    try:
        return saved_state(checkpoint)
    except UserError:
        return {}


def _l1_of(checkpoint: Path) -> float | None:
    manifest = manifest_in(checkpoint)
    if "scores" in manifest or not manifest:
        return l1_of(manifest)
    return finite_l1(old_state(checkpoint).get("scores") or {})
