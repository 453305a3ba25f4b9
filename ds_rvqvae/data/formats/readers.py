"""The choice of a reader for a file or folder. A new format is one file with one class, and its entry in `FORMATS`."""

from collections import Counter
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.names import FORMATS
from ds_rvqvae.data.formats.base import Reader, files_below, missing_key, npz_keys
from ds_rvqvae.data.formats.described import described
from ds_rvqvae.data.formats.pickles import how_to_convert, is_pickle
from ds_rvqvae.data.formats.robots.csv import read_motion
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError


def _reader(place: str) -> type[Reader]:
    """Returns the reader class at `module.Class` of this folder."""
    module, _, name = place.rpartition(".")
    reader: type[Reader] = getattr(import_module(f"ds_rvqvae.data.formats.{module}"), name)
    return reader


READERS = tuple(sorted(map(_reader, FORMATS.values()), key=lambda reader: -reader.certainty))
"""Tried in this order: the first certain match reads; else, of all that match, the one with the most files."""

_SMPL = ("smpl", "beat2", "aist", "motionx")
_USED_BY = {
    **dict.fromkeys(("joints", "joint_names", "skeleton_of"), ("bvh",)),
    "robot": ("robot_csv", "robot_npz"),
    "csv_units": ("robot_csv",),
    "skeleton": ("joints", *_SMPL),
}
"""Keys of `rvqvae.data` that some formats use, with these formats."""


def open_reader(path: Path, config: DataConfig) -> Reader:
    """Returns a reader of a file or folder of motion: the one that `rvqvae.data.format` names, or one that matches.

    Raises:
        UserError: there is no such path, the folder is empty, no reader knows its files (the first is named), or none
            is of the format asked for.
    """
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; --data_path names a folder of motion or one packed npz")
        config = described(config)
        chosen = _choose(path, config)
        if config.reading_version == 1:
            chosen.notes += _differs_now(chosen, path, config)
        given = [key for key in _USED_BY if getattr(config, key) is not None]
        unused = [f"rvqvae.data.{key}" for key in given if chosen.key not in _USED_BY[key]]
        if unused:
            chosen.notes += (f"no effect on {chosen.format}: {', '.join(unused)}",)
        return chosen
    except ClipError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _choose(path: Path, config: DataConfig) -> Reader:
    """Returns a reader for the data by the rules of `rvqvae.data.reading_version`; raises UserError."""

    def matches(reader: type[Reader]) -> bool:
        return reader.matched_before(path) if config.reading_version == 1 else reader.matches(path)

    if config.format is not None:
        reader = next(reader for reader in READERS if reader.key == config.format)
        if not (matches(reader) or reader.matches_if_asked(path)):
            raise UserError(f"rvqvae.data.format: {path} is not of the format {reader.format}; {_what_is_there(path)}")
        return reader(path, config)
    for reader in READERS:
        if reader.certainty and matches(reader):
            return reader(path, config)
    found = [reader(path, config) for reader in READERS if not reader.certainty and matches(reader)]
    if not found:
        raise UserError(_unknown(path))
    return _largest(found)


def _differs_now(chosen: Reader, path: Path, config: DataConfig) -> tuple[str, ...]:
    """Returns a note if today's rules choose another reader."""
    with suppress(UserError, ClipError):
        now = _choose(path, config.model_copy(update={"reading_version": 2}))
        if now.key != chosen.key:
            return (
                f"read as versions up to 0.2 did: as {chosen.format}, but it is {now.format}; prepare again with "
                "reading_version 2 to read it so",
            )
    return ()


def _largest(readers: list[Reader]) -> Reader:
    """Returns the reader with the most files, with a note on the other formats in the folder."""
    chosen = max(readers, key=lambda reader: len(reader.sources()))
    chosen.notes += tuple(
        f"the folder also holds {reader.format}, not read; set rvqvae.data.format to {reader.key} to read that instead"
        for reader in readers
        if reader is not chosen
    )
    return chosen


def _unknown(path: Path) -> str:
    formats = ", ".join(reader.format for reader in READERS)
    if path.is_file():
        if path.suffix == ".npz":
            return f"{path}: {missing_key(npz_keys(path), 'poses (BEAT2, SMPL) or motion (packed, features)')}"
        no_reader = f"no reader knows this file{_reason(path)}; known: {formats}"
        return f"{path}: {how_to_convert(path) if is_pickle(path) else no_reader}"
    files = files_below(path, ("",))
    first = next(iter(files.values()), None)
    if first is None:
        return f"{path}: an empty folder; it should hold motion: {formats}"
    if (pickle := next(filter(is_pickle, files.values()), None)) is not None:
        return f"{path}: no reader knows its files; {how_to_convert(pickle)}"
    return f"{path}: no reader knows {first.relative_to(path)}{_reason(first)}; known: {formats}"


def _reason(file: Path) -> str:
    """Returns the keys of an npz, or the reason why it or a csv cannot be read, for a message."""
    if file.suffix.lower() == ".csv":
        try:
            read_motion(file, None, most=100)
        except ClipError as error:
            return f" ({error})"
    if file.suffix != ".npz":
        return ""
    try:
        return f" (it has {', '.join(key[:40] for key in npz_keys(file)[:12]) or 'no keys'})"
    except ClipError as error:
        return f" ({error})"


def _what_is_there(path: Path) -> str:
    if path.is_file():
        return f"it is a file{_reason(path)}"
    files = list(islice(files_below(path, ("",)).values(), 100_000))
    suffixes = Counter(file.suffix or "without suffix" for file in files)
    pickle = next(filter(is_pickle, files), None)
    end = "" if pickle is None else f"; {how_to_convert(pickle)}"
    return f"it holds {', '.join(f'{count} {suffix}' for suffix, count in suffixes.most_common(5)) or 'no files'}{end}"
