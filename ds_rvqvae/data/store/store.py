"""The packed store: all frames of a data set in memory-mapped files, built once, reused and added to.

A store is a folder of `shards/00000.npy`, … (frames `[rows, columns]`, clips one after another, none in two shards),
`shards/00000.json`, … (what went into each shard and its statistics), `store.json` (layout, frame rate, clips, split,
mean and std, checksums) and `report.json` (what was found in the files, and what was left out and why).
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.store.splits import Segment
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import LeftOut
from ds_rvqvae.motion.layout import Layout, layout_from_json, layout_to_json

FORMAT, VERSION = "ds_rvqvae store", 2
TABLE, REPORT, SHARDS = "store.json", "report.json", "shards"
_SHARD_FILE = re.compile(r"\d{5,}\.(npy|json)")
_OF_VERSION_1 = {"frames.npy", "mean.npy", "std.npy"}
HEADER_BYTES = 128
"""Of every shard's `.npy` header, which numpy pads so that it keeps its length while the first axis grows."""


class NumberFormat(NamedTuple):
    """Numbers on disk and in memory."""

    stored: np.dtype[Any]
    encode: Callable[[NDArray[np.float32]], NDArray[Any]]
    """float32 to what is stored."""
    decode: Callable[[NDArray[Any]], NDArray[np.float32]]
    """What is stored to float32."""


_LARGEST_BFLOAT16 = np.float32(2.0**128 - 2.0**120)
"""Float32 has larger ones, which would be rounded to infinity."""


def _as_is(values: NDArray[Any]) -> NDArray[Any]:
    return values


def _to_float16(values: NDArray[np.float32]) -> NDArray[Any]:
    limit = np.finfo(np.float16).max
    return np.clip(values, -limit, limit).astype("<f2")


def _from_float16(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[Any]:
    """The upper half of a float32, rounded to the nearest, ties to even; values are finite."""
    bits = np.clip(values, -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16).astype("<f4", copy=False).view("<u4")
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _from_bfloat16(values: NDArray[Any]) -> NDArray[np.float32]:
    return (values.astype(np.uint32) << 16).view(np.float32)


NUMBER_FORMATS = {
    "float32": NumberFormat(np.dtype("<f4"), _as_is, _as_is),
    "float16": NumberFormat(np.dtype("<f2"), _to_float16, _from_float16),
    "bfloat16": NumberFormat(np.dtype("<u2"), _to_bfloat16, _from_bfloat16),
}
"""How numbers are kept on disk, by `rvqvae.data.store_dtype`. numpy has no bfloat16: its bits stand in a `uint16`."""


class Shard(NamedTuple):
    """One file of frames."""

    file: str
    """Relative to the store."""
    first: int
    """Its first row, counted over the whole store."""
    rows: int
    sha256: str
    """Of the whole file."""


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
    """Of the numbers on disk: a key of `NUMBER_FORMATS`."""
    mean: NDArray[np.float32]
    """float32 `[columns]`: of the training split (of all frames where it has none), or the data's own."""
    std: NDArray[np.float32]
    """float32 `[columns]`, as measured: fixed columns have 0; or the data's own."""
    has_own_statistics: bool
    """Whether mean and std came with the data."""
    segments: list[Segment]
    has_body_parts: bool
    """Whether SMPL-X's body parts select columns; other data give all of them."""
    skeleton: dict[str, Any] | None
    """`joint_names`, `parents` and `offsets` (metres) of the first clip's figure, where its file has one."""
    left_out: list[LeftOut]
    settings: dict[str, Any]
    fingerprint: str
    num_parts: int
    """How many shards were packed; those of which nothing was good have no file."""
    sources: list[str]
    """The data it was made of: the first, and what was appended."""
    _maps: dict[int, NDArray[Any]] = field(default_factory=dict, repr=False)

    @property
    def num_frames(self) -> int:
        """Frames of all clips."""
        return int(self.starts[-1])

    @property
    def hours(self) -> float:
        """Length of all clips."""
        return self.num_frames / self.fps / 3600

    @property
    def nbytes(self) -> int:
        """Bytes of all frames on disk."""
        return self.num_frames * len(self.mean) * NUMBER_FORMATS[self.dtype].stored.itemsize

    def clip(self, name: str) -> NDArray[np.float32]:
        """A clip's motion, float32 `[frames, columns]` in the data's own units, not to be written to.

        Of a float32 store it is a view of the file; the others are converted.
        """
        return self.read(*self.rows(name))

    def rows(self, name: str) -> tuple[int, int]:
        """First row of a clip over the whole store and the one after its last; raises UserError for an unknown name."""
        try:
            index = self._index[name]
        except KeyError:
            raise UserError(
                f"{self.folder}: no clip {name}; it has {len(self.clip_names)}, such as "
                f"{', '.join(self.clip_names[:3])}"
            ) from None
        return int(self.starts[index]), int(self.starts[index + 1])

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` up to `stop` of one shard (so, of one clip), float32 `[stop - start, columns]`, read-only."""
        index = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        first = self.shards[index].first
        return NUMBER_FORMATS[self.dtype].decode(self.shard_frames(index)[start - first : stop - first])

    def shard_frames(self, index: int) -> NDArray[Any]:
        """A shard's memory map, `[rows, columns]` as it is on disk."""
        if index not in self._maps:
            # A plain view of the map: slicing np.memmap itself costs several times as much.
            frames = np.load(self.folder / self.shards[index].file, mmap_mode="r", allow_pickle=False)
            self._maps[index] = np.asarray(frames)
        return self._maps[index]

    def report(self) -> dict[str, Any]:
        """What `report.json` says; raises UserError where it cannot be read."""
        try:
            report: dict[str, Any] = json.loads((self.folder / REPORT).read_text(encoding="utf-8"))
            return report
        except OSError as error:
            raise UserError(f"{self.folder / REPORT}: cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise UserError(f"{self.folder / REPORT}: damaged: {error}") from None

    @cached_property
    def _shard_starts(self) -> NDArray[np.int64]:
        return np.array([shard.first for shard in self.shards], np.int64)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.clip_names)}


def is_store(path: Path) -> bool:
    """Whether a folder holds a store's table, whatever its state."""
    try:
        return (path / TABLE).is_file()
    except OSError:  # a folder that may not be entered; whoever reads it says so
        return False


def holds_only_a_store(folder: Path) -> bool:
    """Whether everything in a folder belongs to a store, of this version or the first, so that it may be replaced."""
    if not (folder / TABLE).is_file():
        return False
    others = [entry for entry in folder.iterdir() if entry.name not in {TABLE, REPORT, *_OF_VERSION_1}]
    return all(
        entry.name == SHARDS and entry.is_dir() and all(_SHARD_FILE.fullmatch(file.name) for file in entry.iterdir())
        for entry in others
    )


def open_store(path: str | Path, check_files: bool = True) -> Store:
    """Opens a prepared store; frames stay on disk until they are used.

    Args:
        check_files: whether every file of frames has to be there, as long as the table says.

    Raises:
        UserError: no store, a damaged one, or one of another version.
    """
    folder = Path(path)
    if not is_store(folder):
        raise UserError(f"{folder}: no prepared store (it has no {TABLE}); ds-rvqvae prepare makes one")
    try:
        table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
        if not isinstance(table, dict) or table.get("format") != FORMAT:
            raise UserError(f"{folder / TABLE}: not the table of a store of ds_rvqvae")
        if table.get("version") != VERSION:
            raise UserError(
                f"{folder}: a store of version {table.get('version')}, this is version {VERSION}; prepare it again"
            )
        return _read(folder, table, check_files)
    except OSError as error:
        raise _damaged(folder, f"{error.filename or folder}: {error.strerror or error}") from None
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:  # json's and numpy's own errors are ValueErrors
        raise _damaged(folder, f"{type(error).__name__}: {error}") from None


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(f"{folder}: a damaged store ({' '.join(reason.split())}); delete it and prepare it again")


def _read(folder: Path, table: dict[str, Any], check_files: bool) -> Store:
    """A store by its table; raises ValueError and its like where that does not fit the files or itself."""
    names = [str(clip["name"]) for clip in table["clips"]]
    starts = np.asarray([0, *(clip["stop"] for clip in table["clips"])], np.int64)
    segments = [Segment(**segment) for segment in table["segments"]]
    mean, std = (np.asarray(table[key], np.float32) for key in ("mean", "std"))
    if mean.ndim != 1 or mean.shape != std.shape or not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise ValueError("mean and std do not have as many finite numbers")
    if len(set(names)) != len(names) or not names or any(start >= stop for start, stop in pairwise(starts.tolist())):
        raise ValueError("clips overlap, are empty, or stand twice")
    lengths = dict(zip(names, np.diff(starts).tolist(), strict=True))
    if any(not 0 <= segment.start < segment.stop <= lengths[segment.name] for segment in segments):
        raise ValueError("a segment lies outside its clip")
    if not 0 < float(table["fps"]) < 1e5:
        raise ValueError(f"fps is {table['fps']}")
    store = Store(
        folder=folder,
        shards=_shards(table["shards"]),
        starts=starts,
        clip_names=names,
        layout=layout_from_json(table["layout"], len(mean)),
        fps=float(table["fps"]),
        dtype=str(table["dtype"]),
        mean=mean,
        std=std,
        segments=segments,
        # Stores of before do not say, and are read by the rules of then, which made no difference.
        has_own_statistics=bool(table.get("has_own_statistics", False)),
        has_body_parts=bool(table["has_body_parts"]),
        skeleton=table["skeleton"],
        left_out=[LeftOut(**entry) for entry in table["left_out"]],
        # Stores of before there were several versions do not say.
        settings={**table["settings"], "reading_version": table["settings"].get("reading_version", 1)},
        fingerprint=str(table["fingerprint"]),
        num_parts=int(table["num_parts"]),
        sources=[str(source) for source in table["sources"]],
    )
    _check_shards(store, check_files)
    return store


def _shards(entries: Sequence[dict[str, Any]]) -> list[Shard]:
    shards: list[Shard] = []
    for entry in entries:
        file, rows = entry["file"], entry["rows"]
        if type(rows) is not int or rows < 1 or not re.fullmatch(rf"{SHARDS}/\d{{5,}}\.npy", file):
            raise ValueError(f"a shard is {file!r} with {rows!r} rows")
        shards.append(Shard(file, shards[-1].first + shards[-1].rows if shards else 0, rows, str(entry["sha256"])))
    return shards


def _check_shards(store: Store, check_files: bool) -> None:
    """Raises OSError or ValueError where files are not there or not as long, or a clip lies in two of them."""
    ends = {shard.first + shard.rows for shard in store.shards}
    if not store.shards or not ends <= set(store.starts.tolist()) or max(ends) != store.num_frames:
        raise ValueError("shards do not hold whole clips")
    row = len(store.mean) * NUMBER_FORMATS[store.dtype].stored.itemsize
    for shard in store.shards if check_files else ():
        size = (store.folder / shard.file).stat().st_size
        if size != HEADER_BYTES + shard.rows * row:
            raise ValueError(f"{shard.file} has {size:,} bytes, not those of {shard.rows:,} frames")


def write_table(store: Store) -> None:
    """Writes `store.json` into the store's folder, which makes a store of the shards there."""
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
        "shards": [{"file": shard.file, "rows": shard.rows, "sha256": shard.sha256} for shard in store.shards],
        "clips": [
            {"name": name, "stop": stop} for name, stop in zip(store.clip_names, store.starts[1:].tolist(), strict=True)
        ],
        "segments": [segment._asdict() for segment in store.segments],
        "left_out": [entry._asdict() for entry in store.left_out],
    }
    write_json(store.folder / TABLE, table)


def write_json(file: Path, values: Any) -> None:
    """Writes one JSON file whole, a line an entry of its lists."""
    text = json.dumps(values, indent=1, ensure_ascii=False)
    with whole_file(file) as content:
        # File names may hold bytes that are no UTF-8, which Python keeps as surrogates: written as JSON's own escapes.
        content.write(text.encode(errors="backslashreplace") + b"\n")
