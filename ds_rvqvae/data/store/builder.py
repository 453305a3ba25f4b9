"""The builder of a store: it packs the shards first, then writes the table and report that turn them into a store."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.finding import count_files
from ds_rvqvae.data.formats.npz import map_matrix
from ds_rvqvae.data.store.packing import Packed, pack_all
from ds_rvqvae.data.store.places import hash_of
from ds_rvqvae.data.store.report import ColumnFacts, Findings, extreme_columns, make_report
from ds_rvqvae.data.store.shards import ShardFacts, ShardPacker, ShardPlan
from ds_rvqvae.data.store.splits import (
    ClipLength,
    Segment,
    by_hash,
    mixed_note,
    split_added,
    split_clips,
    train_frames_by_time,
)
from ds_rvqvae.data.store.statistics import RunningStatistics
from ds_rvqvae.data.store.store import VERSION, Store, write_table
from ds_rvqvae.data.store.table import NUMBER_FORMATS, SHARDS, Shard, shard_files
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import sync
from ds_rvqvae.motion.clip import LeftOut, Quarantined
from ds_rvqvae.motion.layout import Layout, layout_to_json

_SYNCED_AT_ONCE = 16
"""Files that are synced at the same time, because the file system writes them together."""


def quarantine_of(facts: Sequence[ShardFacts]) -> list[Quarantined]:
    """Returns all files and spans that were left out, in order."""
    return [entry for shard in facts for entry in shard.quarantined]


def counted_files(reader: Reader, facts: Sequence[ShardFacts], leave_out: Collection[Path]) -> dict[str, Any]:
    """Returns the counts of `count_files` for the files of these shards, and notes on them, as JSON objects."""
    read = {take.file for shard in facts for take in shard.takes if take.clips}
    count = count_files(reader, read, {entry.file for entry in quarantine_of(facts)}, leave_out)
    said = {"notes": list(reader.notes), "readings": list(reader.readings)}
    return {**count._asdict(), "passed_over": [group._asdict() for group in count.passed_over], **said}


class StoreBuilder:
    """The builder of a store from motion files.

    Args:
        reader: of the files.
        layout: of the store's columns; clips with another layout are left out.
        folder: of the store.
        settings: the result of `settings_of`; the store keeps it.
        first_part: the number of its first shard.
    """

    def __init__(
        self, reader: Reader, layout: Layout, folder: Path, settings: dict[str, Any], first_part: int = 0
    ) -> None:
        self.reader, self.layout, self.folder, self.settings = reader, layout, folder, settings
        self._first_part = first_part
        self._reading_version = int(settings.get("reading_version", 1))  # stores up to 0.2 have no such key

    def own_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Returns the data's own mean and std, float32 `[columns]` each, or None; raises UserError."""
        found = self.reader.statistics()
        width = self.layout[-1].stop
        if found is not None and any(values.shape != (width,) for values in found):
            mean, std = found
            files = " and ".join(file.name for file in self.reader.statistics_files)
            numbers = f"{mean.size} and {std.size} columns, but the motion has {width}"
            raise UserError(f"{self.reader.path}: {files} have {numbers}")
        return found

    def packing_key(self) -> str:
        """Returns a hash of all that shards depend on, except the files' content and the lists of splits."""
        facts = [VERSION, self.reader.key, self.reader.fps, self.settings, layout_to_json(self.layout)]
        return hash_of([*facts, self.reader.reading_facts()])

    def pack(self, plans: Sequence[ShardPlan], workers: int, progress: bool, earlier: Path | None = None) -> Packed:
        """Packs the shards that the folder does not have yet; raises as `pack_all`.

        Args:
            earlier: the folder of the shards that the plans' `kept` refer to.
        """
        packer = ShardPacker(self.reader, self.layout, self.folder / SHARDS, self.packing_key(), earlier)
        return pack_all(packer, plans, workers, progress)

    def finish(
        self,
        facts: Sequence[ShardFacts],
        fingerprint: str,
        sources: Sequence[str],
        file_counts: Sequence[dict[str, Any]] = (),
        earlier: Store | None = None,
    ) -> None:
        """Writes the table, with the report in it, for the shards in the folder; at least one must have frames.

        Args:
            facts: of every shard, in order.
            sources: the data that the shards were packed from.
            file_counts: the results of `counted_files` for these data.
            earlier: the store to which the last shards are added; it keeps the settings that it was made with.

        Raises:
            UserError: the data's own statistics have another number of columns.
        """
        clips = [ClipLength(*clip) for shard in facts for clip in shard.clips]
        segments, of_splits = self._segments(clips, earlier)
        given, of_statistics = self._given_statistics(facts, earlier)
        mean, std = given or self._training_statistics(facts, segments)
        quarantined, skeletons = quarantine_of(facts), [shard.skeleton for shard in facts if shard.skeleton is not None]
        store = Store(
            folder=self.folder,
            shards=_shards(facts, self._first_part),
            starts=np.cumsum([0, *(clip.frames for clip in clips)]),
            clip_names=[clip.name for clip in clips],
            layout=self.layout,
            fps=self.reader.fps if earlier is None else earlier.fps,
            dtype=self.settings["store_dtype"],
            mean=mean,
            std=std,
            has_own_statistics=given is not None if earlier is None else earlier.has_own_statistics,
            segments=segments,
            has_body_parts=(self.reader if earlier is None else earlier).has_body_parts,
            skeleton=next(iter(skeletons), None) if earlier is None else earlier.skeleton,
            left_out=[LeftOut(entry.file, entry.reason) for entry in quarantined if entry.frames is None],
            settings=self.settings,
            fingerprint=fingerprint,
            num_parts=len(facts),
            sources=list(sources),
            first_part=self._first_part,
        )
        found = Findings(
            self.reader.format if earlier is None else earlier.report().get("format", self.reader.format),
            [take for shard in facts for take in shard.takes],
            quarantined,
            self._column_facts(facts),
            notes=(*_of_earlier(file_counts, "notes"), *self.reader.notes, *of_statistics, *of_splits),
            file_counts=file_counts,
            readings=tuple(dict.fromkeys((*_of_earlier(file_counts, "readings"), *self.reader.readings))),
        )
        report = make_report(store, found)
        # Not after each shard: the disk writes while the processor packs, and only the rest is waited for here.
        with ThreadPoolExecutor(_SYNCED_AT_ONCE) as threads:
            list(threads.map(sync, (self.folder / SHARDS).iterdir()))
        sync(self.folder / SHARDS)
        write_table(store, report)

    def _segments(self, clips: Sequence[ClipLength], earlier: Store | None) -> tuple[list[Segment], tuple[str, ...]]:
        """Returns the clips' splits, and notes on them."""
        rules = self.settings["split"], self._reading_version
        notes, segments = mixed_note(clips, *rules), split_clips(clips, *rules)
        if earlier is None:
            return segments, notes
        kept = split_added(clips, earlier.segments, *rules)
        there = set(earlier.clip_names)
        if [own for own in kept if own.name in there] != [own for own in segments if own.name in there]:
            notes = (*notes, "earlier clips keep their splits; preparing all clips together would split them otherwise")
        return kept, notes

    def _given_statistics(
        self, facts: Sequence[ShardFacts], earlier: Store | None
    ) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]] | None, tuple[str, ...]]:
        """Returns mean and std that are not measured, or None, and notes on them.

        They are the data's own, or those of an earlier store that was made with such.
        """
        if earlier is None:
            return self.own_statistics(), ()
        files = " and ".join(file.name for file in self.reader.statistics_files)
        there = earlier.mean, earlier.std
        if earlier.has_own_statistics or not self._measured(facts[: earlier.num_parts], earlier):
            if files and self._are_own(there):
                return there, ()
            not_used = f"{files} of the added data: not used; " if files else ""
            return there, (f"{not_used}the store keeps the mean and std that it was made with",)
        not_used = f"{files} of the added data: not used; mean and std are those of the training clips of all data"
        return None, (not_used,) if files else ()

    def _measured(self, facts: Sequence[ShardFacts], store: Store) -> bool:
        """Returns whether a store's mean and std are those of its training clips: stores up to 0.2 do not say so."""
        mean, std = self._training_statistics(facts, store.segments)
        most = 1e-5 * (std + np.abs(mean)) + 1e-12
        return bool((np.abs(mean - store.mean) <= most).all() and (np.abs(std - store.std) <= most).all())

    def _are_own(self, statistics: tuple[NDArray[np.float32], NDArray[np.float32]]) -> bool:
        """Returns whether the data have the same mean and std of their own; False if their files are damaged."""
        try:
            own = self.reader.statistics()
        except UserError:
            return False
        return own is not None and all(map(np.array_equal, own, statistics))

    def _training_statistics(
        self, facts: Sequence[ShardFacts], segments: Sequence[Segment]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns mean and std of the training split, or of all frames if it is empty (a test set to be scored)."""
        trains: dict[str, list[tuple[int, int]]] = {}
        for segment in segments:
            if segment.split == "train":
                trains.setdefault(segment.name, []).append((segment.start, segment.stop))
        if not trains:
            return _merged(facts, "all").mean_and_std()
        running = RunningStatistics(self.layout[-1].stop)
        for index, shard in enumerate(facts, self._first_part):
            here = {name: trains[name] for name, _, _ in shard.clips if name in trains}
            known = (key for key, spans in self._spans_of(shard).items() if spans == here)
            if (training_set := next(known, None)) is not None:
                running.merge(shard.statistics[training_set])
            else:
                self._add_spans(running, index, shard, here)
        return running.mean_and_std()

    def _spans_of(self, shard: ShardFacts) -> dict[str, dict[str, list[tuple[int, int]]]]:
        """Returns each clip's frames in each of a shard's training sets, except the set of all frames."""
        version = self._reading_version
        return {
            "own": {name: [(0, frames)] for name, frames, split in shard.clips if split == "train"},
            "hash": {name: [(0, frames)] for name, frames, _ in shard.clips if by_hash(name, version) == "train"},
            "time": {name: [(0, cut)] for name, frames, _ in shard.clips if (cut := train_frames_by_time(frames))},
        }

    def _add_spans(
        self, running: RunningStatistics, index: int, shard: ShardFacts, spans: dict[str, list[tuple[int, int]]]
    ) -> None:
        """Adds spans of a shard's clips that match none of its training sets; reads them from its file."""
        numbers, row = NUMBER_FORMATS[self.settings["store_dtype"]], 0
        file = shard_files(self.folder / SHARDS, index)[0]
        stored = map_matrix(file, numbers.stored, shard.rows, self.layout[-1].stop)
        for name, frames, _ in shard.clips:
            for start, stop in spans.get(name, ()):
                running.add(numbers.decode(stored[row + start : row + stop]))
            row += frames

    def _column_facts(self, facts: Sequence[ShardFacts]) -> ColumnFacts:
        """Returns statistics of all frames, and the extreme values with the clips that hold them."""
        everything = _merged(facts, "all")
        mean, std = everything.mean_and_std()
        extremes = extreme_columns(mean, std, everything.minimum, everything.maximum, self.layout)
        for extreme in extremes:
            column = extreme["index"]
            for key, values, clip_in in (
                ("minimum", everything.minimum, "smallest_in"),
                ("maximum", everything.maximum, "largest_in"),
            ):
                shard = next(
                    shard
                    for shard in facts
                    if shard.rows and getattr(shard.statistics["all"], key)[column] == values[column]
                )
                extreme[f"{key}_in"] = shard.clips[getattr(shard, clip_in)[column]][0]
        return ColumnFacts(mean, std, everything.minimum, everything.maximum, extremes)


def _of_earlier(file_counts: Sequence[dict[str, Any]], key: str) -> list[str]:
    """Returns the notes or readings of all data sets except the last one."""
    return [words for count in file_counts[:-1] for words in count.get(key, ())]


def _shards(facts: Sequence[ShardFacts], first_part: int) -> list[Shard]:
    shards, first = [], 0
    for index, shard in enumerate(facts, first_part):
        if shard.rows:
            file = shard_files(Path(SHARDS), index)[0].as_posix()
            shards.append(Shard(file, first, shard.rows, shard.sha256))
            first += shard.rows
    return shards


def _merged(facts: Sequence[ShardFacts], training_set: str) -> RunningStatistics:
    merged = RunningStatistics(len(facts[0].smallest_in))
    for shard in facts:
        merged.merge(shard.statistics[training_set])
    return merged
