"""Scores as text for a terminal, without torch."""

from typing import Any

_ERRORS = {"l1": "L1, normalised units", "angle_error_deg": "angle error, degrees", "velocity_error": "velocity error"}


def score_table(scores: dict[str, Any], untrained: dict[str, Any] | None = None) -> str:
    """What `ScoreSums.scores` gave, by levels used; with `untrained`, first the errors before and after training."""
    lines = [f"{scores['split']}: {scores['clips']} clips, {scores['frames']:,} frames"]
    if untrained is not None:
        lines.append(f"{'':24}{'untrained':>11}{'trained':>11}")
        lines += [f"{title:24}{_number(untrained[key])}{_number(scores[key])}" for key, title in _ERRORS.items()]
        lines.append("")
    lines.append(f"{'levels used':12}{'L1':>11}{'angle, deg':>11}{'velocity':>11}{'codes used':>11}{'perplexity':>11}")
    for row, usage, perplexity in zip(scores["by_levels"], scores["usage"], scores["perplexity"], strict=True):
        errors = "".join(_number(row[key]) for key in _ERRORS)
        lines.append(f"{row['levels']:<12}{errors}{usage:>11.1%}{perplexity:>11.1f}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-':>11}" if value is None else f"{value:>11.4f}"
