"""The report on prepared motion files: `report.json`, and the same as text for a terminal."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.store.splits import Segment
from ds_rvqvae.data.store.store import Store
from ds_rvqvae.motion.clip import SPLITS, Quarantined
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.motion.rotations import DECIMATION_TOLERANCE, decimation
from ds_rvqvae.process.tables import Column, Table
from ds_rvqvae.process.terminal import PLAIN, Block, Line, Piece, Terminal
from ds_rvqvae.text import counted

EXTREME = 20.0
"""Values more than this many standard deviations from the mean are called extreme."""
_MOST_EXTREMES = 20
_MOST_ODD_RATES, _ODD_SHARE = 3, 0.02
"""Up to this number of unusual rates, and this fraction of the files per rate, a note names the files."""
_CONSTANT = 1e-5
"""Largest range of a constant column, relative to its mean if that is over 1: interpolation rounds."""


class TakeFacts(NamedTuple):
    """The facts about one file and its clips."""

    file: str
    fps: float
    """The file's own frame rate."""
    frames: int
    """Frames in the file."""
    clips: tuple[tuple[str, int, str | None], ...]
    """Name, frames at the store's frame rate, and the data's own split of each clip made from it."""
    notes: tuple[str, ...] = ()


class ColumnFacts(NamedTuple):
    """Statistics of all frames, `[columns]` each."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    extremes: list[dict[str, Any]]
    """The result of `extreme_columns`; `minimum_in` and `maximum_in` may name the clips with the values."""


class Findings(NamedTuple):
    """The facts that packing found in motion files."""

    format: str
    """The files' format, in words."""
    takes: Sequence[TakeFacts]
    """The files that could be read, including those without a usable clip."""
    quarantined: Sequence[Quarantined]
    """Files and spans that were left out, in order."""
    columns: ColumnFacts
    notes: Sequence[str] = ()
    """Notes about all the data."""
    file_counts: Sequence[dict[str, Any]] = ()
    """How many files of each data set were read, left out and passed over, as `count_files` gives it."""
    readings: Sequence[str] = ()
    """How the files' numbers were read."""


def make_report(store: Store, found: Findings) -> dict[str, Any]:
    """Returns the content of `report.json`: the same for the same data, however they were packed."""
    fps, takes, quarantined, counts = store.fps, found.takes, found.quarantined, found.file_counts
    frames = sum(count for take in takes for _, count, _ in take.clips)
    rates = _frame_rates(takes, fps)
    notes = (*found.notes, *_odd_rates(takes))
    constant = _constant_columns(found.columns)
    return {
        "source": ", ".join(store.sources),
        "format": found.format,
        "files": len({take.file for take in takes} | {entry.file for entry in quarantined}),
        "files_seen": sum(count["seen"] for count in counts),
        "files_read": sum(count["read"] for count in counts),
        "files_left_out": sum(count["left_out"] for count in counts),
        "files_passed_over": sum(group["files"] for count in counts for group in count["passed_over"]),
        "file_counts": list(counts),
        "clips": sum(len(take.clips) for take in takes),
        "frames": frames,
        "hours": _hours(frames, fps),
        "fps": fps,
        "columns": store.layout[-1].stop if store.layout else 0,
        "readings": list(found.readings),
        "frame_rates": rates,
        "resampled": sum(rate["files"] for rate in rates if rate["resampled"]),
        "splits": _splits(store.segments, fps),
        "constant_column_count": len(constant),
        "constant_columns": column_ranges(constant, store.layout),
        "extreme_values": found.columns.extremes,
        "left_out": sum(entry.frames is None for entry in quarantined),
        "rules": _rules(quarantined),
        "quarantine": [
            {**entry._asdict(), "frames": None if entry.frames is None else list(entry.frames)} for entry in quarantined
        ],
        "notes": _notes(notes, takes),
        "settings": store.settings,
    }


def extreme_columns(
    mean: NDArray[np.floating[Any]],
    std: NDArray[np.floating[Any]],
    minimum: NDArray[np.floating[Any]],
    maximum: NDArray[np.floating[Any]],
    layout: Layout,
) -> list[dict[str, Any]]:
    """Returns the columns with values over 20 standard deviations from their mean, worst first, at most 20."""
    mean, std = mean.astype(np.float64), std.astype(np.float64)
    furthest = np.maximum(maximum - mean, mean - minimum)
    stds = np.divide(furthest, std, out=np.zeros_like(furthest), where=std > 0)
    worst = np.argsort(-stds, kind="stable")[:_MOST_EXTREMES]
    return [
        {
            "column": column_ranges([column], layout)[0],
            "index": int(column),
            "minimum": _rounded(minimum[column]),
            "maximum": _rounded(maximum[column]),
            "mean": _rounded(mean[column]),
            "std": _rounded(std[column]),
            "stds": round(float(stds[column]), 1),
        }
        for column in worst
        if stds[column] > EXTREME
    ]


def column_ranges(columns: Iterable[int], layout: Layout) -> list[str]:
    """Returns names of columns by joint or feature, from increasing column numbers: `Hips[0]`, `LeftFoot[3-5]`."""
    wanted = np.asarray(list(columns), np.int64)
    words = []
    for part in layout:
        inside = wanted[(wanted >= part.start) & (wanted < part.stop)] - part.start
        for run in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1) if len(inside) else []:
            words.append(f"{part.name}[{run[0]}-{run[-1]}]" if len(run) > 1 else f"{part.name}[{run[0]}]")
    return words


def _rounded(value: float) -> float:
    return float(f"{float(value):.6g}")


def _hours(frames: float, fps: float) -> float:
    return round(frames / fps / 3600, 6)


def _constant_columns(columns: ColumnFacts) -> list[int]:
    span = columns.maximum.astype(np.float64) - columns.minimum
    constant: list[int] = np.flatnonzero(span <= _CONSTANT * np.maximum(1, np.abs(columns.mean))).tolist()
    return constant


def _frame_rates(takes: Sequence[TakeFacts], fps: float) -> list[dict[str, Any]]:
    """Returns the files' frame rates and how `fps` was reached from them, lowest first; 120.00004577 is 120."""
    found: dict[tuple[float, str], list[TakeFacts]] = {}
    for take in takes:
        found.setdefault((round(take.fps, 3), _how(take.fps, fps)), []).append(take)
    return [
        {
            "fps": rate,
            "files": len(some),
            "hours": round(math.fsum(take.frames / take.fps for take in some) / 3600, 6),
            "resampled": how != "as it is",
            "how": how,
        }
        for (rate, how), some in sorted(found.items())
    ]


def _odd_rates(takes: Sequence[TakeFacts]) -> Iterator[str]:
    """Yields notes on the few files with an unusual frame rate; for data of many rates, the table is enough."""
    found: dict[float, list[str]] = {}
    for take in takes:
        rate = next((rate for rate in found if abs(take.fps / rate - 1) <= DECIMATION_TOLERANCE), take.fps)
        found.setdefault(rate, []).append(take.file)
    usual = max(found, key=lambda rate: len(found[rate]), default=0.0)
    odd = sorted(rate for rate in found if rate != usual)
    if len(odd) > _MOST_ODD_RATES or 2 * len(found.get(usual, ())) < len(takes):
        return
    for rate in odd:
        files = found[rate]
        if len(files) == 1 or len(files) <= _ODD_SHARE * len(takes):
            has = "has" if len(files) == 1 else "have"
            others = "the others" if len(odd) == 1 else "most others"
            words = f"{counted(len(files), 'file')} {has} {rate:g} fps, {others} {usual:g}"
            yield f"{words}: {shortened(files, 4)}"


def _how(source_fps: float, fps: float) -> str:
    try:
        step = decimation(source_fps, fps)
    except ValueError:
        return "not possible"
    if step is None:
        return "interpolated"
    return "as it is" if step == 1 else f"decimated by {step}"


def _splits(segments: Sequence[Segment], fps: float) -> dict[str, dict[str, Any]]:
    splits = {}
    for split in sorted({segment.split for segment in segments}, key=SPLITS.index):
        mine = [segment for segment in segments if segment.split == split]
        frames = sum(segment.stop - segment.start for segment in mine)
        splits[split] = {
            "clips": len({segment.name for segment in mine}),
            "frames": frames,
            "hours": _hours(frames, fps),
        }
    return splits


def _rules(quarantined: Sequence[Quarantined]) -> dict[str, dict[str, int]]:
    """Returns for each rule, by name, the number of files it applied to, of spans it cut, and of frames in them.

    Files left out completely have no spans. The frames on both sides of a jump are kept; those between jumps are not.
    """
    rules = {}
    for rule in sorted({entry.rule for entry in quarantined}):
        mine = [entry for entry in quarantined if entry.rule == rule]
        spans = [entry.frames for entry in mine if entry.frames is not None]
        kept = 2 if rule.startswith("max_") else 0
        rules[rule] = {
            "files": len({entry.file for entry in mine}),
            "spans": len(spans),
            "frames": sum(after - first - kept for first, after in spans),
        }
    return rules


def _notes(of_all: Sequence[str], takes: Sequence[TakeFacts]) -> dict[str, int]:
    """Returns how many files each note is about, most frequent first; notes about all the data (0 files) come first."""
    counts: dict[str, int] = {}
    for take in takes:
        for note in dict.fromkeys(take.notes):
            counts[note] = counts.get(note, 0) + 1
    return dict.fromkeys(of_all, 0) | dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def report_text(report: dict[str, Any], most: int = 12, terminal: Terminal = PLAIN) -> str:
    """Returns a report for a terminal: files, frame rates, splits, clips left out, and unusual columns.

    Args:
        most: the largest number of lines or names in a list; `report.json` has all of them.
    """
    return terminal.text(report_blocks(report, most))


def report_blocks(report: dict[str, Any], most: int = 12) -> list[Block]:
    """Returns a report as lines and tables; see `report_text`."""
    sections: list[list[Block]] = [
        [*_heading(report), *_seen_lines(report)],
        _rate_table(report["frame_rates"]),
        _split_table(report["splits"]),
        _rule_table(report, most),
        _whole_file_lines(report["quarantine"], most),
        _column_lines(report, most),
        _note_lines(report["notes"], most),
    ]
    return [block for section in sections if section for block in (*section, "")][:-1]


def _heading(report: dict[str, Any]) -> list[Block]:
    return [
        [(report["source"], "path"), f" ({report['format']})"],
        f"{counted(report['clips'], 'clip')} of {counted(report['files'], 'file')}: {report['frames']:,} frames, "
        f"{_time(report['hours'])}, {report['columns']} columns, {report['fps']:g} fps",
        *report.get("readings", ()),
    ]


def _seen_lines(report: dict[str, Any]) -> list[str]:
    """Returns lines that count all files; none for a report of an earlier version, which does not count them."""
    if not report.get("files_seen"):
        return []
    line = (
        f"{counted(report['files_seen'], 'file')} found: {report['files_read']:,} read, "
        f"{report['files_left_out']:,} left out, {report['files_passed_over']:,} passed over"
    )
    of_reason: dict[str, Counter[str]] = {}
    for group in (group for count in report["file_counts"] for group in count["passed_over"]):
        of_reason.setdefault(group["reason"], Counter())[group["suffix"]] += group["files"]
    words = [
        f"{suffixes.total():,} {reason}" + (f" ({some})" if (some := shortened([*filter(None, suffixes)], 4)) else "")
        for reason, suffixes in of_reason.items()
    ]
    return [line, *(f"  {word}" for word in words)]


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.2f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.1f} seconds"


def _rate_table(rates: list[dict[str, Any]]) -> list[Block]:
    columns = [Column("frame rate, fps", left=True), Column("files"), Column("hours"), Column(wraps=True)]
    rows = [[f"{rate['fps']:g}", f"{rate['files']:,}", f"{rate['hours']:,.3f}", rate["how"]] for rate in rates]
    return [Table(columns, rows)] if rows else []


def _split_table(splits: dict[str, dict[str, Any]]) -> list[Block]:
    columns = [Column("split", left=True), Column("clips"), Column("frames"), Column("hours")]
    rows = [
        [split, f"{part['clips']:,}", f"{part['frames']:,}", f"{part['hours']:,.3f}"] for split, part in splits.items()
    ]
    return [Table(columns, rows)] if rows else []


def _rule_table(report: dict[str, Any], most: int) -> list[Block]:
    """Returns a table with one row per rule, with the first files and the frames in them."""
    if not report["rules"]:
        return [("nothing was left out", "good")]
    titles = (Column("left out", left=True), Column("files"), Column("spans"), Column("frames"))
    rows: list[list[Line]] = []
    for rule, counts in report["rules"].items():
        first = [_place(entry) for entry in report["quarantine"] if entry["rule"] == rule]
        numbers = [f"{counts[name]:,}" for name in ("files", "spans", "frames")]
        rows.append([rule, *numbers, _names(first, max(most // 4, 1))])
    return [Table([*titles, Column("first of them", wraps=True)], rows)]


def _place(entry: dict[str, Any]) -> str:
    file: str = entry["file"]
    if entry["frames"] is None:
        return file
    first, last = entry["frames"][0], entry["frames"][1] - 1
    return f"{file} {first}" + (f"-{last}" if last > first else "")


def shortened(words: Sequence[str], most: int) -> str:
    """Returns the first words of a list, and how many there are."""
    return ", ".join(words[:most]) + (f", … ({len(words):,})" if len(words) > most else "")


def _names(names: Sequence[str], most: int) -> Line:
    """Returns the same as `shortened`, for names that must not be broken into lines."""
    pieces: list[Piece] = []
    for name in names[:most]:
        pieces += [", ", (name, "name")]
    return [*pieces[1:], *([f", … ({len(names):,})"] if len(names) > most else [])]


def _whole_file_lines(quarantine: list[dict[str, Any]], most: int) -> list[Block]:
    whole = [entry for entry in quarantine if entry["frames"] is None]
    lines: list[Block] = [["  ", (entry["file"], "name"), f": {entry['reason']}"] for entry in whole[:most]]
    if len(whole) > most:
        lines.append(f"  and {len(whole) - most:,} more; report.json names all")
    return [(f"{counted(len(whole), 'file')} left out completely", "warning"), *lines] if whole else []


def _column_lines(report: dict[str, Any], most: int) -> list[Block]:
    lines: list[Block] = []
    if report["constant_columns"]:
        names = shortened(report["constant_columns"], most)
        lines.append(f"{counted(report['constant_column_count'], 'constant column')}: {names}")
    if report["extreme_values"]:
        lines.append(f"columns with values more than {EXTREME:g} standard deviations from the mean")
    for extreme in report["extreme_values"][:most]:
        lowest = extreme["mean"] - extreme["minimum"] > extreme["maximum"] - extreme["mean"]
        clip = extreme.get("minimum_in" if lowest else "maximum_in")
        value = extreme["minimum" if lowest else "maximum"]
        text = f"  {extreme['column']}: {value:g}, {extreme['stds']:g} standard deviations from {extreme['mean']:g}"
        lines.append([text, ", in ", (clip, "name")] if clip else text)
    return lines


def _note_lines(notes: dict[str, int], most: int) -> list[Block]:
    shown = list(notes.items())[:most]
    lines = [f"  {note} ({counted(files, 'file')})" if files else f"  {note}" for note, files in shown]
    if len(notes) > most:
        lines.append(f"  and {len(notes) - most:,} more; report.json names all")
    return [("notes", "title"), *lines] if lines else []
