"""Print scores as text for a terminal, or as the cells of a table, without torch."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ds_rvqvae.motion import recovery
from ds_rvqvae.process.tables import Column, Table
from ds_rvqvae.process.terminal import PLAIN, Block, Line, Terminal
from ds_rvqvae.text import counted

_ERRORS = {"l1": "L1, normalised units", "angle_error_deg": "angle error, degrees", "velocity_error": "velocity error"}
_BY_LEVEL = (
    ("bits_per_second", "bits/s", ".1f"),
    ("l1", "L1", ".4f"),
    ("angle_error_deg", "angle, deg", ".4f"),
    ("velocity_error", "velocity", ".4f"),
    ("mpjpe_mm", "MPJPE, mm", ".2f"),
    ("usage", "codes used", ".1%"),
    ("perplexity", "perplexity", ".1f"),
)
_ALWAYS = ("l1", "angle_error_deg", "velocity_error", "usage", "perplexity")
"""Columns that the table by levels shows even if nothing was measured."""
_DEAD = 1.01
"""Perplexity up to which a level is dead: it always gives the same code."""

_OF_TRUTH = "original"
COMPARED = (
    ("parameter_count", "parameters", "", ",d"),
    ("code_rate", "codes", "1/s", "g"),
    ("num_quantizers", "levels", "", "d"),
    ("bits_per_second", "rate", "bits/s", ".1f"),
    ("decoder_latency_ms", "latency", "ms", ".0f"),
    ("l1", "L1", "norm.", ".4f"),
    ("angle_error_deg", "angle", "deg", ".3f"),
    ("velocity_error", "velocity", "norm.", ".4f"),
    ("jitter", "jitter", "norm.", ".4f"),
    ("jitter_truth", _OF_TRUTH, "norm.", ".4f"),
    ("mpjpe_mm", "MPJPE", "mm", ".2f"),
    ("pa_mpjpe_mm", "PA-MPJPE", "mm", ".2f"),
    ("mpjpe_global_mm", "in the world", "mm", ".1f"),
    ("root_error_mm", "root", "mm", ".1f"),
    ("root_drift_mm_per_s", "drift", "mm/s", ".1f"),
    ("joint_jerk", "jerk", "m/s³", ".1f"),
    ("joint_jerk_truth", _OF_TRUTH, "m/s³", ".1f"),
    ("foot_sliding", "sliding", "cm/s", ".2f"),
    ("foot_sliding_truth", _OF_TRUTH, "cm/s", ".2f"),
    ("foot_skating", "skating", "", ".2%"),
    ("foot_skating_truth", _OF_TRUTH, "", ".2%"),
    ("fid", "FID", "", ".4g"),
    ("fgd", "FGD", "", ".4g"),
    ("fgd_joints", "joints", "of 55", "d"),
    ("matching", "matching", "", ".3f"),
    ("diversity", "diversity", "", ".3f"),
    ("diversity_truth", _OF_TRUTH, "", ".3f"),
    ("frechet", "Fréchet", "", ".4g"),
)
"""Columns of a comparison: key in the scores, title, unit, format."""
LOWER_IS_BETTER = (
    *("l1", "angle_error_deg", "velocity_error", "mpjpe_mm", "pa_mpjpe_mm", "mpjpe_global_mm", "root_error_mm"),
    *("root_drift_mm_per_s", "foot_sliding", "foot_skating", "frechet", "fid", "fgd", "matching"),
)


def score_table(
    scores: dict[str, Any], untrained: dict[str, Any] | None = None, terminal: Terminal = PLAIN, name: str = ""
) -> str:
    """Returns the result of `ScoreSums.scores` as text, by levels used.

    Args:
        untrained: scores before training; the errors before and after training then come first.
        name: name of the scored tokenizer.
    """
    return terminal.text(score_blocks(scores, untrained, name))


def score_blocks(scores: dict[str, Any], untrained: dict[str, Any] | None = None, name: str = "") -> list[Block]:
    """Returns the same as lines and tables."""
    start = f"{name}, " if name else ""
    blocks: list[Block] = [f"{start}{scores['split']}: {counted(scores['clips'], 'clip')}, {scores['frames']:,} frames"]
    if untrained is not None:
        heads = [Column(left=True), Column("untrained"), Column("trained")]
        blocks += [Table(heads, [_change(key, title, untrained, scores) for key, title in _ERRORS.items()]), ""]
    else:
        blocks += _further(scores)
    rows = [
        {**row, "usage": usage, "perplexity": perplexity}
        for row, usage, perplexity in zip(scores["by_levels"], scores["usage"], scores["perplexity"], strict=True)
    ]
    columns = [column for column in _BY_LEVEL if column[0] in _ALWAYS or rows[-1].get(column[0]) is not None]
    heads = [Column("levels", left=True), *(Column(title) for _, title, _ in columns)]
    cells = [[str(row["levels"]), *(_level_cell(row, key, form) for key, _, form in columns)] for row in rows]
    return [*blocks, Table(heads, cells)]


def _change(key: str, title: str, untrained: dict[str, Any], trained: dict[str, Any]) -> list[Line]:
    before, after = untrained[key], trained[key]
    style = "none" if before is None or after is None or before == after else "good" if after < before else "bad"
    return [title, _text(before, ".4f"), (_text(after, ".4f"), style)]


def _level_cell(row: dict[str, Any], key: str, form: str) -> Line:
    text, perplexity = _text(row[key], form), row["perplexity"]
    is_dead = perplexity is not None and perplexity <= _DEAD
    return (text, "bad") if is_dead and key in ("usage", "perplexity") else text


def comparison_cells(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns titles, units and one row per tokenizer; columns without any value are left out."""
    columns = [column for column in COMPARED if any(result.get(column[0]) is not None for result in results)]
    titles = [["tokenizer", *(title for _, title, _, _ in columns)], ["", *(unit for _, _, unit, _ in columns)]]
    rows = [[result["name"], *(_text(result.get(key), form) for key, _, _, form in columns)] for result in results]
    return titles + rows


def are_comparable(results: Sequence[dict[str, Any]]) -> bool:
    """Returns whether several tokenizers were scored on the same motion and in the same units."""
    return len({(one["data_path"], one["clips"], one["frames"], one["normalised_by"]) for one in results}) <= 1


def best_cells(
    results: Sequence[dict[str, Any]], extreme: Callable[[Iterable[float]], float] = min
) -> set[tuple[int, int]]:
    """Returns row and column, in `comparison_cells`, of the lowest error in each column with more than one value.

    The set is empty if the rows cannot be compared, because motion or units differ.

    Args:
        extreme: `max` for the highest error, which is the worst.
    """
    if not are_comparable(results):
        return set()
    columns = [column[0] for column in COMPARED if any(result.get(column[0]) is not None for result in results)]
    found = set()
    for index, key in enumerate(columns, start=1):
        if key == "fgd" and len({result.get("fgd_joints") for result in results}) > 1:
            continue  # the more joints come from the original, the smaller it is
        values = [result[key] for result in results if result.get(key) is not None]
        if key in LOWER_IS_BETTER and len(set(values)) > 1:
            found |= {(row + 2, index) for row, result in enumerate(results) if result.get(key) == extreme(values)}
    return found


def comparison_table(results: Sequence[dict[str, Any]], notes: Sequence[str] = (), terminal: Terminal = PLAIN) -> str:
    """Returns a table with one line per tokenizer, below notes on how they can be compared."""
    return terminal.text(comparison_blocks(results, notes))


def comparison_blocks(results: Sequence[dict[str, Any]], notes: Sequence[str] = ()) -> list[Block]:
    """Returns the same as lines and a table, with the best and the worst value of each column marked."""
    titles, units, *rows = comparison_cells(results)
    styles = dict.fromkeys(best_cells(results, max), "worst") | dict.fromkeys(best_cells(results), "best")
    columns = [Column(titles[0], left=True, shrinks=True)]
    columns += [
        Column(title, unit, joined=title == _OF_TRUTH) for title, unit in zip(titles[1:], units[1:], strict=True)
    ]
    cells: list[list[Line]] = [
        [(cell, styles.get((row, column), "none")) for column, cell in enumerate(line)]
        for row, line in enumerate(rows, start=2)
    ]
    return [*notes, Table(columns, cells)]


def figure_note(scores: dict[str, Any]) -> str | None:
    """Returns which joints of which skeleton were measured."""
    if not scores.get("skeleton"):
        return None
    skeleton = scores["skeleton"]
    if skeleton in recovery.NAMES.values():
        joints = f"{scores['mpjpe_joints']} joints with the root"
        return f"{joints} ({skeleton}, recognised by the number of columns), roots aligned"
    figure = "built-in 1.75 m figure" if skeleton == "built-in" else f"skeleton {skeleton}"
    return f"{scores['mpjpe_joints']} joints on the {figure}, roots aligned"


def _further(scores: dict[str, Any]) -> list[Block]:
    """Returns one line for each score that is not by levels."""
    lines: list[Block] = []
    if scores.get("bits_per_second") is not None:
        bits, entropy = scores["bits_per_second"], scores["entropy_bits_per_second"]
        lines.append(f"{scores['code_rate']:g} codes per second: {bits:.1f} bits/s, by their entropy {entropy:.1f}")
    if scores.get("jitter") is not None:
        jitter = f"{scores['jitter']:.4f}, of the original {_text(scores['jitter_truth'], '.4f')}"
        lines.append(f"jitter {jitter} (third difference, normalised units per frame³)")
    if scores.get("mpjpe_mm") is not None:
        lines.append(f"MPJPE {scores['mpjpe_mm']:.2f} mm over {figure_note(scores)}")
    if scores.get("pa_mpjpe_mm") is not None:
        world = scores.get("mpjpe_global_mm")
        also = "" if world is None else f", without alignment {world:.1f} mm"
        lines.append(f"PA-MPJPE {scores['pa_mpjpe_mm']:.2f} mm (rotated, scaled and shifted by frame){also}")
    if scores.get("joint_jerk") is not None:
        lines.append(f"joints' jerk {scores['joint_jerk']:.1f} m/s³, of the original {scores['joint_jerk_truth']:.1f}")
    if scores.get("root_error_mm") is not None:
        drift = scores.get("root_drift_mm_per_s")
        also = "" if drift is None else f", drift {drift:.1f} mm/s"
        lines.append(f"root {scores['root_error_mm']:.1f} mm from its original position{also}")
    if scores.get("foot_sliding") is not None:
        sliding, truth = scores["foot_sliding"], scores["foot_sliding_truth"]
        lines.append(f"standing feet slide {sliding:.2f} cm/s, in the original {truth:.2f}")
    if scores.get("foot_skating") is not None:
        skating, truth = scores["foot_skating"], scores["foot_skating_truth"]
        lines.append(f"feet skate in {skating:.2%} of steps (over 50 cm/s below 5 cm), in the original {truth:.2%}")
    lines += _of_evaluator(scores)
    if scores.get("frechet") is not None:
        samples = f"{scores['frechet_samples']:,} samples in {scores['frechet_dimensions']} dimensions"
        windows = f"windows of {scores['frechet_window']} frames"
        lines.append(f"Fréchet distance {scores['frechet']:.4g} ({samples}, {windows}; not comparable with papers)")
    return lines


def _of_evaluator(scores: dict[str, Any]) -> list[Block]:
    """Returns the lines of a published evaluator's distances."""
    if scores.get("evaluator") is None:
        return []
    samples = f"{scores['evaluator_samples']:,} samples in {scores['evaluator_dimensions']} dimensions"
    of = f"({samples}, by {scores['evaluator']})"
    if scores.get("fgd") is not None:
        joints = f"{scores['fgd_joints']} of 55 joints reconstructed, the others are the original's"
        return [f"FGD {scores['fgd']:.4g} {of}", *([joints] if scores["fgd_joints"] < 55 else [])]
    matching = f"matching {scores['matching']:.3f} (reconstruction and original; not the matching with a text)"
    lines: list[Block] = [f"FID {scores['fid']:.4g} {of}", matching]
    if scores["diversity"] is None:
        return [*lines, "diversity - (more than 100 clips are needed)"]
    return [*lines, f"diversity {scores['diversity']:.3f}, of the original {scores['diversity_truth']:.3f}"]


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
