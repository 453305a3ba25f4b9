"""The packed store: all frames of a data set in memory-mapped files, built once, reused and added to.

A store is a folder of `shards/00000.npy`, … (frames `[rows, columns]`, clips one after another, none in two shards),
`shards/00000.json`, … (the source files and statistics of each shard), `store.json` (layout, frame rate, clips, split,
mean and std, checksums, the report) and `report.json` (the same report as a file of its own: facts about the files, and
what was left out and why).

The table, `store.json`, alone defines a store. It is replaced atomically, and a file that a table names is never
written to again. Opening a store opens all its files, so that it stays usable even if the folder changes or is removed.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.npz import map_matrix
from ds_rvqvae.data.store.splits import Segment
from ds_rvqvae.data.store.table import (
    NUMBER_FORMATS,
    SHARDS,
    Shard,
    check_report,
    read_segments,
    read_shards,
    read_skeleton,
    whole_number,
    write_json,
)
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import parse_json
from ds_rvqvae.host import allow_files
from ds_rvqvae.motion.clip import LeftOut
from ds_rvqvae.motion.layout import Layout, layout_from_json, layout_to_json

FORMAT, VERSION = "ds_rvqvae store", 2
TABLE, REPORT = "store.json", "report.json"
_TRIES = 5
"""Attempts to open a store that is being replaced."""


@dataclass(frozen=True, eq=False)
class Store:
    """A data set on disk, read through memory maps that all processes of a machine share."""

    folder: Path
    shards: list[Shard]
    starts: NDArray[np.int64]
    """int64 `[clips + 1]`: the row where each clip starts, and where the last one ends, over all shards."""
    clip_names: list[str]
    layout: Layout
    fps: float
    dtype: str
    """Type of the numbers on disk: a key of `NUMBER_FORMATS`."""
    mean: NDArray[np.float32]
    """float32 `[columns]`: of the training split (of all frames if that is empty), or the data's own."""
    std: NDArray[np.float32]
    """float32 `[columns]`: as measured, 0 for constant columns, or the data's own."""
    has_own_statistics: bool
    """Whether mean and std came with the data."""
    segments: list[Segment]
    has_body_parts: bool
    """Whether SMPL-X's body parts select columns; of other data all columns are used."""
    skeleton: dict[str, Any] | None
    """`joint_names`, `parents` and `offsets` (metres) of the figure in the first file that has one."""
    left_out: list[LeftOut]
    settings: dict[str, Any]
    fingerprint: str
    num_parts: int
    """The number of shards that were packed; those without a usable clip have no file of frames."""
    sources: list[str]
    """The data that it was made from: the first, and those that were appended."""
    first_part: int = 0
    """The number of the first shard; not 0 if the store replaced another one in its folder."""
    _maps: list[NDArray[Any]] = field(default_factory=list, repr=False)
    _report: dict[str, Any] | str = field(default="not written yet", repr=False)
    """The report, or why it cannot be read."""

    @property
    def num_frames(self) -> int:
        """The number of frames of all clips."""
        return int(self.starts[-1])

    @property
    def hours(self) -> float:
        """Duration of all clips, hours."""
        return self.num_frames / self.fps / 3600

    @property
    def nbytes(self) -> int:
        """Bytes of all frames on disk."""
        return self.num_frames * len(self.mean) * NUMBER_FORMATS[self.dtype].stored.itemsize

    @property
    def parts(self) -> range:
        """The numbers of the shards that were packed."""
        return range(self.first_part, self.first_part + self.num_parts)

    @cached_property
    def content(self) -> str:
        """A sha256 of all that can be read from the store: equal if two stores hold the same motion."""
        shards = [(shard.first, shard.rows, shard.sha256) for shard in self.shards]
        facts = (self.fingerprint, self.fps, self.dtype, layout_to_json(self.layout), shards, self.skeleton)
        digest = hashlib.sha256(json.dumps([*facts, self.clip_names, self.segments]).encode())
        for values in (self.starts, self.mean, self.std):
            digest.update(values.tobytes())
        return digest.hexdigest()

    def clip(self, name: str) -> NDArray[np.float32]:
        """Returns a clip's motion, float32 `[frames, columns]` in the data's own units, which must not be written to.

        For a float32 store it is a view of the file; other number formats are converted.
        """
        return self.read(*self.rows(name))

    def rows(self, name: str) -> tuple[int, int]:
        """Returns a clip's first row in the store and the one after its last; raises UserError for an unknown name."""
        try:
            index = self._index[name]
        except KeyError:
            raise UserError(
                f"{self.folder}: no clip {name}; it has {len(self.clip_names)}, such as "
                f"{', '.join(self.clip_names[:3])}"
            ) from None
        return int(self.starts[index]), int(self.starts[index + 1])

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Returns rows `start` up to `stop`, all of the same shard, float32 `[stop - start, columns]`, read-only."""
        index = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        first = self.shards[index].first
        return NUMBER_FORMATS[self.dtype].decode(self.shard_frames(index)[start - first : stop - first])

    def shard_frames(self, index: int) -> NDArray[Any]:
        """Returns a shard's memory map, `[rows, columns]` as it is on disk."""
        return self._maps[index]

    def report(self) -> dict[str, Any]:
        """Returns the report on the packed files; raises UserError if a store of an earlier version lost it."""
        if isinstance(self._report, str):
            raise UserError(f"{self.folder / REPORT}: {self._report}; prepare the store again")
        return self._report

    @cached_property
    def _shard_starts(self) -> NDArray[np.int64]:
        return np.array([shard.first for shard in self.shards], np.int64)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.clip_names)}


def is_store(path: Path) -> bool:
    """Returns whether a folder holds a store's table, whatever its state."""
    try:
        return (path / TABLE).is_file()
    except OSError:  # the folder may not be entered; reading it will report that
        return False


class DamagedStoreError(UserError):
    """A store that differs from what was written; `reason` says where and how."""

    def __init__(self, folder: Path, reason: str) -> None:
        self.reason = " ".join(reason.split())
        super().__init__(f"{folder}: a damaged store ({self.reason}); delete it and prepare it again")


class _RenewedError(Exception):
    """The store was replaced or removed while it was opened."""


def open_store(path: str | Path, check_files: bool = True) -> Store:
    """Opens a prepared store, all files in one consistent state; frames stay on disk until they are used.

    Args:
        check_files: open every file of frames and check it against the table; if False, none is opened.

    Raises:
        UserError: no store, a damaged one, or one of another version.
    """
    folder = Path(path)
    for _ in range(_TRIES):
        if not is_store(folder):
            raise UserError(f"{folder}: not a prepared store (it has no {TABLE}); ds-rvqvae prepare makes one")
        try:
            with _table_of(folder) as (handle, content):
                return _open(folder, handle, content, check_files)
        except _RenewedError:
            continue
        except OSError as error:
            raise DamagedStoreError(folder, f"{error.filename or folder}: {error.strerror or error}") from None
    raise UserError(f"{folder}: is being replaced again and again; wait until that ends")


@contextmanager
def _table_of(folder: Path) -> Iterator[tuple[int, BinaryIO]]:
    """Yields a folder's descriptor and its table; raises _RenewedError if the folder has another table at the end."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _RenewedError from None
    try:
        with _opened(TABLE, handle) as content:
            there = os.fstat(content.fileno())
            try:
                yield handle, content
            finally:
                # While the table is open, no other file can get its inode number.
                now = _stat_of(folder / TABLE)
                if now is None or (now.st_dev, now.st_ino) != (there.st_dev, there.st_ino):
                    raise _RenewedError
    finally:
        os.close(handle)


def _opened(file: str, folder: int) -> BinaryIO:
    try:
        return os.fdopen(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder), "rb")
    except FileNotFoundError:
        raise _RenewedError from None


def _stat_of(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _open(folder: Path, handle: int, content: BinaryIO, check_files: bool) -> Store:
    """Opens a store; raises UserError, or OSError if a file is missing."""
    try:
        table = parse_json(content.read())
        if not isinstance(table, dict) or table.get("format") != FORMAT:
            raise UserError(f"{folder / TABLE}: not the table of a ds_rvqvae store")
        if table.get("version") != VERSION:
            raise UserError(
                f"{folder}: a store of version {table.get('version')}, but {VERSION} is needed; prepare it again"
            )
        store = _read(folder, table)
        _check_shards(store)
        _check_parts(store, handle)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:  # numpy's own are ValueErrors
        raise DamagedStoreError(folder, f"{TABLE}: {type(error).__name__}: {error}") from None
    if check_files:
        store._maps.extend(_map_shards(store, handle))
    object.__setattr__(store, "_report", _report_of(table, handle))
    return store


def _read(folder: Path, table: dict[str, Any]) -> Store:
    """Returns the store that a table describes; raises ValueError, TypeError or KeyError if it is inconsistent."""
    names, starts = [str(clip["name"]) for clip in table["clips"]], [0]
    for clip in table["clips"]:
        if not whole_number(clip["stop"]) > starts[-1]:
            raise ValueError(f"clip {clip['name']} ends at row {clip['stop']}, after {starts[-1]}")
        starts.append(clip["stop"])
    if len(set(names)) != len(names) or not names:
        raise ValueError("there are no clips, or one occurs twice")
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, which is refused below
        mean, std = (np.asarray(table[key], np.float64).astype(np.float32) for key in ("mean", "std"))
    if mean.ndim != 1 or mean.shape != std.shape or not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise ValueError("mean and std are not equally many finite numbers")
    if (std < 0).any():
        raise ValueError("std holds a negative number")
    if not 0 < float(table["fps"]) < 1e5:
        raise ValueError(f"fps is {table['fps']}")
    rows = np.asarray(starts, np.int64)
    # Stores from before there were several versions have no such key.
    settings = {**table["settings"], "reading_version": table["settings"].get("reading_version", 1)}
    whole_number(settings["reading_version"])
    return Store(
        folder=folder,
        shards=read_shards(table["shards"]),
        starts=rows,
        clip_names=names,
        layout=layout_from_json(table["layout"], len(mean)),
        fps=float(table["fps"]),
        dtype=str(table["dtype"]),
        mean=mean,
        std=std,
        segments=read_segments(table["segments"], dict(zip(names, np.diff(rows).tolist(), strict=True))),
        # Stores of earlier versions have no such key; their rules do not distinguish the two cases.
        has_own_statistics=bool(table.get("has_own_statistics", False)),
        has_body_parts=bool(table["has_body_parts"]),
        skeleton=read_skeleton(table["skeleton"]),
        left_out=[LeftOut(**entry) for entry in table["left_out"]],
        settings=settings,
        fingerprint=str(table["fingerprint"]),
        num_parts=whole_number(table["num_parts"]),
        sources=[str(source) for source in table["sources"]],
        first_part=whole_number(table.get("first_part", 0)),
    )


def _check_shards(store: Store) -> None:
    """Raises ValueError or KeyError if a clip is in two shards, a shard occurs twice, or a number is wrong."""
    ends = {shard.first + shard.rows for shard in store.shards}
    if not store.shards or not ends <= set(store.starts.tolist()) or max(ends) != store.num_frames:
        raise ValueError("shards do not hold complete clips")
    if len({shard.file for shard in store.shards}) != len(store.shards):
        raise ValueError("a shard occurs twice")
    if not all(int(Path(shard.file).stem) in store.parts for shard in store.shards):  # mending would remove others
        raise ValueError(f"num_parts is {store.num_parts} from {store.first_part} on, but a shard is outside of it")
    _ = NUMBER_FORMATS[store.dtype]


def _check_parts(store: Store, folder: int) -> None:
    """Raises ValueError if the table gives more shards than there are files: other code loops over all of them."""
    most = len(store.shards)
    if store.num_parts > most:  # some shards have no usable clip
        with suppress(OSError), os.scandir(f"/proc/self/fd/{folder}/{SHARDS}") as entries:
            most = sum(1 for _ in entries)
    if not len(store.shards) <= store.num_parts <= most or store.first_part < 0:
        raise ValueError(f"num_parts is {store.num_parts} from {store.first_part} on, with {most} files in {SHARDS}")


def _map_shards(store: Store, folder: int) -> Iterator[NDArray[Any]]:
    """Yields every shard's memory map, checked against the table; raises UserError or OSError."""
    stored, columns = NUMBER_FORMATS[store.dtype].stored, len(store.mean)
    allow_files(len(store.shards))
    for shard in store.shards:
        try:
            yield map_matrix(shard.file, stored, shard.rows, columns, folder)
        except ValueError as error:
            raise DamagedStoreError(store.folder, f"{shard.file} {error}") from None
        except OSError as error:
            if error.errno == errno.EMFILE:
                words = f"{len(store.shards):,} shards are more files than this process may open"
                raise UserError(f"{store.folder}: {words}; raise the limit with ulimit -n") from None
            raise DamagedStoreError(store.folder, f"{shard.file}: {error.strerror or error}") from None


def _report_of(table: dict[str, Any], folder: int) -> dict[str, Any] | str:
    """Returns the report in a table (for earlier versions, the file beside it), or why it cannot be read."""
    report = table.get("report")
    try:
        if report is None:
            with _opened(REPORT, folder) as content:
                report = parse_json(content.read())
        check_report(report)
    except _RenewedError:
        return "cannot be read: No such file or directory"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        return f"damaged: {error}"
    found: dict[str, Any] = report
    return found


def write_table(store: Store, report: dict[str, Any]) -> None:
    """Writes `store.json` into the store's folder, which turns its shards into a store, and then `report.json`."""
    table = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": store.fingerprint,
        "sources": store.sources,
        "settings": store.settings,
        "fps": store.fps,
        "dtype": store.dtype,
        "has_own_statistics": store.has_own_statistics,
        "has_body_parts": store.has_body_parts,
        "layout": layout_to_json(store.layout),
        "skeleton": store.skeleton,
        "mean": store.mean.tolist(),
        "std": store.std.tolist(),
        "num_parts": store.num_parts,
        "first_part": store.first_part,
        "shards": [{"file": shard.file, "rows": shard.rows, "sha256": shard.sha256} for shard in store.shards],
        "clips": [
            {"name": name, "stop": stop} for name, stop in zip(store.clip_names, store.starts[1:].tolist(), strict=True)
        ],
        "segments": [segment._asdict() for segment in store.segments],
        "left_out": [entry._asdict() for entry in store.left_out],
        "report": report,
    }
    write_json(store.folder / TABLE, table, synced=True)
    write_json(store.folder / REPORT, report)  # not synced: after a crash, the table still has it
