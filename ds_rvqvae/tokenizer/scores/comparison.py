"""Compare tokenizers on the same clips: intervals, differences and latency, as facts and as text."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ds_rvqvae.process.tables import Column, Table
from ds_rvqvae.process.terminal import Block, Line
from ds_rvqvae.text import counted
from ds_rvqvae.tokenizer.scores.spread import (
    CONFIDENCE,
    FEW_CLIPS,
    RESAMPLES,
    SEED,
    ClipScore,
    differences,
    intervals,
    same_clips,
)
from ds_rvqvae.tokenizer.scores.tables import COMPARED, are_comparable, figure_note

if TYPE_CHECKING:
    from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

_METHOD = f"{CONFIDENCE:.0%} interval over clips (percentile bootstrap, {RESAMPLES:,} resamples of clips, seed {SEED})"
_SPREAD = tuple(column for column in COMPARED if not column[0].endswith("_truth"))
"""The scores whose spread is shown; that of the original motion is in the JSON only."""

_TOGETHER = ("fid", "fgd", "matching", "diversity", "frechet")
"""Scores of the features of all clips, which are no means over frames."""


def latencies(tokenizer: "MotionTokenizer") -> dict[str, float | None]:
    """Returns for how many frames, and milliseconds at its frame rate, its streams hold motion back at most, one code
    at a time: a decoder's frame waits for later codes, an encoder's code for later frames. None for group norm, which
    needs the whole clip."""
    from ds_rvqvae.model.streaming import DecoderStream, EncoderStream

    found: dict[str, float | None] = {}
    for side, make in (("decoder", DecoderStream), ("encoder", EncoderStream)):
        whole = tokenizer.model.config.norm == "GN"
        frames = None if whole else make(tokenizer.model, lambda rows: rows, 1).latency
        found[f"{side}_latency_frames"] = frames
        found[f"{side}_latency_ms"] = None if frames is None else 1000 * frames / tokenizer.fps
    return found


def common_stride(tokenizers: "Sequence[MotionTokenizer]") -> int:
    """Returns the number of frames to whose multiple clips are cut, so that all tokenizers score the same frames."""
    return math.lcm(*(tokenizer.code_stride for tokenizer in tokenizers))


def spread_of(clips: Sequence[ClipScore]) -> dict[str, Any]:
    """Returns intervals of the scores, how they were made, and the scores of each clip."""
    return {
        "intervals": intervals(clips),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "clips_scores": [clip.described() for clip in clips],
    }


def all_differences(results: Sequence[dict[str, Any]], clips: Sequence[Sequence[ClipScore]]) -> list[dict[str, Any]]:
    """Returns the differences of each pair of tokenizers: `first` and `second`, their names, and `scores`, as
    `spread.differences` gives them. Empty if the tokenizers cannot be compared."""
    if not are_comparable(results) or any(not same_clips(own, clips[0]) for own in clips):
        return []
    return [
        {"first": results[a]["name"], "second": results[b]["name"], "scores": differences(clips[a], clips[b])}
        for a, b in combinations(range(len(results)), 2)
    ]


def spread_notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """Returns notes on the intervals: how they were made, and where there are none."""
    fewest = min(one["clips"] for one in results)
    if fewest < 2:
        return [f"{'One clip gives' if fewest else 'No clip gives'} no interval."]
    notes = [f"In brackets: {_METHOD}."]
    if fewest < FEW_CLIPS:
        notes.append(f"The intervals are rough and tend to be too narrow: there are only {counted(fewest, 'clip')}.")
    missing = [
        f"{title} ({one['name']})"
        for one in results
        for key, title, _, _ in COMPARED
        if not key.endswith("_truth") and key in one["intervals"] and one["intervals"][key] is None
        if one.get(key) is not None
    ]
    if missing:
        notes.append(f"No interval, because too few clips have this score: {', '.join(missing)}.")
    nothing = [
        f"{title} ({one['name']})"
        for one in results
        for key, title, _, _ in COMPARED
        if one.get(key) is None and key in one["intervals"]
        if key == "l1" or any(clip.get(key) is not None for clip in one["clips_scores"])
    ]
    if nothing:
        notes.append(f"No number and no interval, because a clip's value is not finite: {', '.join(nothing)}.")
    together = [
        title for key, title, _, _ in COMPARED if key in _TOGETHER and any(one.get(key) is not None for one in results)
    ]
    if together:
        notes.append(f"Of all clips together, and so without an interval: {', '.join(together)}.")
    return notes


def comparison_notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """Returns notes on what several tokenizers share and do not share."""
    notes = []
    if len({one["code_rate"] for one in results}) > 1:
        cut = results[0]["clips_cut_to"]
        notes.append(f"Clips are cut to a multiple of {cut} frames, so that all tokenizers score the same frames.")
    if len({round(one["bits_per_second"], 6) for one in results}) > 1:
        notes.append("Their bits per second differ: errors are comparable at the same rate only.")
    if any(one["decoder_latency_ms"] is not None for one in results):
        notes.append("Latency: the longest that a decoded frame waits for later codes, which come one by one.")
    whole = [one["name"] for one in results if one["decoder_latency_ms"] is None]
    if whole:
        notes.append(f"No latency, because group norm needs the whole clip: {', '.join(whole)}.")
    return notes


def spread_blocks(results: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]] = ()) -> list[Block]:
    """Returns the intervals of all tokenizers, then the differences from the first, as lines and tables."""
    blocks: list[Block] = [*spread_notes(results)]
    rows: list[list[Line]] = []
    for key, title, unit, form in _SPREAD:
        bounds = [one["intervals"].get(key) for one in results]
        if any(bounds):
            rows.append([_titled(title, unit), *(_interval_text(pair, form) for pair in bounds)])
    if rows:
        heads = [Column("interval of", left=True), *(Column(one["name"], shrinks=True) for one in results)]
        blocks += ["", Table(heads, rows)]
    for pair in found:
        if pair["first"] == results[0]["name"]:
            blocks += ["", f"{pair['first']} minus {pair['second']}, on the same clips:", _difference_table(pair)]
    return blocks


def _difference_table(pair: dict[str, Any]) -> Table:
    heads = [Column("score", left=True), Column("difference"), Column("interval"), Column("", left=True)]
    rows: list[list[Line]] = []
    for key, title, unit, form in _SPREAD:
        if (one := pair["scores"].get(key)) is not None:
            words = {True: "certain", False: "not certain", None: "no interval"}[one["is_certain"]]
            difference = format(one["difference"], f"+{form}")
            rows.append([_titled(title, unit), difference, _interval_text(one["interval"], f"+{form}"), words])
    return Table(heads, rows)


def _titled(title: str, unit: str) -> str:
    return f"{title}, {unit}" if unit else title


def _interval_text(pair: tuple[float, float] | None, form: str) -> str:
    return "-" if pair is None else f"[{pair[0]:{form}}, {pair[1]:{form}}]"


def scored_notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """Returns notes that say which numbers can be compared, and on which figure joints are measured."""
    first = results[0]
    notes = [f"{first['split']}: {counted(first['clips'], 'clip')}, {first['frames']:,} frames"]
    if any((one["data_path"], one["clips"], one["frames"]) != _motion(first) for one in results):
        scored = "; ".join(
            f"{one['name']} {counted(one['clips'], 'clip')}, {one['frames']:,} frames" for one in results
        )
        notes = [f"{first['split']}: {scored}", "Scored on different motion: the rows cannot be compared."]
    if all(one["normalised_by"] == first["name"] for one in results):
        notes.append(
            f"L1, velocity and jitter are in units of the standard deviations of {first['name']}, for all rows."
        )
    else:
        notes.append("L1, velocity and jitter are in each tokenizer's own normalised units: they cannot be compared.")
    figures = list(dict.fromkeys(note for one in results if (note := figure_note(one))))
    return [*notes, *(f"MPJPE over {figure}." for figure in figures), *comparison_notes(results)]


def _motion(result: dict[str, Any]) -> tuple[str, int, int]:
    return result["data_path"], result["clips"], result["frames"]
