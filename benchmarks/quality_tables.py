"""Tables and a picture of a study's results."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import t as student

from ds_rvqvae.errors import UserError

Results = dict[str, list[dict[str, Any]]]
"""Results by setting, one for each seed."""
SPLITS = ("val", "test")
MARKERS = "os^D"
_COMPARED = ("angle_error_deg", "l1")
"""The errors that are compared and drawn. Motion without rotations has no angle."""
ERRORS = {
    "angle_error_deg": ("angle, deg", 2),
    "l1": ("L1", 4),
    "velocity_error": ("velocity", 4),
    "jitter": ("jitter", 4),
    "mpjpe_mm": ("MPJPE, mm", 1),
}


def tables(results: Results, reference: str) -> str:
    """Returns all tables as Markdown: the errors of each split, then codes in use and perplexity by level."""
    parts = []
    first = next(iter(results.values()))[0]["scores"]
    scored = [split for split in SPLITS if first[split]["frames"]]
    for split in scored:
        scores = first[split]
        truth = f"the motion's own jitter is {scores['jitter_truth']:.4f}"
        parts += [
            f"### {split}: {scores['clips']} clips, {scores['frames']:,} frames; {truth}",
            "",
            _errors(results, reference, split),
            "",
        ]
    machines = sorted({run["machine"] for runs in results.values() for run in runs})
    parts += ["### Levels", "", _levels(results, scored), "", f"Trained on {'; '.join(machines)}."]
    return "\n".join(parts)


def _errors(results: Results, reference: str, split: str) -> str:
    keys = [key for key in ERRORS if any(_values(runs, split, key) for runs in results.values())]
    heads = [ERRORS[key][0] for key in keys]
    compared = ", ".join(ERRORS[key][0].removesuffix(", deg") for key in _COMPARED if key in keys)
    lines = [_row("setting", *heads, f"{compared} against {reference}", "bits/s", "seeds", "minutes per run")]
    lines.append(_row(*["---"] * (len(heads) + 5)))
    for name, runs in results.items():
        cells = [with_interval(_values(runs, split, key), ERRORS[key][1]) for key in keys]
        against = "" if name == reference or reference not in results else _against(results, name, reference, split)
        bits = runs[0]["scores"][split]["bits_per_second"]
        known = [run["minutes"] for run in runs if run["minutes"] is not None]
        minutes = f"{statistics.fmean(known):.0f}" if known else ""
        lines.append(_row(name, *cells, against, f"{bits:.0f}", str(len(runs)), minutes))
    return "\n".join(lines)


def _against(results: Results, name: str, reference: str, split: str) -> str:
    changes = []
    for key in _COMPARED:
        mine, theirs = (_values(results[one], split, key) for one in (name, reference))
        if mine and theirs:
            changes.append(f"{100 * (statistics.fmean(mine) / statistics.fmean(theirs) - 1):+.1f} %")
    return ", ".join(changes)


def _levels(results: Results, splits: Sequence[str]) -> str:
    levels = max(len(runs[0]["scores"]["codes_in_use"]) for runs in results.values())
    heads = [f"{level + 1}" for level in range(levels)]
    lines = [_row("setting", "by level", *heads), _row(*["---"] * (levels + 2))]
    for name, runs in results.items():
        scores = [run["scores"] for run in runs]
        rows = {
            "codes in use, training": [one["codes_in_use"] for one in scores],
            "perplexity, training": [one["perplexity_in_training"] for one in scores],
            **{f"perplexity, {split}": [one[split]["perplexity"] for one in scores] for split in splits},
        }
        for row, values in rows.items():
            means = map(statistics.fmean, zip(*values, strict=True))
            lines.append(_row(name if row.startswith("codes") else "", row, *(f"{mean:.0f}" for mean in means)))
    return "\n".join(lines)


def _values(runs: Sequence[dict[str, Any]], split: str, key: str) -> list[float]:
    values = [run["scores"][split][key] for run in runs]
    return [value for value in values if value is not None]


def with_interval(values: Sequence[float], digits: int) -> str:
    """Returns the mean, and half of its 95 % interval if there are at least two values; "" without values."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {half_interval(values):.{digits}f}"


def half_interval(values: Sequence[float]) -> float:
    """Returns half of the mean's 95 % interval, by Student's t."""
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def picture(results: Results, names: Sequence[str], path: Path) -> None:
    """Draws angle error and L1 against bits per second, by levels used, one line per setting; means over seeds.

    Raises UserError if no clip of any split was scored.
    """
    keys = [key for key in _COMPARED if any(_values(runs, one, key) for runs in results.values() for one in SPLITS)]
    if not keys:
        raise UserError(f"{path}: no clip of {' or '.join(SPLITS)} has an error to draw")
    figure = Figure(figsize=(13, 4.5 * len(SPLITS)), layout="constrained")
    axes = figure.subplots(len(SPLITS), len(keys), squeeze=False)
    for row, split in zip(axes, SPLITS, strict=True):
        for axis, key in zip(row, keys, strict=True):
            for place, name in enumerate(names):
                scores = [run["scores"][split] for run in results.get(name, [])]
                curves = [one["by_levels"] for one in scores if one[key] is not None]
                if not curves:
                    continue
                rates = [point["bits_per_second"] for point in curves[0]]
                points = [[curve[level][key] for curve in curves] for level in range(len(rates))]
                low, high = ([function(values) for values in points] for function in (min, max))
                axis.plot(
                    rates,
                    [statistics.fmean(values) for values in points],
                    color=f"C{place % 10}",
                    marker=MARKERS[place // 10 % 4],
                    label=name,
                )
                axis.fill_between(rates, low, high, color=f"C{place % 10}", alpha=0.2)
            axis.set(xlabel="bits per second", ylabel=ERRORS[key][0], title=split)
            axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)
