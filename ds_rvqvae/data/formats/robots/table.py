"""Csv files as tables: the names in the header, if there is one, and the numbers below it."""

import io
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.npz import RefusedError, open_regular
from ds_rvqvae.motion.clip import ClipError

_LARGEST_FILE = 2**30
"""Bytes; ten hours of a robot with 29 joints at 120 frames per second take about as much."""
_LONGEST_LINE = 2**20
"""Bytes."""
_MOST_COLUMNS = 1024
_MOST_SHOWN = 40
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|nan|inf(inity)?)", re.IGNORECASE)


class Head(NamedTuple):
    """The beginning of a csv file."""

    names: tuple[str, ...] | None
    """The names in the header; None if the first line holds numbers."""
    columns: int
    first: str
    """The first line, without its end."""


def read_head(file: Path) -> Head:
    """Reads the first line of a csv file; raises ClipError."""
    try:
        with open_regular(file) as stream:
            if file.stat().st_size > _LARGEST_FILE:
                raise ClipError(f"larger than {_LARGEST_FILE >> 30} GiB, so not one clip of a robot")
            line = stream.readline(_LONGEST_LINE)
    except RefusedError as error:
        raise ClipError(str(error)) from None
    except OSError as error:
        raise ClipError(f"cannot be read: {error.strerror or error}") from None
    if len(line) == _LONGEST_LINE:
        raise ClipError(f"its first line is longer than {_LONGEST_LINE >> 20} MiB, so not a robot's motion")
    if b"\0" in line:
        raise ClipError("has NUL bytes in its first line, so it is not a text of numbers")
    try:
        first = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ClipError("its first line is not UTF-8 text") from None
    if not first.strip():
        raise ClipError("its first line is empty" if line else "an empty file")
    cells = [cell.strip().strip('"').strip() for cell in first.split(",")]
    for separator, words in ((";", "semicolons"), ("\t", "tabs")):
        if first.count(separator) >= max(len(cells) - 1, 1):
            raise ClipError(f"its numbers are separated by {words}, not by commas; export it with commas and points")
    if len(cells) > _MOST_COLUMNS:
        raise ClipError(f"has {len(cells):,} columns, more than {_MOST_COLUMNS:,}")
    is_header = not all(_NUMBER.fullmatch(cell) for cell in cells)
    if is_header and sum(bool(_NUMBER.fullmatch(cell)) for cell in cells) > len(cells) // 2:
        word = next(cell for cell in cells if not _NUMBER.fullmatch(cell))
        raise ClipError(f"{_shown(word)} stands in its first line, between numbers")
    return Head(tuple(cells) if is_header else None, len(cells), first)


def read_numbers(file: Path, head: Head, most: int | None = None) -> NDArray[np.float64]:
    """Reads the numbers of a csv file, float64 `[frames, columns]`, of its first `most` frames; raises ClipError."""
    try:
        with open_regular(file) as stream, io.TextIOWrapper(stream, "utf-8-sig") as text:
            skipped = 0 if head.names is None else 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # by numpy, about a file without numbers
                values = np.loadtxt(
                    text, np.float64, comments=None, delimiter=",", skiprows=skipped, ndmin=2, max_rows=most
                )
    except (RefusedError, UnicodeDecodeError) as error:
        is_text = isinstance(error, UnicodeDecodeError)
        raise ClipError("holds bytes that are not UTF-8 text" if is_text else str(error)) from None
    except OSError as error:
        raise ClipError(f"cannot be read: {error.strerror or error}") from None
    except (ValueError, OverflowError) as error:
        raise ClipError(_reason(str(error), head)) from None
    if not len(values):
        raise ClipError("holds no frames")
    if values.shape[1] != head.columns:
        raise ClipError(f"its header has {head.columns} names, but its lines have {values.shape[1]} numbers")
    return values


def _reason(words: str, head: Head) -> str:
    """Returns numpy's message on a damaged line in our words, with the number of the line in the file."""
    before = 0 if head.names is None else 1
    changed = re.search(r"columns changed from (\d+) to (\d+) at row (\d+)", words)
    if changed:
        line = int(changed[3]) + before
        return f"line {line} has {changed[2]} columns, but the lines above have {changed[1]}"
    cell = re.search(r"convert string (.*) to float64 at row (\d+), column (\d+)", words, re.DOTALL)
    if cell:
        where = f"line {int(cell[2]) + 1 + before}, column {cell[3]}"
        if cell[1] in ("''", '""'):
            return f"{where}: no number"
        return f"{where}: {_shown(cell[1])} is not a number"
    return f"not a table of numbers: {_shown(words)}"


def _shown(words: str) -> str:
    shown = "".join(character if character.isprintable() else "?" for character in " ".join(words.split()))
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
