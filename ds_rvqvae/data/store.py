"""The packed store: all frames of a data set in one memory-mapped file, built once and reused.

A store is a folder of `frames.npy` (float32 `[frames, columns]`), `mean.npy` and `std.npy` (float32 `[columns]`, of the
training split or the data's own) and `store.json` (layout, frame rate, clips, split, clips left out, settings).
"""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ds_rvqvae.data.clips import LeftOut
from ds_rvqvae.data.layout import Layout, layout_from_json, layout_to_json
from ds_rvqvae.data.splits import Segment
from ds_rvqvae.errors import UserError

FORMAT, VERSION = "ds_rvqvae store", 1
FRAMES, MEAN, STD, TABLE = "frames.npy", "mean.npy", "std.npy", "store.json"


@dataclass(frozen=True, eq=False)
class Store:
    """A data set on disk, read through a memory map."""

    folder: Path
    frames: np.ndarray
    """float32 `[frames, columns]`, read-only, in the data's own units; clips follow one another."""
    starts: np.ndarray
    """int64 `[clips + 1]`: the row of `frames` where each clip starts, and where the last one ends."""
    clip_names: list[str]
    layout: Layout
    fps: float
    mean: np.ndarray
    """float32 `[columns]`: of the training split (of all frames where it has none), or the data's own."""
    std: np.ndarray
    """float32 `[columns]`, as measured: fixed columns have 0."""
    segments: list[Segment]
    has_body_parts: bool
    """Whether a body part selects columns; other data give all of them."""
    left_out: list[LeftOut]
    settings: dict[str, Any]
    fingerprint: str

    def clip(self, name: str) -> np.ndarray:
        """A clip's motion, float32 `[frames, columns]` in the data's own units: a read-only view of the file."""
        start, stop = self.rows(name)
        return self.frames[start:stop]

    def rows(self, name: str) -> tuple[int, int]:
        """First row of a clip in `frames` and the one after its last; raises UserError for an unknown name."""
        try:
            index = self._index[name]
        except KeyError:
            raise UserError(
                f"{self.folder}: no clip {name}; it has {len(self.clip_names)}, such as "
                f"{', '.join(self.clip_names[:3])}"
            ) from None
        return int(self.starts[index]), int(self.starts[index + 1])

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.clip_names)}


def is_store(path: Path) -> bool:
    """Whether a folder holds a store's table, whatever its state."""
    try:
        return (path / TABLE).is_file()
    except OSError:  # a folder that may not be entered; whoever reads it says so
        return False


def open_store(path: str | Path) -> Store:
    """Opens a prepared store; frames stay on disk until they are used.

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
        return _read(folder, table)
    except OSError as error:
        raise _damaged(folder, error.strerror or str(error)) from None
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        EOFError,
    ) as error:  # json's and numpy's own errors are ValueErrors
        raise _damaged(folder, f"{type(error).__name__}: {error}") from None


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(f"{folder}: a damaged store ({' '.join(reason.split())}); delete it and prepare it again")


def _read(folder: Path, table: dict[str, Any]) -> Store:
    """Reads a store's files; raises ValueError and its like where they do not fit together."""
    # A plain view of the map: slicing np.memmap itself costs several times as much.
    frames = np.asarray(np.load(folder / FRAMES, mmap_mode="r", allow_pickle=False))
    mean, std = (np.load(folder / name, allow_pickle=False) for name in (MEAN, STD))
    names = [clip["name"] for clip in table["clips"]]
    starts = np.asarray([0, *(clip["stop"] for clip in table["clips"])], np.int64)
    segments = [Segment(**segment) for segment in table["segments"]]
    lengths = dict(zip(names, np.diff(starts).tolist(), strict=True))
    if frames.dtype != np.float32 or frames.ndim != 2 or len(frames) != starts[-1]:
        raise ValueError(f"{FRAMES} is {frames.dtype} {list(frames.shape)}, the table has {starts[-1]} frames")
    if any(values.shape != frames.shape[1:] or values.dtype != np.float32 for values in (mean, std)):
        raise ValueError(f"{MEAN} and {STD} do not have {frames.shape[1]} float32 columns")
    if len(lengths) != len(names) or not names or any(start >= stop for start, stop in pairwise(starts.tolist())):
        raise ValueError("clips overlap, are empty, or stand twice")
    if any(not 0 <= segment.start < segment.stop <= lengths[segment.name] for segment in segments):
        raise ValueError("a segment lies outside its clip")
    return Store(
        folder=folder,
        frames=frames,
        starts=starts,
        clip_names=names,
        layout=layout_from_json(table["layout"], frames.shape[1]),
        fps=float(table["fps"]),
        mean=mean,
        std=std,
        segments=segments,
        has_body_parts=bool(table["has_body_parts"]),
        left_out=[LeftOut(**entry) for entry in table["left_out"]],
        settings=dict(table["settings"]),
        fingerprint=str(table["fingerprint"]),
    )


def write_table(
    folder: Path,
    *,
    layout: Layout,
    fps: float,
    clips: list[tuple[str, int]],
    segments: list[Segment],
    has_body_parts: bool,
    left_out: list[LeftOut],
    settings: dict[str, Any],
    fingerprint: str,
) -> None:
    """Writes `store.json`; `clips` are names and the row after each one's last frame."""
    table = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint,
        "settings": settings,
        "fps": fps,
        "has_body_parts": has_body_parts,
        "layout": layout_to_json(layout),
        "clips": [{"name": name, "stop": stop} for name, stop in clips],
        "segments": [segment._asdict() for segment in segments],
        "left_out": [entry._asdict() for entry in left_out],
    }
    (folder / TABLE).write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
