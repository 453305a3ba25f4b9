"""Checkpoints as they lie on disk: their names, whether they are whole, which one to go on from. Without torch."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_rvqvae.config.request import TAG, is_tag
from ds_rvqvae.files import sha256_of, whole_file

UNFINISHED = ".unfinished-"
"""What the name of anything begins with that is still being written."""
MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best"
"""Files that hold the name of the newest checkpoint, and of the one that scored best on held-out motion."""
BESIDE = "beside"
"""In a manifest: further files that the checkpoint keeps, without which it is whole."""
MODEL_FILE = "mp_rank_00_model_states.pt"
"""DeepSpeed's name for the file with the module's weights, its buffers and what the trainer adds."""
_BYTES_A_PARAMETER, _BYTES_OF_AVERAGE = 16, 4
"""fp32 master weight, two moments, and the module's own copy with what goes with it; the weights' moving average."""


def checkpoint_bytes(parameters: int, averaged: bool) -> int:
    """Bytes that a checkpoint takes on disk at most.

    Args:
        averaged: whether the moving average of the weights goes with it.
    """
    return parameters * (_BYTES_A_PARAMETER + (_BYTES_OF_AVERAGE if averaged else 0))


def tag_of(step: int) -> str:
    """The folder name of the checkpoint of a step."""
    return f"{TAG}{step}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint folder."""
    return int(checkpoint.name.removeprefix(TAG))


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = [path for path in folder.glob(f"{TAG}*") if path.is_dir() and is_tag(path.name)]
    return sorted(found, key=step_of)


def latest(folder: Path) -> Path | None:
    """The checkpoint that `latest` names, or the newest where it names none; None where there is no checkpoint."""
    found = checkpoints(folder)
    named = _named_by(folder / LATEST)
    return named if named in found else (found[-1] if found else None)


def _named_by(file: Path) -> Path | None:
    """The checkpoint that `latest` or `best` names."""
    return file.parent / file.read_bytes().decode(errors="replace").strip() if file.is_file() else None


def candidates(folder: Path) -> list[Path]:
    """Checkpoints in the order in which a resume tries them: `latest`, the older ones, then what lies past it."""
    head = latest(folder)
    if head is None:
        return []
    found = checkpoints(folder)[::-1]
    older = [path for path in found if step_of(path) <= step_of(head)]
    return older + [path for path in found if path not in older]


def digest_of(file: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the sha256 of all that it says."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**body, "sha256": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's manifest; raises ValueError where it is missing or damaged."""
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        if seal(manifest) == manifest and manifest["step"] == step_of(checkpoint):
            return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{MANIFEST} is missing or damaged")


def damage_of(checkpoint: Path, thorough: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None: every file of the manifest has to be there, of its size and sha256.

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
    """Whether a checkpoint keeps a further file of this name, and it is as it was written."""
    try:
        return bool(read_manifest(checkpoint)[BESIDE][name] == digest_of(checkpoint / name))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def named_checkpoint(folder: Path, which: str, thorough: bool = True) -> Path:
    """The checkpoint that `which` means: `latest`, `best` or the name of one; whole by its manifest.

    Args:
        thorough: as `damage_of` takes it.

    Raises:
        ValueError: no such checkpoint, or a damaged one.
    """
    checkpoint = latest(folder) if which == LATEST else _named_by(folder / BEST) if which == BEST else folder / which
    found = checkpoints(folder)
    if checkpoint not in found:
        there = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"no checkpoint {which}; there is {there}" if which != LATEST else "has no checkpoint yet")
    reason = damage_of(checkpoint, thorough)
    if reason is not None:
        raise ValueError(f"{checkpoint.name}: {reason}")
    return checkpoint


def whole_checkpoint(folder: Path, thorough: bool = True) -> tuple[Path | None, list[str]]:
    """The first whole checkpoint to go on from, and what is wrong with those that were passed over."""
    damaged: list[str] = []
    for checkpoint in candidates(folder):
        reason = damage_of(checkpoint, thorough)
        if reason is None:
            return checkpoint, damaged
        damaged.append(f"{checkpoint}: {reason}")
    return None, damaged


def universal_of(checkpoint: Path) -> Path:
    """Where the form of a checkpoint lies that any number of ranks can load."""
    return checkpoint.with_name(f"{checkpoint.name}_universal")


def point(folder: Path, pointer: str, checkpoint: Path) -> None:
    """Makes `latest` or `best` name a checkpoint, in one step."""
    write_synced(folder / pointer, checkpoint.name)


def write_synced(file: Path, text: str) -> None:
    """Writes a file whole and waits until it is on disk."""
    with whole_file(file, synced=True) as content:
        content.write(text.encode())


def prune(folder: Path, step: int, newest: int, every: int | None = None) -> None:
    """Removes all but the `newest` checkpoints up to `step`, the best, and those whose step is a multiple of `every`.

    What lies past `step` is another history's and stays.
    """
    best = _named_by(folder / BEST)
    for older in [path for path in checkpoints(folder) if step_of(path) <= step][:-newest]:
        if older != best and (every is None or step_of(older) % every):
            remove(universal_of(older))
            remove(older)


def remove(folder: Path) -> None:
    """Removes a folder, where there is one, so that, cut short, it leaves nothing under its name."""
    if not folder.is_dir():
        return
    doomed = folder.with_name(f"{UNFINISHED}removal-of-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Removes what a write that was cut short left behind."""
    for path in _unfinished(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _unfinished(folder: Path) -> Iterator[Path]:
    return folder.glob(f"{UNFINISHED}*")
