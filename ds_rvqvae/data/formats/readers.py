"""Which reader reads a file or folder. A new format is one file with one class, and its entry in `FORMATS`."""

from collections import Counter
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.names import FORMATS
from ds_rvqvae.data.formats.base import Reader, files_below, missing_key, npz_keys
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError


def _reader(place: str) -> type[Reader]:
    """The reader class at `module.Class` of this folder."""
    module, _, name = place.partition(".")
    reader: type[Reader] = getattr(import_module(f"ds_rvqvae.data.formats.{module}"), name)
    return reader


READERS = tuple(sorted(map(_reader, FORMATS.values()), key=lambda reader: -reader.certainty))
"""The first that is certain reads; else the one that matches; of several that do, the one with the most files."""


def open_reader(path: Path, config: DataConfig) -> Reader:
    """The reader of a file or folder of motion: the one that `rvqvae.data.format` names, or by what is there.

    Raises:
        UserError: no such path, nothing in it, files that no reader knows, naming the first of them, or none of the
            format asked for.
    """
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; --data_path names a folder of motion or one packed npz")
        chosen = _choose(path, config)
        if config.reading_version == 1:
            chosen.notes += _differs_now(chosen, path, config)
        return chosen
    except ClipError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _choose(path: Path, config: DataConfig) -> Reader:
    """The reader of what is there, by the rules of `rvqvae.data.reading_version`; raises UserError."""

    def matches(reader: type[Reader]) -> bool:
        return reader.matched_before(path) if config.reading_version == 1 else reader.matches(path)

    if config.format is not None:
        reader = next(reader for reader in READERS if reader.key == config.format)
        if not matches(reader):
            raise UserError(f"rvqvae.data.format: {path} is no {reader.format}; {_what_is_there(path)}")
        return reader(path, config)
    for reader in READERS:
        if reader.certainty and matches(reader):
            return reader(path, config)
    found = [reader(path, config) for reader in READERS if not reader.certainty and matches(reader)]
    if not found:
        raise UserError(_unknown(path))
    return _largest(found)


def _differs_now(chosen: Reader, path: Path, config: DataConfig) -> tuple[str, ...]:
    """A note where another reader is chosen by the rules of now."""
    with suppress(UserError, ClipError):
        now = _choose(path, config.model_copy(update={"reading_version": 2}))
        if now.key != chosen.key:
            return (
                f"read as versions up to 0.2 did: as {chosen.format}, but it is {now.format}; prepare again with "
                "reading_version 2 for that",
            )
    return ()


def _largest(readers: list[Reader]) -> Reader:
    """The reader with the most files, and a note of what else is there."""
    chosen = max(readers, key=lambda reader: len(reader.sources()))
    chosen.notes += tuple(
        f"the folder also holds {reader.format}, not read; rvqvae.data.format: {reader.key} reads that instead"
        for reader in readers
        if reader is not chosen
    )
    return chosen


def _unknown(path: Path) -> str:
    formats = ", ".join(reader.format for reader in READERS)
    if path.is_file():
        if path.suffix == ".npz":
            return f"{path}: {missing_key(npz_keys(path), 'poses (BEAT2, SMPL) or motion (packed, features)')}"
        return f"{path}: no reader knows this file; known: {formats}"
    first = next(iter(files_below(path, ("",)).values()), None)
    if first is None:
        return f"{path}: an empty folder; it should hold motion: {formats}"
    return f"{path}: no reader knows {first.relative_to(path)}{_reason(first)}; known: {formats}"


def _reason(file: Path) -> str:
    """What is wrong with an npz, or which keys it has."""
    if file.suffix != ".npz":
        return ""
    try:
        return f" (it has {', '.join(key[:40] for key in npz_keys(file)[:12]) or 'no keys'})"
    except ClipError as error:
        return f" ({error})"


def _what_is_there(path: Path) -> str:
    if path.is_file():
        return f"it is a file{_reason(path)}"
    suffixes = Counter(file.suffix or "without suffix" for file in islice(files_below(path, ("",)).values(), 100_000))
    return "it holds " + (", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5)) or "no files")
