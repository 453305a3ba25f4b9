"""Checkpoints on disk: their names, whether they are complete, and which one to resume from. Without torch.

A checkpoint knows its history: its manifest lists the checkpoints before it. All checkpoints in `checkpoints/` belong
to one history, that of the checkpoint which `latest` names; `ds_rvqvae.runs.abandoned` puts the others aside.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ds_rvqvae.config.request import TAG, is_abandoned_tag, is_tag
from ds_rvqvae.files import read_json, sha256_of, whole_file

UNFINISHED = ".unfinished-"
"""Prefix of the names of files and folders that are still being written."""
MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best"
"""Files with the names of the newest checkpoint and of the one that scored best on held-out motion."""
RESUMING = "resuming"
"""The file that names the checkpoint resumed from, while a resume puts another history aside."""
ABANDONED = "abandoned"
"""The folder in `checkpoints/` for files of other histories. Nothing is pruned from it."""
BESIDE = "beside"
"""Key in a manifest: further files of the checkpoint, without which it still is complete."""
MODEL_FILE = "mp_rank_00_model_states.pt"
"""DeepSpeed's name for the file with the module's weights, its buffers and the trainer's own state."""
_BYTES_A_PARAMETER, _BYTES_OF_AVERAGE = 16, 4
"""Bytes per parameter: fp32 master weight, two moments and the module's own copy; the weights' moving average."""


DIGITS = 12
"""Number of digits of a fingerprint in file names."""


class Mark(NamedTuple):
    """The identity of a checkpoint."""

    step: int
    fingerprint: str
    """The sha256 of its manifest, and so of all its files and of the checkpoints before it."""


def checkpoint_bytes(parameters: int, averaged: bool) -> int:
    """Returns the maximum bytes of a checkpoint on disk.

    Args:
        averaged: whether it includes the moving average of the weights.
    """
    return parameters * (_BYTES_A_PARAMETER + (_BYTES_OF_AVERAGE if averaged else 0))


def tag_of(step: int) -> str:
    """Returns the folder name of the checkpoint of a step."""
    return f"{TAG}{step}"


def step_of(checkpoint: Path) -> int:
    """Returns the step of a checkpoint folder: `global_step40`, or `global_step40-1f2e3d4c5b6a` if it was put aside."""
    return int(checkpoint.name.removeprefix(TAG).partition("-")[0])


def checkpoints(folder: Path) -> list[Path]:
    """Returns the finished checkpoints, oldest first."""
    found = [path for path in folder.glob(f"{TAG}*") if path.is_dir() and is_tag(path.name)]
    return sorted(found, key=step_of)


def latest(folder: Path) -> Path | None:
    """Returns the newest checkpoint of the run's history, or None.

    It is the one that `latest` names; or the one saved right after it, if that save was interrupted before it updated
    `latest`; or the newest, if `latest` names none. During a resume it is the one resumed from.
    """
    if is_resuming(folder):
        going_on = resumed_from(folder)
        return next((path for path in checkpoints(folder) if going_on is not None and mark_in(path) == going_on), None)
    return head_of(folder)


def head_of(folder: Path) -> Path | None:
    """Returns the same as `latest`, but ignores an unfinished resume."""
    found, named = checkpoints(folder), named_by(folder / LATEST)
    if named is None or named not in found:
        return found[-1] if found else None
    mark = mark_in(named)
    past = [path for path in found if step_of(path) > step_of(named)]
    return next((path for path in past if mark is not None and _parent_of(path) == mark), named)


def is_resuming(folder: Path) -> bool:
    """Returns whether a resume is in progress or was interrupted, even if a crash damaged the file that names its
    checkpoint."""
    return (folder / RESUMING).is_file()


def resumed_from(folder: Path) -> Mark | None:
    """Returns the checkpoint that an unfinished resume resumes from; None if the file is missing or damaged."""
    try:
        step, fingerprint = read_json(folder / RESUMING)["to"]
        return Mark(step, fingerprint)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def has_begun(folder: Path) -> bool:
    """Returns whether a run has a checkpoint, even if all remaining ones were put aside."""
    aside = (folder / ABANDONED).glob(f"{TAG}*")
    return bool(checkpoints(folder)) or is_resuming(folder) or any(is_abandoned_tag(path.name) for path in aside)


def named_by(file: Path) -> Path | None:
    """Returns the checkpoint that `latest` or `best` names; None if the file cannot be read."""
    try:
        return file.parent / file.read_bytes().decode().strip()
    except (OSError, ValueError):
        return None


def manifest_in(checkpoint: Path) -> dict[str, Any]:
    """Returns a checkpoint's manifest; empty if it cannot be read."""
    try:
        return read_manifest(checkpoint)
    except ValueError:
        return {}


def mark_in(checkpoint: Path) -> Mark | None:
    """Returns a checkpoint's mark; None if its manifest cannot be read."""
    manifest = manifest_in(checkpoint)
    return mark_of(manifest) if manifest else None


def digits_of(checkpoint: Path) -> str:
    """Returns the first digits of a checkpoint's fingerprint, or of its manifest's sha256 if that is damaged."""
    mark = mark_in(checkpoint)
    if mark is not None:
        return mark.fingerprint[:DIGITS]
    manifest = checkpoint / MANIFEST
    return hashlib.sha256(manifest.read_bytes() if manifest.is_file() else b"").hexdigest()[:DIGITS]


def _parent_of(checkpoint: Path) -> Mark | None:
    parent = manifest_in(checkpoint).get("parent")
    return Mark(*parent) if parent else None


def history_of(head: Path) -> list[Path]:
    """Returns the checkpoints of one history beside `head`, oldest first: `head` and those before it.

    A checkpoint whose manifest cannot be read counts by its step. If `head` does not know its history, because a
    version up to 0.3 saved it, all checkpoints up to its step count.

    Raises:
        ValueError: the manifest of `head` cannot be read.
    """
    ancestors = ancestors_of(read_manifest(head))
    found = [path for path in checkpoints(head.parent) if step_of(path) <= step_of(head)]
    if ancestors is None:
        return found
    known = dict(ancestors)
    own = []
    for path in found:
        mark = mark_in(path)
        fingerprint = known.get(step_of(path))
        if path == head or (fingerprint is not None and (mark is None or mark.fingerprint == fingerprint)):
            own.append(path)
    return own


def candidates(folder: Path) -> list[Path]:
    """Returns checkpoints in the order in which a resume tries them: `latest`, then the older ones of its history.

    If `latest` does not know its history, all older ones follow, and then the newer ones.
    """
    head = latest(folder)
    if head is None:
        return []
    found = checkpoints(folder)[::-1]
    older = [path for path in found if step_of(path) <= step_of(head)]
    for place, path in enumerate(older):
        try:
            if ancestors_of(read_manifest(path)) is None:
                break
            # Damaged newer ones do not tell the history; this one does.
            return older[:place] + history_of(path)[::-1]
        except ValueError:
            continue
    return older + [path for path in found if path not in older]


def best_of(folder: Path) -> Path | None:
    """Returns the checkpoint of the run's history with the best L1 on held-out motion; None if none was scored.

    If a checkpoint has no scores in its manifest, because a version up to 0.3 saved it, the file `best` decides.

    Raises:
        ValueError: `best` names a checkpoint of another history.
    """
    head = latest(folder)
    own = [path for path in candidates(folder) if head is not None and step_of(path) <= step_of(head)]
    manifests = {path: manifest for path in own if (manifest := manifest_in(path))}
    if manifests and all("scores" in manifest for manifest in manifests.values()):
        scored = {path: l1 for path, manifest in manifests.items() if (l1 := l1_of(manifest)) is not None}
        return min(scored, key=lambda path: (scored[path], step_of(path)), default=None)
    named = named_by(folder / BEST)
    if named in checkpoints(folder) and named not in own and head is not None:
        raise ValueError(f"no checkpoint best; {BEST} names {named.name}, which is not in the history of {head.name}")
    return named if named in own else None


def digest_of(file: Path) -> dict[str, Any]:
    """Returns a file's entry in the manifest."""
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns a manifest with the sha256 of its contents."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**body, "sha256": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Returns the checkpoint's manifest; raises ValueError if it is missing or damaged."""
    try:
        manifest: dict[str, Any] = read_json(checkpoint / MANIFEST)
        if seal(manifest) == manifest and manifest["step"] == step_of(checkpoint):
            _check_past(manifest)
            return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{MANIFEST} is missing or damaged")


def mark_of(manifest: Mapping[str, Any]) -> Mark:
    """Returns the mark of a manifest's checkpoint."""
    return Mark(manifest["step"], manifest["sha256"])


def ancestors_of(manifest: Mapping[str, Any]) -> list[Mark] | None:
    """Returns the checkpoints before that of a manifest, oldest first, including those pruned since.

    None if the manifest does not list them, because a version up to 0.3 saved it.
    """
    ancestors = manifest.get("ancestors")
    return None if ancestors is None else [Mark(step, fingerprint) for step, fingerprint in ancestors]


def _check_past(manifest: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError if a manifest's entries about its history or scores have a wrong form."""
    ancestors_of(manifest)
    for key in ("scores", "best"):
        dict(manifest.get(key) or {})
    if manifest.get("parent") is not None:
        Mark(*manifest["parent"])


def l1_of(manifest: Mapping[str, Any]) -> float | None:
    """Returns the L1 of a manifest's checkpoint; None if it was not scored itself, has no scores, or they are NaN."""
    scores = manifest.get("scores") or {}
    return finite_l1(scores) if scores.get("step") == manifest["step"] else None


def finite_l1(scores: Mapping[str, Any]) -> float | None:
    """Returns the L1 of scores; None if it is missing or not finite, and so cannot be compared."""
    l1 = scores.get("l1")
    return l1 if isinstance(l1, int | float) and math.isfinite(l1) else None


def damage_of(checkpoint: Path, thorough: bool = True) -> str | None:
    """Returns the damage of a checkpoint, or None. Every file in the manifest must exist with its size and sha256.

    Args:
        thorough: read the files; otherwise only names and sizes are compared.
    """
    try:
        files = read_manifest(checkpoint)["files"]
        for name, entry in files.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size:,} bytes of {entry['bytes']:,}"
            if thorough and digest_of(file) != entry:
                return f"{name} does not have its sha256"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def keeps(checkpoint: Path, name: str) -> bool:
    """Returns whether a checkpoint keeps a further file of this name, unchanged since it was written."""
    try:
        return bool(read_manifest(checkpoint)[BESIDE][name] == digest_of(checkpoint / name))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def named_checkpoint(folder: Path, which: str, thorough: bool = True) -> Path:
    """Returns the checkpoint named by `which`: `latest`, `best` or a folder's name. It is complete by its manifest.

    Args:
        thorough: as in `damage_of`.

    Raises:
        ValueError: no such checkpoint, or a damaged one.
    """
    checkpoint = latest(folder) if which == LATEST else best_of(folder) if which == BEST else folder / which
    found = checkpoints(folder)
    if is_abandoned_tag(which) and checkpoint is not None and checkpoint.is_dir():
        found.append(checkpoint)
    if checkpoint is None or checkpoint not in found:
        there = ", ".join(path.name for path in found) or "none"
        if is_resuming(folder) and which in (LATEST, BEST):
            raise ValueError("a resume was interrupted while it changed the checkpoints; start it again with --resume")
        raise ValueError(f"no checkpoint {which}; there is {there}" if which != LATEST else "has no checkpoint yet")
    reason = damage_of(checkpoint, thorough)
    if reason is not None:
        raise ValueError(f"{checkpoint.name}: {reason}")
    return checkpoint


def whole_checkpoint(folder: Path, thorough: bool = True) -> tuple[Path | None, list[str]]:
    """Returns the first complete checkpoint to resume from, and the damage of those that were skipped."""
    damaged: list[str] = []
    for checkpoint in candidates(folder):
        reason = damage_of(checkpoint, thorough)
        if reason is None:
            return checkpoint, damaged
        damaged.append(f"{checkpoint}: {reason}")
    return None, damaged


def universal_of(checkpoint: Path) -> Path:
    """Returns the folder of a checkpoint's universal form, which any number of ranks can load."""
    return checkpoint.with_name(f"{checkpoint.name}_universal")


def point(folder: Path, pointer: str, checkpoint: Path) -> None:
    """Makes `latest` or `best` name a checkpoint, atomically."""
    write_synced(folder / pointer, checkpoint.name)


def write_synced(file: Path, text: str) -> None:
    """Writes a file atomically and syncs it to the disk."""
    with whole_file(file, synced=True) as content:
        content.write(text.encode())


def prune(head: Path, newest: int, every: int | None = None) -> None:
    """Removes old checkpoints of the history of `head`, which was just saved.

    The `newest` ones, the best one and those whose step is a multiple of `every` stay. Other histories stay too.
    """
    best = (read_manifest(head).get("best") or {}).get("step")
    named = named_by(head.parent / BEST) if best is None else head.with_name(tag_of(best))
    for older in history_of(head)[:-newest]:
        if older != named and (every is None or step_of(older) % every):
            remove(universal_of(older))
            remove(older)


def remove(folder: Path) -> None:
    """Removes a folder if it exists. An interrupted removal leaves nothing under its name."""
    if not folder.is_dir():
        return
    doomed = folder.with_name(f"{UNFINISHED}removal-of-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Removes what interrupted writes left behind, as far as possible."""
    for path in _unfinished(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _unfinished(folder: Path) -> Iterator[Path]:
    return folder.glob(f"{UNFINISHED}*")
