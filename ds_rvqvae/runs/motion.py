"""List the clips that a checkpoint was trained on, and compare them with other motion. Without torch.

A checkpoint keeps the list in a file of its own, which has one line per clip and moves with the checkpoint. No frames
are read for it: a store's shards know the content of the files that they were packed from, and their own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ds_rvqvae.config.batch_sizes import window_sizes
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.store.report import shortened
from ds_rvqvae.data.store.shards import ShardFacts
from ds_rvqvae.data.store.table import Shard
from ds_rvqvae.files import read_json
from ds_rvqvae.runs.checkpoints import keeps
from ds_rvqvae.text import counted

MOTION_FILE = "motion.json"
"""File in the folder of a checkpoint."""
_SHOWN = 3
"""Number of clip names shown for each kind of change."""


class ClipFacts(NamedTuple):
    """The facts by which a clip is recognised."""

    frames: int
    source: str | None
    """The content of its file, from `files.content_of`; None if the file holds several clips, or the store does not
    know it because a version up to 0.2 made it."""
    shard: str
    """The sha256 of the shard with its frames."""
    row: int
    """The row of its first frame in the shard."""
    packing: str | None
    """A hash of the settings and reading rules that its frames depend on, besides its file. None if not known."""
    segments: tuple[tuple[str, int, int], ...]
    """Its segments: split, first frame, frame after the last."""
    windows: int
    """Number of training windows."""


@dataclass(frozen=True)
class MotionTable:
    """The clips that a run is trained and scored on, in the order of their store."""

    clips: dict[str, ClipFacts]

    @classmethod
    def of(cls, data: MotionData) -> "MotionTable":
        """Returns the table of a run's motion."""
        segments: dict[str, list[tuple[str, int, int]]] = {}
        for segment in data.store.segments:
            segments.setdefault(segment.name, []).append((segment.split, segment.start, segment.stop))
        windows: dict[str, int] = {}
        sizes, stride = window_sizes(data.config), data.config.window_stride
        for segment in data.segments("train"):
            frames = segment.stop - segment.start
            count = sum(max(0, (frames - size) // stride + 1) for size in sizes)
            windows[segment.name] = windows.get(segment.name, 0) + count
        clips = {}
        for shard, first, stop in _clips_by_shard(data):
            sources, packing = _sources_of(data.store.folder, shard, data.store.clip_names[first:stop])
            for index in range(first, stop):
                name, (row, end) = data.store.clip_names[index], data.store.starts[index : index + 2].tolist()
                known = (end - row, sources.get(name), shard.sha256, row - shard.first, packing)
                clips[name] = ClipFacts(*known, tuple(segments.get(name, ())), windows.get(name, 0))
        return cls(clips)

    @classmethod
    def read(cls, checkpoint: Path) -> "MotionTable | None":
        """Reads a checkpoint's table; None if it is damaged, or missing because a version up to 0.3 saved it."""
        if not keeps(checkpoint, MOTION_FILE):
            return None
        try:
            clips = {}
            for shard in read_json(checkpoint / MOTION_FILE)["shards"]:
                row = 0
                for name, frames, source, segments, windows in shard["clips"]:
                    known = (int(frames), source, str(shard["sha256"]), row, shard["packing"])
                    clips[str(name)] = ClipFacts(*known, tuple(map(tuple, segments)), int(windows))
                    row += frames
            return cls(clips)
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def to_bytes(self) -> bytes:
        """Returns the table as a checkpoint keeps it: JSON, one line per clip."""
        shards: dict[str, list[str]] = {}
        for name, clip in self.clips.items():
            head = f'{{"sha256": {json.dumps(clip.shard)}, "packing": {json.dumps(clip.packing)}, "clips": [\n'
            line = json.dumps([name, clip.frames, clip.source, clip.segments, clip.windows])
            shards.setdefault(head, []).append(line)
        texts = [head + ",\n".join(lines) + "]}" for head, lines in shards.items()]
        return f'{{"shards": [\n{",".join(texts)}]}}\n'.encode()

    @property
    def windows(self) -> int:
        """The number of training windows of all clips."""
        return sum(clip.windows for clip in self.clips.values())


def _clips_by_shard(data: MotionData) -> Iterator[tuple[Shard, int, int]]:
    """Yields each shard with the index of its first clip and the index after its last."""
    starts = data.store.starts
    for shard in data.store.shards:
        first, stop = starts.searchsorted([shard.first, shard.first + shard.rows]).tolist()
        yield shard, first, stop


def _sources_of(folder: Path, shard: Shard, names: list[str]) -> tuple[dict[str, str], str | None]:
    """Returns, by clip, the content of the files that a shard was packed from, and the hash of its reading settings.

    Empty and None if the shard does not say, or another one has replaced it.
    """
    try:
        facts = ShardFacts.read((folder / shard.file).with_suffix(".json"))
    except (OSError, LookupError, TypeError, ValueError):
        return {}, None
    of_clips = [file.content for file in facts.files for _ in range(file.clips)]
    if facts.sha256 != shard.sha256 or [name for name, _, _ in facts.clips] != names or len(of_clips) != len(names):
        return {}, None
    return {name: content for name, content in zip(names, of_clips, strict=True) if content}, facts.key or None


@dataclass
class MotionChange:
    """The differences between the motion of a checkpoint and of now."""

    changed: list[str] = field(default_factory=list)
    """Clips with other frames."""
    packed: list[str] = field(default_factory=list)
    """Clips of the same files whose frames were read or stored with other settings or rules."""
    untold: list[str] = field(default_factory=list)
    """Clips of the same length in another shard; it is not known whether they are the same."""
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    """New names, by old name."""
    moved: list[str] = field(default_factory=list)
    """Clips in another split, or divided into splits at other frames."""
    reordered: bool = False
    """Whether the order of the clips differs, so that each batch has other windows."""
    clips_then: int = 0
    windows_then: int = 0
    windows_now: int = 0
    gone: int = 0
    """Training windows of then that are missing or changed now."""
    new: int = 0
    """Training windows of now that did not exist then."""

    @classmethod
    def between(cls, before: MotionTable, now: MotionTable) -> "MotionChange":
        """Returns how the motion of `now` differs from `before`."""
        change = cls(clips_then=len(before.clips), windows_then=before.windows, windows_now=now.windows)
        for name, clip in now.clips.items():
            there = before.clips.get(name)
            if there is None:
                change.added.append(name)
                continue
            kind = _difference(there, clip)
            if kind is not None:
                getattr(change, kind).append(name)
            elif there.segments != clip.segments:
                change.moved.append(name)
        change.removed = [name for name in before.clips if name not in now.clips]
        change._find_renamed(before, now)
        for name in (*change.changed, *change.packed, *change.untold, *change.moved):
            change.gone += before.clips[name].windows
            change.new += now.clips[name].windows
        for name, new in change.renamed.items():
            if before.clips[name].segments != now.clips[new].segments:
                change.gone += before.clips[name].windows
                change.new += now.clips[new].windows
        change.gone += sum(before.clips[name].windows for name in change.removed)
        change.new += sum(now.clips[name].windows for name in change.added)
        common = [name for name in now.clips if name in before.clips]
        change.reordered = common != [name for name in before.clips if name in now.clips]
        return change

    def _find_renamed(self, before: MotionTable, now: MotionTable) -> None:
        """Moves clips from added and removed to renamed if their content is the same."""
        left: dict[tuple[Any, ...], list[str]] = {}
        for name in reversed(self.removed):
            for key in _keys_of(before.clips[name]):
                left.setdefault(key, []).append(name)
        for name in self.added:
            for old in (left.get(key, []) for key in _keys_of(now.clips[name])):
                while old and old[-1] in self.renamed:
                    old.pop()
                if old:
                    self.renamed[old.pop()] = name
                    break
        taken = set(self.renamed.values())
        self.removed = [name for name in self.removed if name not in self.renamed]
        self.added = [name for name in self.added if name not in taken]

    def __bool__(self) -> bool:
        return bool(self.reordered or any(names for names, _ in self._said()))

    def __str__(self) -> str:
        """Returns the change in words, with the first clips of each kind."""
        texts = [f"{_count(names)} {what} ({shortened(names, _SHOWN)})" for names, what in self._said() if names]
        if self.reordered:
            texts.append("the clips are in another order")
        then = f"{self.gone:,} of the {self.windows_then:,} training windows of then"
        now = f"{self.new:,} of the {self.windows_now:,} now"
        return f"{', '.join(texts)}, of {self.clips_then:,} then ({then} and {now})"

    def _said(self) -> list[tuple[list[str], str]]:
        return [
            (self.changed, "changed"),
            (self.added, "added"),
            (self.removed, "removed"),
            ([f"{old} is now {new}" for old, new in self.renamed.items()], "renamed"),
            (self.moved, "in another split"),
            (self.packed, "read or stored with other settings or rules"),
            (self.untold, "that may have changed, which their store does not tell"),
        ]


def _difference(before: ClipFacts, now: ClipFacts) -> str | None:
    """Returns the field of `MotionChange` for a clip that exists in both; None if its frames are the same."""
    if before.frames != now.frames:
        return "changed"
    if (before.shard, before.row) == (now.shard, now.row):
        return None
    if before.source is None or now.source is None:
        return "untold"
    if before.source != now.source:
        return "changed"
    return None if before.packing is not None and before.packing == now.packing else "packed"


def _keys_of(clip: ClipFacts) -> list[tuple[Any, ...]]:
    """Returns the keys by which a clip is recognised under another name."""
    by_place = (clip.shard, clip.row, clip.frames)
    return [by_place] if clip.source is None else [by_place, (clip.source, clip.frames)]


def _count(names: list[str]) -> str:
    return counted(len(names), "clip")


def changed_motion(checkpoint: Path, data: MotionData) -> MotionChange | None:
    """Returns how motion differs from that of a checkpoint; None if the checkpoint has no intact list of clips."""
    before = MotionTable.read(checkpoint)
    return None if before is None else MotionChange.between(before, MotionTable.of(data))
