"""Packs clips into the shards of a store: the work of one process.

The clips of a shard, and all its bytes, depend on the data and the settings alone, not on the process or the time. A
shard is complete if its `.json` exists.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.npz import HEADER_BYTES, map_matrix, write_header
from ds_rvqvae.data.store.report import TakeFacts
from ds_rvqvae.data.store.rules import cut_take
from ds_rvqvae.data.store.splits import by_hash, train_frames_by_time
from ds_rvqvae.data.store.statistics import RunningStatistics
from ds_rvqvae.data.store.table import NUMBER_FORMATS, link_or_copy, shard_files, whole_number, write_json
from ds_rvqvae.files import content_of, read_json, sha256_of, whole_file
from ds_rvqvae.motion.clip import Clip, ClipError, Quarantined, whole_name
from ds_rvqvae.motion.layout import Layout

SMALLEST_SHARD, LARGEST_SHARD, FEWEST_SHARDS = 8 << 20, 512 << 20, 256
"""A shard takes 1/256 of a data set's bytes of source files, within these limits."""
TRAINING_SETS = ("own", "time", "hash", "all")
"""Sets of frames whose statistics each shard keeps, because the split is known only when all clips are."""


@dataclass(frozen=True)
class ShardPlan:
    """The clips that go into a shard."""

    index: int
    names: list[str]
    refused: Sequence[Quarantined] = ()
    """Files rejected before packing; the first shard notes them."""
    kept: Mapping[str, int] = field(default_factory=dict)
    """Clips whose files have not changed since the earlier store was packed, with their shards there."""


class Work(NamedTuple):
    """The work of packing."""

    clips: int
    """Files that were read."""
    frames: int
    """Frames of their clips."""
    wall_s: float
    cpu_s: float
    source_bytes: int
    kept: int = 0
    """Files that were not read: their clips were copied from the earlier store."""


class FileFacts(NamedTuple):
    """The facts by which a shard recognises a file, and the number of the file's entries in each of its lists."""

    name: str
    content: str | None
    """`content_of` the file, just before it was read; None if the clip has no file of its own."""
    split: str | None
    clips: int
    takes: int
    quarantined: int
    skeleton: int | None
    """Index of its clips' skeleton in the shard's `skeletons`."""


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


class ShardFacts:
    """The content of a shard's `.json`: its files and clips, what was left out, and statistics of its numbers."""

    def __init__(self, columns: int, reading_version: int = 2) -> None:
        self.reading_version = reading_version  # its rules split clips by their names
        self.key = ""
        """Hash of the settings and of all else, except the files, that the shard depends on."""
        self.files: list[FileFacts] = []
        """Empty in shards from before files were recognised by content."""
        self.clips: list[tuple[str, int, str | None]] = []
        """Name, frames, and the data's own split of each clip."""
        self.takes: list[TakeFacts] = []
        self.quarantined: list[Quarantined] = []
        self.statistics = {name: RunningStatistics(columns) for name in TRAINING_SETS}
        self.smallest_in: NDArray[np.int64] = np.full(columns, -1)
        self.largest_in: NDArray[np.int64] = np.full(columns, -1)
        """Index in `clips` of the clip with each column's smallest and largest value."""
        self.skeletons: list[dict[str, Any]] = []
        """The clips' skeletons, each once."""
        self.sha256 = ""

    @property
    def refused(self) -> list[Quarantined]:
        """Entries for files that were rejected before packing."""
        return self.quarantined[: len(self.quarantined) - sum(file.quarantined for file in self.files)]

    @property
    def skeleton(self) -> dict[str, Any] | None:
        """The skeleton of the first clip that has one."""
        return self.skeletons[0] if self.skeletons else None

    @property
    def rows(self) -> int:
        """The number of frames of all clips."""
        return sum(frames for _, frames, _ in self.clips)

    def add(self, clip: Clip) -> None:
        """Adds a clip, with its numbers as they are on disk."""
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
        if by_hash(clip.name, self.reading_version) == "train":
            self.statistics["hash"].merge(parts[0])
        self.clips.append((clip.name, len(clip.motion), clip.split))

    def add_file(
        self,
        name: str,
        content: str | None,
        split: str | None,
        clips: Sequence[Clip],
        take: TakeFacts | None,
        quarantined: Sequence[Quarantined],
        skeleton: dict[str, Any] | None,
    ) -> None:
        """Adds a file's clips, with their numbers as they are on disk, and everything else known about the file."""
        for clip in clips:
            self.add(clip)
        index = None
        if clips and skeleton is not None:
            if skeleton not in self.skeletons:
                self.skeletons.append(skeleton)
            index = self.skeletons.index(skeleton)
        self.takes.extend([] if take is None else [take])
        self.quarantined.extend(quarantined)
        counts = len(clips), 0 if take is None else 1, len(quarantined)
        self.files.append(FileFacts(name, content, split, *counts, index))

    def to_json(self) -> dict[str, Any]:
        """Returns all facts as JSON objects."""
        return {
            "rows": self.rows,
            "sha256": self.sha256,
            "key": self.key,
            "files": [list(file) for file in self.files],
            "clips": [list(clip) for clip in self.clips],
            "takes": [list(take) for take in self.takes],
            "quarantined": [list(entry) for entry in self.quarantined],
            "skeletons": self.skeletons,
            "smallest_in": self.smallest_in.tolist(),
            "largest_in": self.largest_in.tolist(),
            "statistics": {name: running.to_json() for name, running in self.statistics.items()},
        }

    @classmethod
    def read(cls, file: Path) -> "ShardFacts":
        """Reads a shard's `.json`; raises OSError, or ValueError if it is damaged."""
        values = read_json(file)
        try:
            facts = cls._of(values)
            files_by_name(facts)
            return facts
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:80]}") from None

    @classmethod
    def _of(cls, values: Any) -> "ShardFacts":
        facts = cls(columns := len(values["smallest_in"]))
        facts.clips = [(str(name), whole_number(frames), split) for name, frames, split in values["clips"]]
        facts.takes = [
            TakeFacts(source, fps, frames, tuple(tuple(clip) for clip in clips), tuple(notes))
            for source, fps, frames, clips, notes in values["takes"]
        ]
        facts.quarantined = [
            Quarantined(source, rule, None if frames is None else tuple(frames), reason)
            for source, rule, frames, reason in values["quarantined"]
        ]
        facts.statistics = {name: RunningStatistics.from_json(values["statistics"][name]) for name in TRAINING_SETS}
        places = np.array([values["smallest_in"], values["largest_in"]]).astype(np.int64, casting="safe")
        facts.smallest_in, facts.largest_in = places
        facts.files = [FileFacts(*file) for file in values.get("files", ())]
        facts.skeletons = values.get("skeletons") or list(filter(None, [values.get("skeleton")]))
        facts.key, facts.sha256 = str(values.get("key", "")), str(values["sha256"])
        counts = [count for file in facts.files for count in (file.clips, file.takes, file.quarantined)]
        if any(whole_number(count) < 0 for count in counts) or any(frames < 1 for _, frames, _ in facts.clips):
            raise ValueError("clips without frames")
        widths = {len(statistics.minimum) for statistics in facts.statistics.values()}
        if places.max(initial=-1) >= len(facts.clips) or widths != {columns}:
            raise ValueError("statistics of other clips or columns")
        return facts


class EarlierShards:
    """The shards of a store that will be replaced; clips of unchanged files are copied from them."""

    def __init__(self, folder: Path, stored: np.dtype[Any], columns: int) -> None:
        self.folder, self._stored, self._columns = folder, stored, columns
        self._opened: dict[int, _OpenedShard | None] = {}

    def shard(self, index: int) -> "_OpenedShard | None":
        """Returns one of the shards, which is read once; None if it is damaged."""
        if index not in self._opened:
            self._opened[index] = self._open(index)
        return self._opened[index]

    def _open(self, index: int) -> "_OpenedShard | None":
        frames_file, facts_file = shard_files(self.folder, index)
        try:
            facts = ShardFacts.read(facts_file)
            # Damaged frames would get a new checksum in the new store, and the damage would never be found.
            if facts.rows and sha256_of(frames_file) != facts.sha256:
                return None
            frames = (
                map_matrix(frames_file, self._stored, facts.rows, self._columns) if facts.rows else np.empty((0, 0))
            )
            return _OpenedShard((frames_file, facts_file), facts, files_by_name(facts), frames)
        except (OSError, LookupError, ValueError):
            return None


class _Found(NamedTuple):
    """A file's entries in a shard's lists, and its first row."""

    file: FileFacts
    clips: slice
    takes: slice
    quarantined: slice
    first_row: int


class _OpenedShard(NamedTuple):
    paths: tuple[Path, Path]
    facts: ShardFacts
    files: dict[str, _Found]
    frames: NDArray[Any]


def files_by_name(facts: ShardFacts) -> dict[str, _Found]:
    """Returns each file's entries in a shard's lists; raises ValueError if clips do not belong to the files."""
    found: dict[str, _Found] = {}
    clips = takes = row = 0
    quarantined = len(facts.refused)
    for file in facts.files:
        starts = (clips, file.clips), (takes, file.takes), (quarantined, file.quarantined)
        of_clips, of_takes, left_out = (slice(start, start + count) for start, count in starts)
        found[file.name] = _Found(file, of_clips, of_takes, left_out, row)
        made = facts.clips[of_clips]
        if len(made) != file.clips or any(file.name not in (name, whole_name(name)) for name, _, _ in made):
            raise ValueError(f"{file.name} has other clips than its own")
        row += sum(frames for _, frames, _ in made)
        clips, takes, quarantined = clips + file.clips, takes + file.takes, quarantined + file.quarantined
    return found


class ShardPacker:
    """The packer of one store's shards; each packing process has its own.

    Args:
        reader: of the motion files.
        layout: of the store; clips with another layout are left out.
        folder: the folder into which the shards are written.
        key: hash of all that shards depend on, except the files; the shards keep it.
        earlier: the folder of the shards that plans' `kept` refer to.
    """

    def __init__(
        self, reader: Reader, layout: Layout, folder: Path, key: str = "", earlier: Path | None = None
    ) -> None:
        self.reader, self.layout, self.folder, self.key = reader, layout, folder, key
        self._numbers = NUMBER_FORMATS[reader.config.store_dtype]
        self.earlier = None if earlier is None else EarlierShards(earlier, self._numbers.stored, layout[-1].stop)

    def pack(self, plan: ShardPlan, advance: Callable[[int], None] = lambda frames: None) -> Work:
        """Packs a shard's clips; its `.json` is written last.

        Args:
            advance: called after each file with the number of frames packed from it.
        """
        started, cpu = time.perf_counter(), time.process_time()
        if self._take_shard(plan):
            for _ in plan.names:
                advance(0)
            return Work(0, 0, time.perf_counter() - started, time.process_time() - cpu, 0, len(plan.names))
        facts = ShardFacts(self.layout[-1].stop, self.reader.config.reading_version)
        facts.key = self.key
        facts.quarantined.extend(plan.refused)
        frames_file, facts_file = shard_files(self.folder, plan.index)
        read, frames = [], 0
        with whole_file(frames_file) as content:
            self._write_header(content, 0)
            for name in plan.names:
                before = facts.rows
                if name not in plan.kept or not self._copy_clip(name, plan.kept[name], content, facts):
                    self._pack_clip(name, content, facts)
                    read.append(name)
                    frames += facts.rows - before
                advance(facts.rows - before)
            self._write_header(content, facts.rows)
        if facts.rows:
            facts.sha256 = sha256_of(frames_file)
        else:
            frames_file.unlink()
        write_json(facts_file, facts.to_json())
        source_bytes, kept = sum(map(self.reader.weight, read)), len(plan.names) - len(read)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        return Work(len(read), frames, wall, cpu, source_bytes, kept)

    def _take_shard(self, plan: ShardPlan) -> bool:
        """Links or copies a shard of the earlier store if it is made from the same files; returns whether it did."""
        index = plan.kept.get(plan.names[0], -1)
        before = None if self.earlier is None or index < 0 else self.earlier.shard(index)
        now = [(name, self.reader.split_of(name)) for name in plan.names if plan.kept.get(name) == index]
        if before is None or now != [(file.name, file.split) for file in before.facts.files]:
            return False
        if len(now) != len(plan.names) or before.facts.refused != list(plan.refused):
            return False
        for file, place in zip(before.paths, shard_files(self.folder, plan.index), strict=True):
            if not file.exists():  # a shard without usable clips has no file of frames
                continue
            link_or_copy(file, place)  # shards are never written to again
        return True

    def _pack_clip(self, name: str, content: BinaryIO, facts: ShardFacts) -> None:
        """Packs the usable clips of one file, and notes what is left out."""
        file, source = self.reader.file_of(name), self.reader.source_of(name)
        # Before reading: if the file changes while it is read, the next check will see another content.
        known_by = None if source is None else content_of(source)
        split = self.reader.split_of(name)
        try:
            take = self.reader.take(name)
            assert known_by is None or take.split == split, f"{type(self.reader).__name__}.split_of"
            if take.layout != self.layout:
                reason = f"its {take.layout[-1].stop} columns have another layout than those of most clips"
                quarantined = [Quarantined(file, "layout", None, reason)]
                facts.add_file(name, known_by, split, [], None, quarantined, None)
                return
            clips, quarantined = cut_take(self.reader, take, self.reader.config.rules)
        except ClipError as error:
            quarantined = [Quarantined(file, "unreadable", None, " ".join(str(error).split()))]
            facts.add_file(name, known_by, split, [], None, quarantined, None)
            return
        kept = []
        for clip in clips:
            stored = self._numbers.encode(np.ascontiguousarray(clip.motion, "<f4"))
            content.write(stored.data)
            kept.append(replace(clip, motion=self._numbers.decode(stored)))
        made = tuple((clip.name, len(clip.motion), clip.split) for clip in clips)
        take_facts = TakeFacts(file, float(take.fps), len(take.motion), made, tuple(take.notes))
        facts.add_file(name, known_by, split, kept, take_facts, quarantined, take.skeleton)

    def _copy_clip(self, name: str, index: int, content: BinaryIO, facts: ShardFacts) -> bool:
        """Copies a file's clips and facts from the earlier shard `index`; returns whether that was possible.

        The result equals packing the file again. Only the split may be new, because other files decide it.
        """
        shard = None if self.earlier is None else self.earlier.shard(index)
        if shard is None:
            return False
        before, found = shard.facts, shard.files[name]
        split, clips, start = self.reader.split_of(name), [], found.first_row
        for clip_name, frames, _ in before.clips[found.clips]:
            stored = shard.frames[start : start + frames]
            content.write(np.ascontiguousarray(stored).data)
            clips.append(Clip(clip_name, self._numbers.decode(stored), self.reader.fps, self.layout, split))
            start += frames
        made = tuple((clip.name, len(clip.motion), split) for clip in clips)
        take = next((replaced._replace(clips=made) for replaced in before.takes[found.takes]), None)
        skeleton = None if found.file.skeleton is None else before.skeletons[found.file.skeleton]
        facts.add_file(name, found.file.content, split, clips, take, before.quarantined[found.quarantined], skeleton)
        return True

    def _write_header(self, content: BinaryIO, rows: int) -> None:
        content.seek(0)
        write_header(content, self._numbers.stored, rows, self.layout[-1].stop)
        assert content.tell() == HEADER_BYTES
