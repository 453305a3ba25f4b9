"""The content of a store, in words and numbers."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ds_rvqvae.data.store.store import Store
from ds_rvqvae.motion.clip import SPLITS
from ds_rvqvae.motion.layout import Channels, Layout

_SEVERAL = {
    "rotation_6d": ("rotation", "rotations"),
    "position": ("position", "positions"),
    "relative_position": ("joint position", "joint positions"),
    "angle": ("joint angle", "joint angles"),
}
"""Kinds with one item per joint in a layout: the words for one and for several of them."""


def store_totals(store: Store) -> dict[str, Any]:
    """Returns clips, frames, hours, columns and frame rate, and clips, frames and hours per split."""
    return {
        "clips": len(store.clip_names),
        "frames": store.num_frames,
        "hours": store.hours,
        "columns": len(store.mean),
        "fps": store.fps,
        "splits": split_totals(store),
    }


def split_totals(store: Store) -> dict[str, dict[str, float]]:
    """Returns `{split: {"clips", "frames", "hours"}}`; a clip that is cut by time counts in each of its splits."""
    totals: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        segments = [segment for segment in store.segments if segment.split == split]
        if segments:
            frames = sum(segment.stop - segment.start for segment in segments)
            clips = len({segment.name for segment in segments})
            totals[split] = {"clips": clips, "frames": frames, "hours": frames / store.fps / 3600}
    return totals


def layout_words(layout: Layout) -> str:
    """Returns a layout in one line: `55 rotations, translation, 100 expressions`."""
    return ", ".join(_words(kind, list(parts)) for kind, parts in groupby(layout, key=lambda part: part.kind))


def channel_groups(layout: Layout) -> list[dict[str, Any]]:
    """Returns, for neighbouring items of one kind in a layout, their number and their columns, `[from, to)`."""
    groups = [(kind, list(parts)) for kind, parts in groupby(layout, key=lambda part: part.kind)]
    return [
        {"kind": kind, "channels": len(parts), "columns": [parts[0].start, parts[-1].stop]} for kind, parts in groups
    ]


def _words(kind: str, parts: Sequence[Channels]) -> str:
    if kind in _SEVERAL:
        return f"{len(parts)} {_SEVERAL[kind][len(parts) > 1]}"
    if kind == "translation":
        return "translation" if len(parts) == 1 else f"{len(parts)} translations"
    return ", ".join(f"{part.width} {part.name}" for part in parts)


def hours_words(hours: float) -> str:
    """Returns a duration in words: `1.25 hours`, `12.0 minutes`."""
    return f"{hours:,.2f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def clips_of_rows(store: Store, first: int, stop: int) -> list[str]:
    """Returns the names of the clips to which rows `first` up to `stop` belong."""
    begin = int(np.searchsorted(store.starts, first, side="right")) - 1
    end = int(np.searchsorted(store.starts, stop, side="left"))
    return store.clip_names[begin:end]


def some(names: Sequence[str], most: int = 3) -> str:
    """Returns the first of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
