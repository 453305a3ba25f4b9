"""Facts about a store's motion, from a sample of it, that reveal a wrong unit or a swapped axis."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.fitting import check_part
from ds_rvqvae.data.store.figures import AXES, Figure, Posture, Root, figure_of, posture_along, root_of
from ds_rvqvae.data.store.report import column_ranges
from ds_rvqvae.data.store.shards import ShardFacts
from ds_rvqvae.data.store.splits import group_of
from ds_rvqvae.data.store.statistics import RunningStatistics
from ds_rvqvae.data.store.store import Store
from ds_rvqvae.data.store.summary import hours_words, some, store_totals
from ds_rvqvae.errors import text_of
from ds_rvqvae.motion.layout import Layout, rotation_columns, select_columns
from ds_rvqvae.text import counted

SAMPLE_CLIPS = 5
"""Clips that are drawn."""
_MEASURED_CLIPS, _RUNS, _RUN_FRAMES = 96, 2, 16
"""Clips that are measured, stretches per clip, and frames per stretch."""
_TALL = (0.5, 2.5)
_OFF_GROUND = 0.6
_ROOT_HEIGHT = (0.15, 2.0)
_FASTEST = 12.0
"""Metres per second: no runner is faster."""
_UNIT_ERROR = 0.05
_TOES_BEHIND = -0.02
_STILL, _MANY_STILL = 1e-6, 0.5
_ALL_DIFFERENT = 0.9
"""With more speakers than this fraction of its clips, the names of a store's clips are numbers, not speakers."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Stretches of consecutive frames from many places of a store."""

    runs: list[NDArray[np.float32]]
    """float32 `[frames, columns]` each."""
    clips: list[str]
    """Clips to draw, in the store's order; from different speakers if there are several."""

    @property
    def motion(self) -> NDArray[np.float32]:
        """All frames, `[frames, columns]`."""
        return np.concatenate(self.runs)


@dataclass(frozen=True, eq=False)
class Look:
    """The facts about a store.

    Attributes:
        facts: for programs; `look_text` gives the same for users.
        layout, columns: of the body part that is described; `columns` are indices into the store's columns.
        mean, std, low, high: float `[columns]` of those columns, over all frames (over the sample if the store does
            not have them).
    """

    store: Store
    facts: dict[str, Any]
    sample: Sample
    figure: Figure | None
    root: Root | None
    layout: Layout
    columns: NDArray[np.int64]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    lengths: NDArray[np.int64]
    """int64 `[clips]`: frames of each clip."""

    @property
    def warnings(self) -> list[str]:
        """One line per fact that looks wrong."""
        warnings: list[str] = self.facts["warnings"]
        return warnings


def look_at(store: Store, window_size: int, body_part: str | None = None, seed: int = 0) -> Look:
    """Gathers the facts about a store; reads a few thousand frames, however many it holds.

    Args:
        window_size: frames of a training window, with which the clips' lengths are compared.
        body_part: the body part whose columns are described; None: all. Figures are always complete.
        seed: of the choice of clips.

    Raises:
        UserError: no such body part, motion without body parts, or a damaged skeleton.
    """
    columns: NDArray[np.int64] = np.arange(len(store.mean))
    layout = store.layout
    if body_part is not None:
        check_part(body_part, store.folder, store.layout, store.has_body_parts)
        columns, layout = select_columns(store.layout, body_part)
    sample = take_sample(store, seed)
    mean, std, low, high = (values[columns] for values in _column_statistics(store, sample))
    figure, root = figure_of(store), root_of(store)
    lengths = np.diff(store.starts)
    warnings: list[str] = []
    facts = {
        "store": str(store.folder),
        **store_totals(store),
        "body_part": body_part,
        "sampled_frames": sum(map(len, sample.runs)),
        "groups": _groups(store),
        "clip_seconds": dict(zip(("min", "median", "max"), _quantiles(lengths / store.fps, 0, 50, 100), strict=True)),
        "window": _window(lengths, window_size, store.fps, warnings),
        "channels": _channels(layout, mean, std, low, high),
        "constant_columns": _constant(layout, low, high, warnings),
        "rotations": _rotations(sample, store.layout, warnings),
        "root": _root(root, sample, store.fps, figure is not None, warnings),
        "figure": _figure(figure, sample, warnings),
        "warnings": warnings,
    }
    return Look(store, facts, sample, figure, root, layout, columns, mean, std, low, high, lengths)


def take_sample(store: Store, seed: int) -> Sample:
    """Returns a seeded sample of a store."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(store.clip_names)).tolist()
    turns: Counter[str] = Counter()
    turn = {}
    for clip in order:  # first one of each speaker, then a second of each, …
        group = group_of(store.clip_names[clip], "speaker")
        turn[clip] = turns[group]
        turns[group] += 1
    order.sort(key=turn.__getitem__)
    runs = []
    for clip in order[:_MEASURED_CLIPS]:
        first, stop = int(store.starts[clip]), int(store.starts[clip + 1])
        frames = min(_RUN_FRAMES, stop - first)
        for start in rng.integers(first, stop - frames + 1, _RUNS).tolist():
            runs.append(store.read(start, start + frames))
    return Sample(runs, [store.clip_names[clip] for clip in sorted(order[:SAMPLE_CLIPS])])


def _column_statistics(store: Store, sample: Sample) -> tuple[NDArray[np.float32], ...]:
    """Returns mean, std, smallest and largest value per column, of all frames as noted by packing, or of the sample."""
    everything = RunningStatistics(len(store.mean))
    try:
        for shard in store.shards:
            file = (store.folder / shard.file).with_suffix(".json")
            everything.merge(ShardFacts.read(file).statistics["all"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        everything = RunningStatistics(len(store.mean))
        everything.add(sample.motion)
    return (*everything.mean_and_std(), everything.minimum, everything.maximum)


def _groups(store: Store) -> list[dict[str, Any]]:
    """Returns clips and hours per speaker and split; one group, "", if the names do not tell the speakers."""
    of_clip = {name: group_of(name, "speaker") for name in store.clip_names}
    if len(set(of_clip.values())) > _ALL_DIFFERENT * len(of_clip) and len(of_clip) > SAMPLE_CLIPS:
        of_clip = dict.fromkeys(of_clip, "")
    clips = Counter(of_clip.values())
    hours: dict[str, dict[str, float]] = defaultdict(dict)
    for segment in store.segments:
        of_group = hours[of_clip[segment.name]]
        of_group[segment.split] = of_group.get(segment.split, 0.0) + (segment.stop - segment.start) / store.fps / 3600
    return [
        {"name": name, "clips": clips[name], "hours": sum(hours[name].values()), "splits": hours[name]}
        for name in sorted(clips)
    ]


def _window(lengths: NDArray[np.int64], size: int, fps: float, warnings: list[str]) -> dict[str, Any]:
    short = lengths < size
    if short.all():
        warnings.append(f"no clip has the {size} frames of a window; the longest has {lengths.max()}")
    elif lengths[short].sum() > 0.2 * lengths.sum():
        warnings.append(
            f"{lengths[short].sum() / lengths.sum():.0%} of the frames are in clips shorter than a window of {size} "
            "frames and are not trained on"
        )
    return {
        "frames": size,
        "seconds": size / fps,
        "shorter_clips": int(short.sum()),
        "shorter_hours": float(lengths[short].sum() / fps / 3600),
    }


def _channels(
    layout: Layout,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
) -> list[dict[str, Any]]:
    """Returns, for each kind of columns, mean and std over its columns, and the extremes."""
    found = []
    for kind in dict.fromkeys(part.kind for part in layout):
        of_kind = np.concatenate([np.arange(part.start, part.stop) for part in layout if part.kind == kind])
        found.append(
            {
                "kind": kind,
                "columns": len(of_kind),
                "mean": float(mean[of_kind].mean()),
                "std": float(std[of_kind].mean()),
                "min": float(low[of_kind].min()),
                "max": float(high[of_kind].max()),
            }
        )
    return found


def _constant(layout: Layout, low: NDArray[np.float32], high: NDArray[np.float32], warnings: list[str]) -> list[str]:
    """Returns the columns that never change, by joint or feature."""
    still = high.astype(np.float64) - low <= _STILL * np.maximum(1, np.abs(high))
    if still.mean() > _MANY_STILL:
        warnings.append(f"{still.sum()} of {len(still)} columns never change")
    moved = [part for part in layout if part.kind in ("translation", "position")]
    if moved and all(still[part.start : part.stop].all() for part in moved):
        warnings.append("the root never moves: were translations lost?")
    return column_ranges(np.flatnonzero(still), layout)


def _rotations(sample: Sample, layout: Layout, warnings: list[str]) -> dict[str, float] | None:
    """Returns how far the 6D rotations' two vectors are from orthonormal: the 99th percentile of the largest error."""
    columns = rotation_columns(layout)
    if not len(columns):
        return None
    pairs = sample.motion[:, columns].reshape(-1, 2, 3).astype(np.float64)
    off = np.abs(np.einsum("nij,nkj->nik", pairs, pairs) - np.eye(2)).max(axis=(1, 2))
    worst = float(np.percentile(off, 99))
    if worst > _UNIT_ERROR:
        warnings.append(
            f"6D columns are not orthonormal: a rotation's two vectors miss unit length or a right angle by {worst:.2g}"
        )
    return {"off_p99": worst}


def _root(
    root: Root | None, sample: Sample, fps: float, has_figure: bool, warnings: list[str]
) -> dict[str, Any] | None:
    """Returns the root's height and speed over the ground."""
    if root is None:
        return None
    paths = [root.path(run) for run in sample.runs]
    heights = np.concatenate([path[:, 1] for path in paths])
    # The first difference of a stretch belongs to the frame before it.
    speeds = np.concatenate([np.linalg.norm(np.diff(path[1:, [0, 2]], axis=0), axis=1) * fps for path in paths])
    low, middle, high = _quantiles(heights, 1, 50, 99)
    speed = _quantiles(speeds, 50, 99) if len(speeds) else [0.0, 0.0]
    if not has_figure and not _ROOT_HEIGHT[0] <= abs(middle) <= _ROOT_HEIGHT[1]:
        warnings.append(f"the root's height is {middle:.3g}: is it in metres, and is y up?")
    if speed[1] > _FASTEST:
        warnings.append(f"the root moves at {speed[1]:.3g} m/s: is its position in metres, and the frame rate right?")
    return {
        "channel": root.name,
        "height_m": {"p1": low, "median": middle, "p99": high},
        "speed_m_per_s": {"median": speed[0], "p99": speed[1]},
    }


def _figure(figure: Figure | None, sample: Sample, warnings: list[str]) -> dict[str, Any] | None:
    """Returns how tall the figures are, along which axis, and how high they stand."""
    if figure is None:
        return None
    places = figure.places(sample.motion)
    facts: dict[str, Any] = {"from": figure.name, "joints": len(figure.joint_names)}
    spread = np.median(np.ptp(places, axis=1), axis=0)
    facts["spread_m"] = dict(zip(AXES, map(float, spread), strict=True))
    line = figure.line(places)
    if line is not None:
        posture = posture_along(line)
        facts["tall_m"] = tall = posture.tall
        facts["tall_along"] = dict(zip(AXES, posture.shares, strict=True))
        _judge_posture(posture, warnings)
    else:
        facts["tall_m"] = tall = float(spread[1])
    if not _TALL[0] <= tall <= _TALL[1]:
        warnings.append(f"figures are {tall:.3g} m tall: are lengths in metres? (for BVH: rvqvae.data.metres_per_unit)")
    lowest = float(np.median(places[..., 1].min(axis=1)))
    facts["lowest_joint_m"] = lowest
    if abs(lowest) > _OFF_GROUND:
        side = "above" if lowest > 0 else "below"
        warnings.append(
            f"the lowest joint is {abs(lowest):.3g} m {side} y = 0: is the root's position in metres, and is y up?"
        )
    ahead = figure.toes_ahead(places)
    if ahead is not None:
        facts["toes_ahead_m"] = float(np.median(ahead))
        if facts["toes_ahead_m"] < _TOES_BEHIND and spread[1] == spread.max():
            warnings.append("toes point backwards: are left and right swapped, or is the sign of an axis wrong?")
    return facts


def _judge_posture(posture: Posture, warnings: list[str]) -> None:
    """Warns of figures that lie or are upside down."""
    if posture.is_upside_down:
        warnings.append("figures stand on their heads: y should be up")
    elif posture.lies:
        hint = " (rvqvae.data.up_axis z turns such files)" if posture.axis == "z" else ""
        warnings.append(f"figures lie: from feet to head they extend {posture.words}; y should be up{hint}")


def _quantiles(values: NDArray[Any], *percents: float) -> list[float]:
    return [float(value) for value in np.percentile(values, percents)]


def look_text(look: Look) -> str:
    """Returns the facts in a few lines."""
    facts = look.facts
    seconds, window = facts["clip_seconds"], facts["window"]
    groups = sorted(facts["groups"], key=lambda group: -group["hours"])
    hours = [f"{group['name'] or 'no name'} {hours_words(group['hours'])}" for group in groups]
    lines = [
        f"{Path(facts['store'])}: {counted(facts['clips'], 'clip')}, {facts['frames']:,} frames, "
        f"{hours_words(facts['hours'])} at {facts['fps']:g} fps, {facts['columns']} columns",
        f"{counted(len(groups), 'speaker')}: {some(hours, 4)}" if groups[0]["name"] else "speakers: not in the names",
        f"clips last {seconds['min']:.1f} to {seconds['max']:.1f} s, median {seconds['median']:.1f}; a window of "
        f"{window['frames']} frames ({window['seconds']:.2f} s) is longer than "
        f"{counted(window['shorter_clips'], 'clip')} "
        f"({hours_words(window['shorter_hours'])})",
    ]
    if facts["figure"]:
        figure = facts["figure"]
        line = f"figures stand {figure['tall_m']:.2f} m tall" + (
            " from feet to head" if "tall_along" in figure else " (joints' spread along y)"
        )
        lines.append(
            f"{line}, the lowest joint {figure['lowest_joint_m']:+.2f} m from y = 0 (medians; {figure['from']})"
        )
    if facts["root"]:
        height, speed = facts["root"]["height_m"], facts["root"]["speed_m_per_s"]
        lines.append(
            f"root ({facts['root']['channel']}): {height['median']:.2f} m high, {height['p1']:.2f} to "
            f"{height['p99']:.2f} (1 to 99 %); {speed['median']:.2f} m/s, 99 % up to {speed['p99']:.2f}"
        )
    lines.append(f"constant columns: {some(facts['constant_columns'], 6) or 'none'}")
    lines += [f"warning: {warning}" for warning in look.warnings]
    return text_of(lines)
