"""Spread of scores over clips, and differences between tokenizers on the same clips.

A score is a total over a count (of frames, steps, seconds), summed over clips. The bootstrap (Efron 1979) draws as many
clips as there are, with replacement, and computes the score of each draw; its percentiles are the interval. A clip that
is longer weighs more, as in the score itself. Differences are paired: both tokenizers get the same clips in each draw,
so that clips that are hard for both do not widen the interval.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE, RESAMPLES, SEED = 0.95, 9_999, 0
FEW_CLIPS = 20
"""With fewer clips, percentiles of the bootstrap tend to be too narrow."""
_AT_ONCE = 4_000_000
"""Numbers of a batch of draws."""


class ClipScore(NamedTuple):
    """The scores of one clip."""

    name: str
    start: int
    """First frame of the scored piece."""
    frames: int
    ratios: dict[str, tuple[float, float]]
    """Total and count by score."""

    def described(self) -> dict[str, Any]:
        """Returns name, frames and scores; a score is None where this clip has none."""
        scores = {key: total / count if count else None for key, (total, count) in self.ratios.items()}
        scores = {key: None if value is None or not math.isfinite(value) else value for key, value in scores.items()}
        return {"clip": self.name, "start": self.start, "frames": self.frames, **scores}


def intervals(clips: Sequence[ClipScore]) -> dict[str, tuple[float, float] | None]:
    """Returns the 95 % interval of each score; None for fewer than two clips or values that are not finite."""
    keys = list(clips[0].ratios) if clips else []
    low, high = _bounds(_totals(clips, keys))
    return {key: _interval(low[at], high[at]) for at, key in enumerate(keys)}


def differences(first: Sequence[ClipScore], second: Sequence[ClipScore]) -> dict[str, dict[str, Any]]:
    """Returns, by score that both have, `difference` (first minus second), `interval`, and `is_certain`: whether the
    interval leaves 0 out. Without an interval `is_certain` is None.

    Raises:
        ValueError: these are not the same frames of the same clips.
    """
    if not same_clips(first, second):
        raise ValueError("differences are between scores of the same clips")
    keys = [key for key in (first[0].ratios if first else ()) if key in second[0].ratios]
    totals = [_totals(clips, keys) for clips in (first, second)]
    low, high = _bounds(totals[0], totals[1])
    found = {}
    for at, key in enumerate(keys):
        values = [_score(*(part.sum(axis=-1) for part in total))[at] for total in totals]
        if not np.isfinite(values).all():
            continue
        interval = _interval(low[at], high[at])
        is_certain = None if interval is None else not interval[0] <= 0 <= interval[1]
        found[key] = {"difference": float(values[0] - values[1]), "interval": interval, "is_certain": is_certain}
    return found


def same_clips(first: Sequence[ClipScore], second: Sequence[ClipScore]) -> bool:
    """Returns whether both are scores of the same frames of the same clips."""
    return [clip[:3] for clip in first] == [clip[:3] for clip in second]


def _totals(clips: Sequence[ClipScore], keys: Sequence[str]) -> list[NDArray[np.float64]]:
    """Returns totals and counts, `[keys, clips]` each."""
    pairs = np.array([[clip.ratios[key] for clip in clips] for key in keys], np.float64).reshape(
        len(keys), len(clips), 2
    )
    return [pairs[..., 0], pairs[..., 1]]


def _score(total: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / count


def _bounds(*totals: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the bounds `[keys]` of the score of one tokenizer, or of the difference between two; NaN if there are
    none."""
    keys, clips = totals[0][0].shape
    if keys == 0 or clips < 2:
        return np.full(keys, np.nan), np.full(keys, np.nan)
    from scipy.stats import bootstrap

    def statistic(*parts: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        sums = [part.sum(axis=axis) for part in parts]
        score = _score(*sums[:2])
        return score - _score(*sums[2:]) if len(sums) > 2 else score

    result = bootstrap(
        [part for total in totals for part in total],
        statistic,
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // (keys * clips)),
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(SEED),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def _interval(low: float, high: float) -> tuple[float, float] | None:
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None
