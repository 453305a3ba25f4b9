"""From packed shards to a store: one list of clips, their split, their statistics, and the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.store.number_formats import NUMBER_FORMATS
from ds_rvqvae.data.store.report import ColumnFacts, extreme_columns, make_report
from ds_rvqvae.data.store.shards import ShardFacts, shard_files
from ds_rvqvae.data.store.splits import ClipLength, Segment, by_hash, split_clips
from ds_rvqvae.data.store.statistics import RunningStatistics
from ds_rvqvae.data.store.store import REPORT, SHARDS, Shard, write_json, write_table
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import sync
from ds_rvqvae.motion.clip import LeftOut, Quarantined
from ds_rvqvae.motion.layout import Layout


def quarantine_of(facts: Sequence[ShardFacts]) -> list[Quarantined]:
    """All that was left out, in order."""
    return [entry for shard in facts for entry in shard.quarantined]


def own_statistics(reader: Reader, layout: Layout) -> tuple[np.ndarray, np.ndarray] | None:
    """The data's own mean and std, float32 `[columns]` each, where it brings them; raises UserError."""
    found = reader.statistics()
    if found is not None and any(values.shape != (layout[-1].stop,) for values in found):
        mean, std = found
        raise UserError(
            f"{reader.path}: Mean.npy and Std.npy have {mean.size} and {std.size} columns, the motion {layout[-1].stop}"
        )
    return found


def assemble(
    folder: Path,
    reader: Reader,
    layout: Layout,
    facts: Sequence[ShardFacts],
    settings: dict[str, Any],
    fingerprint: str,
    sources: Sequence[str],
) -> None:
    """Writes the report and then the table of a store whose shards, at least one with frames, lie in `folder`.

    Raises:
        UserError: the data's own statistics are of another width.
    """
    clips = [ClipLength(*clip) for shard in facts for clip in shard.clips]
    stops = np.cumsum([clip.frames for clip in clips]).tolist()
    segments = split_clips(clips, settings["split"])
    dtype = settings["store_dtype"]
    measured = _training_statistics(folder, facts, clips, segments, settings["split"], layout, dtype)
    mean, std = own_statistics(reader, layout) or measured
    quarantined, shards = quarantine_of(facts), _shards(facts)
    report = make_report(
        source=", ".join(sources),
        format=reader.format,
        settings=settings,
        layout=layout,
        fps=reader.config.fps,
        takes=[take for shard in facts for take in shard.takes],
        segments=segments,
        columns=_column_facts(facts, layout),
        quarantined=quarantined,
        notes=reader.notes,
    )
    # Not shard by shard: the disk writes while the processor packs, and this waits for the rest.
    for shard in shards:
        sync(folder / shard.file)
    write_json(folder / REPORT, report)
    write_table(
        folder,
        shards=shards,
        num_parts=len(facts),
        clips=[(clip.name, stop) for clip, stop in zip(clips, stops, strict=True)],
        segments=segments,
        layout=layout,
        fps=reader.config.fps,
        dtype=dtype,
        mean=mean,
        std=std,
        has_body_parts=reader.has_body_parts,
        skeleton=next((shard.skeleton for shard in facts if shard.skeleton is not None), None),
        left_out=[LeftOut(entry.file, entry.reason) for entry in quarantined if entry.frames is None],
        settings=settings,
        fingerprint=fingerprint,
        sources=sources,
    )


def _shards(facts: Sequence[ShardFacts]) -> list[Shard]:
    shards, first = [], 0
    for index, shard in enumerate(facts):
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


def _training_statistics(
    folder: Path,
    facts: Sequence[ShardFacts],
    clips: Sequence[ClipLength],
    segments: Sequence[Segment],
    mode: str,
    layout: Layout,
    dtype: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of the training split, or of all frames where nothing trains (a test set to be scored)."""
    trains = [segment for segment in segments if segment.split == "train"]
    if not trains:
        return _merged(facts, "all").mean_and_std()
    if mode == "auto" and all(clip.split is not None for clip in clips):
        return _merged(facts, "own").mean_and_std()
    if mode == "time" or (mode == "auto" and len(clips) == 1):
        return _merged(facts, "time").mean_and_std()
    names = {segment.name for segment in trains}
    if names == {clip.name for clip in clips if by_hash(clip.name) == "train"}:
        return _merged(facts, "hash").mean_and_std()
    return _statistics_of(folder, facts, names, layout, dtype).mean_and_std()


def _statistics_of(
    folder: Path, facts: Sequence[ShardFacts], names: set[str], layout: Layout, dtype: str
) -> RunningStatistics:
    """Of the clips named, read again: a few clips, of which the hash puts none where some are needed."""
    running = RunningStatistics(layout[-1].stop)
    for index, shard in enumerate(facts):
        row = 0
        for name, frames, _ in shard.clips:
            if name in names:
                stored = np.load(shard_files(folder / SHARDS, index)[0], mmap_mode="r", allow_pickle=False)
                running.add(NUMBER_FORMATS[dtype].decode(np.asarray(stored[row : row + frames])))
            row += frames
    return running


def _column_facts(facts: Sequence[ShardFacts], layout: Layout) -> ColumnFacts:
    """Of all frames; extreme values with the clips that they are in."""
    everything = _merged(facts, "all")
    mean, std = everything.mean_and_std()
    extremes = extreme_columns(mean, std, everything.minimum, everything.maximum, layout)
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
