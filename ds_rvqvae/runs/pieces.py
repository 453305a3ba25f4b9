"""Make small changes in a run's folder, each of them one rename or one complete file, and read its JSON files."""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ds_rvqvae.files import read_json, whole_file
from ds_rvqvae.runs.checkpoints import DIGITS


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file of a run, atomically; raises OSError if it cannot be written."""
    with whole_file(file, synced=True) as content:
        content.write(json.dumps(values, indent=2).encode() + b"\n")


def carry(source: Path, target: Path, names: Iterable[str]) -> None:
    """Renames files into another folder. Their order counts: the last one shows that all are there."""
    moved = [name for name in names if (source / name).is_file()]
    if moved:
        target.mkdir(parents=True, exist_ok=True)
    for name in moved:
        move(source / name, target / name)
    if moved and source.name not in ("eval", "tensorboard"):
        with suppress(OSError):  # other files lie in it
            source.rmdir()


def move(source: Path, target: Path) -> None:
    """Renames a file; if `checkpoints` is on another disk, copies and removes it."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy(source, target)
        source.unlink()


def dict_of(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty if it is missing, damaged or not an object."""
    try:
        values = read_json(file)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def free_name(folder: Path, name: str) -> Path:
    """Returns an unused path; the same checkpoint may have been put aside before, and copied."""
    place, number = folder / name, 2
    while place.exists():
        place, number = folder / f"{name}-{number}", number + 1
    return place


def copy(source: Path, target: Path) -> None:
    """Copies a file, atomically."""
    with whole_file(target, synced=True) as content, source.open("rb") as given:
        shutil.copyfileobj(given, content)


def short(fingerprint: Any, file: Path | None = None) -> str:
    """Returns the digits that name a checkpoint in files made from it: of its fingerprint, or of `file`'s sha256 if
    there is no fingerprint."""
    if not isinstance(fingerprint, str) and file is not None:
        fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()
    return str(fingerprint)[:DIGITS]
