"""Packing clips into the shards of a store: the work of one process.

Which clips a shard takes, and every byte of it, depend on the data and the settings alone, not on who packs it or when;
a shard whose `.json` is there is whole.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.npz import write_header
from ds_rvqvae.data.store.number_formats import NUMBER_FORMATS
from ds_rvqvae.data.store.report import TakeFacts
from ds_rvqvae.data.store.rules import cut_take
from ds_rvqvae.data.store.splits import by_hash, train_frames_by_time
from ds_rvqvae.data.store.statistics import RunningStatistics
from ds_rvqvae.data.store.store import HEADER_BYTES, write_json
from ds_rvqvae.files import sha256_of, whole_file
from ds_rvqvae.motion.clip import Clip, ClipError, Quarantined
from ds_rvqvae.motion.layout import Layout

SMALLEST_SHARD, LARGEST_SHARD, FEWEST_SHARDS = 8 << 20, 512 << 20, 256
"""Bytes of source files that a shard takes: a data set's 256th part, within these."""
TRAINING_SETS = ("own", "time", "hash", "all")
"""Of which frames each shard keeps statistics, since the split is known only once all clips are."""


@dataclass(frozen=True)
class ShardPlan:
    """Which clips go into a shard."""

    index: int
    names: list[str]
    refused: Sequence[Quarantined] = ()
    """What never came to packing; it is noted in the first shard."""


class Work(NamedTuple):
    """What packing cost."""

    clips: int
    frames: int
    wall_s: float
    cpu_s: float
    source_bytes: int


def plan_shards(names: Sequence[str], weights: Sequence[int], first: int = 0) -> list[ShardPlan]:
    """Cuts a list of clips into shards of about equal bytes, numbered from `first`."""
    size = min(max(sum(weights) // FEWEST_SHARDS, SMALLEST_SHARD), LARGEST_SHARD)
    shards: list[ShardPlan] = []
    filled = 0
    for name, weight in zip(names, weights, strict=True):
        if not shards or (filled + weight > size and filled):
            shards.append(ShardPlan(first + len(shards), []))
            filled = 0
        shards[-1].names.append(name)
        filled += max(weight, 1)
    return shards


def shard_files(folder: Path, index: int) -> tuple[Path, Path]:
    """A shard's frames and its facts."""
    return folder / f"{index:05d}.npy", folder / f"{index:05d}.json"


class ShardFacts:
    """What went into a shard, what did not, and what its numbers are like: the content of its `.json`."""

    def __init__(self, columns: int) -> None:
        self.clips: list[tuple[str, int, str | None]] = []
        """Names, frames, and the data's own split."""
        self.takes: list[TakeFacts] = []
        self.quarantined: list[Quarantined] = []
        self.statistics = {name: RunningStatistics(columns) for name in TRAINING_SETS}
        self.smallest_in: NDArray[np.int64] = np.full(columns, -1)
        self.largest_in: NDArray[np.int64] = np.full(columns, -1)
        """Which of `clips` holds each column's smallest and largest value."""
        self.skeleton: dict[str, Any] | None = None
        self.sha256 = ""

    @property
    def rows(self) -> int:
        """Frames of all clips."""
        return sum(frames for _, frames, _ in self.clips)

    def add(self, clip: Clip, reading_version: int = 2) -> None:
        """Takes a clip's numbers, as they are on disk; its hash is that of `reading_version`."""
        everything = self.statistics["all"]
        cut = train_frames_by_time(len(clip.motion))
        parts = [RunningStatistics(clip.motion.shape[1]) for _ in range(2)]
        parts[0].add(clip.motion[:cut])
        parts[1].add(clip.motion[cut:])
        self.smallest_in[np.minimum(*(part.minimum for part in parts)) < everything.minimum] = len(self.clips)
        self.largest_in[np.maximum(*(part.maximum for part in parts)) > everything.maximum] = len(self.clips)
        self.statistics["time"].merge(parts[0])
        parts[0].merge(parts[1])
        everything.merge(parts[0])
        if clip.split == "train":
            self.statistics["own"].merge(parts[0])
        if by_hash(clip.name, reading_version) == "train":
            self.statistics["hash"].merge(parts[0])
        self.clips.append((clip.name, len(clip.motion), clip.split))

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "rows": self.rows,
            "sha256": self.sha256,
            "clips": [list(clip) for clip in self.clips],
            "takes": [list(take) for take in self.takes],
            "quarantined": [list(entry) for entry in self.quarantined],
            "skeleton": self.skeleton,
            "smallest_in": self.smallest_in.tolist(),
            "largest_in": self.largest_in.tolist(),
            "statistics": {name: running.to_json() for name, running in self.statistics.items()},
        }

    @classmethod
    def read(cls, file: Path) -> "ShardFacts":
        """What a shard's `.json` says; raises OSError, or ValueError and its like where it is damaged."""
        values = json.loads(file.read_text(encoding="utf-8"))
        facts = cls(len(values["smallest_in"]))
        facts.clips = [(str(name), int(frames), split) for name, frames, split in values["clips"]]
        facts.takes = [
            TakeFacts(source, fps, frames, tuple(tuple(clip) for clip in clips), tuple(notes))
            for source, fps, frames, clips, notes in values["takes"]
        ]
        facts.quarantined = [
            Quarantined(source, rule, None if frames is None else tuple(frames), reason)
            for source, rule, frames, reason in values["quarantined"]
        ]
        facts.statistics = {name: RunningStatistics.from_json(values["statistics"][name]) for name in TRAINING_SETS}
        facts.smallest_in, facts.largest_in = np.array(values["smallest_in"]), np.array(values["largest_in"])
        facts.skeleton, facts.sha256 = values["skeleton"], str(values["sha256"])
        return facts


class ShardPacker:
    """Packs shards of one store: what each process that packs holds.

    Args:
        reader: of the motion files.
        layout: of the store; clips with another one are left out.
        folder: the shards are written into.
    """

    def __init__(self, reader: Reader, layout: Layout, folder: Path) -> None:
        self.reader, self.layout, self.folder = reader, layout, folder
        self._numbers = NUMBER_FORMATS[reader.config.store_dtype]

    def pack(self, plan: ShardPlan, advance: Callable[[int], None] = lambda frames: None) -> Work:
        """Packs a shard's clips; its `.json` is written last.

        Args:
            advance: called after each file with the frames that came of it.
        """
        started, cpu = time.perf_counter(), time.process_time()
        facts = ShardFacts(self.layout[-1].stop)
        facts.quarantined.extend(plan.refused)
        frames_file, facts_file = shard_files(self.folder, plan.index)
        with whole_file(frames_file) as content:
            self._write_header(content, 0)
            for name in plan.names:
                before = facts.rows
                self._pack_clip(name, content, facts)
                advance(facts.rows - before)
            self._write_header(content, facts.rows)
        if facts.rows:
            facts.sha256 = sha256_of(frames_file)
        else:
            frames_file.unlink()
        write_json(facts_file, facts.to_json())
        source_bytes = sum(map(self.reader.weight, plan.names))
        return Work(len(plan.names), facts.rows, time.perf_counter() - started, time.process_time() - cpu, source_bytes)

    def _pack_clip(self, name: str, content: BinaryIO, facts: ShardFacts) -> None:
        """Packs what is good of one file, and notes what is not."""
        file = self.reader.file_of(name)
        try:
            take = self.reader.take(name)
            if take.layout != self.layout:
                reason = f"its {take.layout[-1].stop} columns are not laid out as those of most clips"
                facts.quarantined.append(Quarantined(file, "layout", None, reason))
                return
            clips, quarantined = cut_take(self.reader, take, self.reader.config.rules)
        except ClipError as error:
            facts.quarantined.append(Quarantined(file, "unreadable", None, " ".join(str(error).split())))
            return
        facts.quarantined.extend(quarantined)
        for clip in clips:
            stored = self._numbers.encode(np.ascontiguousarray(clip.motion, "<f4"))
            content.write(stored.data)
            facts.add(replace(clip, motion=self._numbers.decode(stored)), self.reader.config.reading_version)
        if facts.skeleton is None and clips:
            facts.skeleton = take.skeleton
        made = tuple((clip.name, len(clip.motion), clip.split) for clip in clips)
        facts.takes.append(TakeFacts(file, float(take.fps), len(take.motion), made, tuple(take.notes)))

    def _write_header(self, content: BinaryIO, rows: int) -> None:
        content.seek(0)
        write_header(content, self._numbers.stored, rows, self.layout[-1].stop)
        assert content.tell() == HEADER_BYTES
