"""The parts of a store's table: number formats, shards, segments, skeleton and report, all checked when read."""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from ds_rvqvae.data.store.splits import Segment
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import SPLITS

SHARDS = "shards"
"""The folder of all shards."""


def shard_files(folder: Path, index: int) -> tuple[Path, Path]:
    """Returns a shard's files in the folder of all shards: its frames and its facts."""
    return folder / f"{index:05d}.npy", folder / f"{index:05d}.json"


class NumberFormat(NamedTuple):
    """The conversion between numbers on disk and in memory."""

    stored: np.dtype[Any]
    encode: Callable[[NDArray[np.float32]], NDArray[Any]]
    """From float32 to the stored numbers."""
    decode: Callable[[NDArray[Any]], NDArray[np.float32]]
    """From the stored numbers to float32."""


_LARGEST_BFLOAT16 = np.float32(2.0**128 - 2.0**120)
"""The largest finite bfloat16. Float32 has larger numbers, which would be rounded to infinity."""


def _as_is(values: NDArray[Any]) -> NDArray[Any]:
    return values


def _to_float16(values: NDArray[np.float32]) -> NDArray[Any]:
    limit = np.finfo(np.float16).max
    return np.clip(values, -limit, limit).astype("<f2")


def _from_float16(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[Any]:
    """Returns the upper halves of finite float32 values, rounded to the nearest, ties to even."""
    bits = np.clip(values, -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16).astype("<f4", copy=False).view("<u4")
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _from_bfloat16(values: NDArray[Any]) -> NDArray[np.float32]:
    return (values.astype(np.uint32) << 16).view(np.float32)


NUMBER_FORMATS = {
    "float32": NumberFormat(np.dtype("<f4"), _as_is, _as_is),
    "float16": NumberFormat(np.dtype("<f2"), _to_float16, _from_float16),
    "bfloat16": NumberFormat(np.dtype("<u2"), _to_bfloat16, _from_bfloat16),
}
"""Number formats on disk, by `rvqvae.data.store_dtype`. numpy has no bfloat16, so its bits are kept in a `uint16`."""


class Shard(NamedTuple):
    """One file of frames."""

    file: str
    """Relative to the store."""
    first: int
    """Its first row, counted over the whole store."""
    rows: int
    sha256: str
    """Checksum of the complete file."""


def whole_number(value: Any) -> int:
    """Returns `value` if it is an int; raises ValueError otherwise, also for a bool or a float."""
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def read_segments(entries: Sequence[dict[str, Any]], lengths: dict[str, int]) -> list[Segment]:
    """Returns the segments of clips with these lengths; raises ValueError, TypeError or KeyError for invalid ones."""
    segments = [Segment(**entry) for entry in entries]
    for name, start, stop, split in segments:
        if not 0 <= whole_number(start) < whole_number(stop) <= lengths[name] or split not in SPLITS:
            raise ValueError(f"a segment is outside its clip, or in no split: {name} {start} to {stop}, {split}")
    return segments


def read_skeleton(entries: Any) -> dict[str, Any] | None:
    """Returns a skeleton of motion files, in any unit; raises ValueError, TypeError or KeyError for an invalid one."""
    if entries is None:
        return None
    names, parents = entries["joint_names"], entries["parents"]
    offsets = np.asarray(entries["offsets"], np.float64)
    if offsets.shape != (len(names), 3) or [type(name) for name in names] != [str] * len(names):
        raise ValueError("the skeleton has another number of joints than of offsets")
    if len(parents) != len(names) or not all(-1 <= whole_number(parent) < len(names) for parent in parents):
        raise ValueError("the skeleton's parents are not its joints")
    return dict(entries)


def read_shards(entries: Sequence[dict[str, Any]]) -> list[Shard]:
    """Returns the shards in order; raises ValueError, TypeError or KeyError for invalid ones."""
    shards: list[Shard] = []
    for entry in entries:
        file, rows = entry["file"], entry["rows"]
        if type(rows) is not int or rows < 1 or not re.fullmatch(rf"{SHARDS}/\d{{5,}}\.npy", file):
            raise ValueError(f"not a valid shard: {file!r} with {rows!r} rows")
        shards.append(Shard(file, shards[-1].first + shards[-1].rows if shards else 0, rows, str(entry["sha256"])))
    return shards


_Text = InstanceOf[str]
"""File names may hold bytes that are not UTF-8, which pydantic's own str refuses."""


class _Rate(TypedDict):
    fps: float
    files: int
    hours: float
    how: _Text


class _Split(TypedDict):
    clips: int
    frames: int
    hours: float


class _Rule(TypedDict):
    files: int
    spans: int
    frames: int


class _Entry(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    file: _Text
    rule: _Text
    frames: Annotated[list[int], Field(min_length=2, max_length=2)] | None
    reason: _Text


class _Extreme(TypedDict):
    column: _Text
    mean: float
    minimum: float
    maximum: float
    stds: float


class _Group(TypedDict):
    suffix: _Text
    reason: _Text
    files: int


class _FileCount(TypedDict):
    seen: int
    read: int
    left_out: int
    passed_over: list[_Group]
    notes: NotRequired[list[_Text]]
    readings: NotRequired[list[_Text]]


class _Report(TypedDict):
    """The keys that `report.json` must have; reports of version 0.2 and earlier do not count files."""

    source: _Text
    format: _Text
    files: int
    clips: int
    frames: int
    hours: float
    fps: float
    columns: int
    frame_rates: list[_Rate]
    splits: dict[_Text, _Split]
    constant_column_count: int
    constant_columns: list[_Text]
    extreme_values: list[_Extreme]
    rules: dict[_Text, _Rule]
    quarantine: list[_Entry]
    notes: dict[_Text, int]
    readings: NotRequired[list[_Text]]
    files_seen: NotRequired[int]
    file_counts: NotRequired[list[_FileCount]]


class _Counted(TypedDict):
    """The additional keys of a report that counts files."""

    files_read: int
    files_left_out: int
    files_passed_over: int
    file_counts: list[_FileCount]


_REPORT, _COUNTED = TypeAdapter(_Report), TypeAdapter(_Counted)


def check_report(report: Any) -> None:
    """Raises ValueError, naming the key, if `report` is not a store's report."""
    try:
        _REPORT.validate_python(report, strict=True)
        if report.get("files_seen"):
            _COUNTED.validate_python(report, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'report'}: {first['msg']}") from None


def write_json(file: Path, values: Any, synced: bool = False) -> None:
    """Writes a JSON file, complete or not at all, with one line per list entry; `synced` as in `whole_file`."""
    text = json.dumps(values, indent=1, ensure_ascii=False)
    with whole_file(file, synced) as content:
        # File names may hold bytes that are not UTF-8. Python keeps these as surrogates; JSON escapes write them.
        content.write(text.encode(errors="backslashreplace") + b"\n")


def link_or_copy(file: Path, place: Path) -> None:
    """Links a file that is never written to again to a second place, or copies it if the file system has no links."""
    try:
        os.link(file, place)
    except OSError:
        with file.open("rb") as content, whole_file(place, synced=True) as copy:
            shutil.copyfileobj(content, copy)
