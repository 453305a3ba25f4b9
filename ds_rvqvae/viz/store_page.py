"""A page that shows a store: hours, clip lengths, columns, the root's path, and figures or heat maps."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Page
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ds_rvqvae.data.look import Look
from ds_rvqvae.data.store.summary import hours_words, layout_words
from ds_rvqvae.motion.layout import Channels
from ds_rvqvae.text import counted
from ds_rvqvae.viz.names import name_words, short_names
from ds_rvqvae.viz.store_figures import PAGE_WIDTH, FigureDrawing, draw_heat_maps

_SPLIT_COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73", "additional": "#999999"}
CLIP_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
"""The palette of Okabe and Ito, which works with any colour vision."""
_GREY, _WARNING = "#555555", "#B00020"
_MOST_GROUPS = 14
_MOST_SECONDS = 60.0
"""The length of the path that is drawn, for each clip."""
_STILL = 1e-6
"""Metres: a root that moves no further counts as still."""
_FEW_COLUMNS = 12
_MOST_NAMES = 25
_KIND_TITLES = {
    "rotation_6d": "rotations (6D)",
    "translation": "translation",
    "position": "positions (m)",
    "relative_position": "joint positions from the root (m)",
    "angle": "joint angles (radians)",
    "expression": "expressions",
    "feature": "features",
}
_TRANSLATION = ("x (m/frame)", "height (m)", "z (m/frame)")


def store_page(look: Look) -> Page:
    """Draws the page, 15 inches wide, without pyplot."""
    has_root = look.root is not None
    drawing = FigureDrawing(look) if look.figure is not None else None
    heights = [2.8, 3.0] + [3.0] * has_root + (drawing.row_heights if drawing else [3.4])
    notes = [line for warning in look.warnings for line in textwrap.wrap(f"! {warning}", 150)]
    header = 0.75 + 0.24 * len(notes)
    height = sum(heights) + header
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - header / height), h_pad=0.1, w_pad=0.1)
    page = Page(figsize=(PAGE_WIDTH, height), layout=layout)
    FigureCanvasAgg(page)
    _write_header(page, look, notes)
    grid = page.add_gridspec(len(heights), 1, height_ratios=heights)
    top = grid[0].subgridspec(1, 2)
    _draw_groups(page.add_subplot(top[0]), look)
    _draw_lengths(page.add_subplot(top[1]), look)
    _draw_columns(page, grid[1], look)
    if has_root:
        middle = grid[2].subgridspec(1, 2, width_ratios=[2, 1])
        _draw_ways(page.add_subplot(middle[0]), page.add_subplot(middle[1]), look)
    if drawing:
        drawing.draw(page, grid[2 + has_root :, :].subgridspec(*drawing.grid))
    else:
        draw_heat_maps(page, grid[len(heights) - 1], look)
    return page


def _write_header(page: Page, look: Look, notes: Sequence[str]) -> None:
    height = page.get_figheight()
    store = look.store
    page.text(0.012, 1 - 0.12 / height, name_words(store.folder.name), fontsize=15, fontweight="bold", va="top")
    length = f"{hours_words(store.hours)}, {store.num_frames:,} frames at {store.fps:g} fps"
    what = f"{counted(len(store.clip_names), 'clip')}, {length}"
    part = f"; below, those of {look.facts['body_part']}" if look.facts["body_part"] else ""
    columns = f"{len(store.mean)} columns: {name_words(layout_words(store.layout))}{part}"
    page.text(0.012, 1 - 0.43 / height, f"{what}; {columns}", fontsize=10, color=_GREY, va="top")
    for index, note in enumerate(notes):
        place = 1 - (0.70 + 0.24 * index) / height
        page.text(0.012, place, note, fontsize=11, color=_WARNING, fontweight="bold", va="top")


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def _legend_above(axes: Axes) -> None:
    """Puts the legend on the line of the title, at its right end."""
    axes.legend(fontsize=8, frameon=False, ncols=5, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0.2)


def _draw_groups(axes: Axes, look: Look) -> None:
    """Draws hours by speaker as bars, with the splits stacked in each bar; many small speakers share one bar."""
    groups = sorted(look.facts["groups"], key=lambda group: (-group["hours"], group["name"]))
    bars = [(group["name"], group["splits"]) for group in groups]
    if len(bars) > _MOST_GROUPS:
        rest = [splits for _, splits in bars[_MOST_GROUPS - 1 :]]
        together = {split: sum(splits.get(split, 0.0) for splits in rest) for split in _SPLIT_COLORS}
        bars = [*bars[: _MOST_GROUPS - 1], (f"{len(rest)} others", together)]
    most = max(sum(splits.values()) for _, splits in bars)
    scale, unit = (1, "hours") if most >= 1 else (60, "minutes")
    places = np.arange(len(bars))
    bottom = np.zeros(len(bars))
    for split, color in _SPLIT_COLORS.items():
        values = np.array([scale * splits.get(split, 0.0) for _, splits in bars])
        if values.any():
            axes.bar(places, values, 0.7, bottom=bottom, color=color, label=split)
            bottom += values
    labels = short_names([name for name, _ in bars], 18)
    crowded = max(map(len, labels)) * len(labels) > 90
    axes.set_xticks(places, labels, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlim(-0.6, max(len(bars), 6) - 0.4)
    axes.set_ylabel(unit)
    axes.margins(y=0.08)
    _legend_above(axes)
    _tidy(axes, f"{unit} by speaker" if bars[0][0] else f"{unit} by split")


def _draw_lengths(axes: Axes, look: Look) -> None:
    """Draws a histogram of clip lengths, and the window's length."""
    seconds, window = look.lengths / look.store.fps, look.facts["window"]
    low, high = min(seconds.min(), window["seconds"]), max(seconds.max(), window["seconds"])
    is_wide = high > 30 * low
    bins = np.geomspace(0.95 * low, 1.05 * high, 41) if is_wide else np.linspace(0, 1.05 * high, 41)
    axes.hist(seconds, bins.tolist(), color="#56B4E9", edgecolor="white", linewidth=0.4)
    if is_wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    is_right = np.searchsorted(bins, window["seconds"]) > 0.6 * len(bins)
    axes.axvline(window["seconds"], color="#D55E00", linestyle="--", linewidth=1.5)
    axes.text(
        window["seconds"],
        1.0,
        f" window: {window['frames']} frames, {window['seconds']:.2f} s;\n {window['shorter_clips']:,} of "
        f"{counted(len(seconds), 'clip')} ({hours_words(window['shorter_hours'])}) shorter ",
        transform=axes.get_xaxis_transform(),
        fontsize=8,
        ha="right" if is_right else "left",
        color="#D55E00",
        va="top",
    )
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("seconds")
    axes.set_ylabel("clips")
    _tidy(axes, "clip lengths")


def _draw_columns(page: Page, place: SubplotSpec, look: Look) -> None:
    """Draws mean, std and range of every column: one panel per kind, but one per column of a translation."""
    panels: list[tuple[str, Sequence[Channels]]] = []
    for kind in dict.fromkeys(part.kind for part in look.layout):
        parts = [part for part in look.layout if part.kind == kind]
        if kind == "translation" and len(parts) == 1 and parts[0].width == 3:
            start = parts[0].start
            panels += [(name, [Channels(name, kind, start + i, start + i + 1)]) for i, name in enumerate(_TRANSLATION)]
        elif len(parts) == 1:
            width = "" if kind == "position" else f": {parts[0].width} columns"
            panels.append((name_words(parts[0].name) + width, parts))
        else:
            panels.append((f"{_KIND_TITLES[kind]}: {sum(part.width for part in parts)} columns", parts))
    counts = [sum(part.width for part in parts) for _, parts in panels]
    widths = [max(count, 0.14 * max(counts)) if count > 1 else 0.08 * max(counts) for count in counts]
    grid = place.subgridspec(1, len(panels), width_ratios=widths)
    for index, (title, shown) in enumerate(panels):
        axes = page.add_subplot(grid[index])
        _draw_range(axes, look, np.concatenate([np.arange(part.start, part.stop) for part in shown]))
        _name_columns(axes, shown)
        _tidy(axes, title)
        if index == 0:
            _legend_above(axes)


def _draw_range(axes: Axes, look: Look, columns: NDArray[np.int64]) -> None:
    mean, std, low, high = (values[columns] for values in (look.mean, look.std, look.low, look.high))
    places, few = np.arange(len(columns)), len(columns) <= _FEW_COLUMNS
    if few:
        axes.vlines(places, low, high, color="#bbbbbb", linewidth=6, label="smallest to largest")
        axes.vlines(places, mean - std, mean + std, color="#56B4E9", linewidth=6, label="mean ± std")
        axes.plot(places, mean, "o", color="#003b5c", markersize=4, label="mean")
        axes.set_xlim(-0.6, len(columns) - 0.4)
    else:
        axes.fill_between(places, low, high, step="mid", color="#dddddd", linewidth=0, label="smallest to largest")
        axes.fill_between(places, mean - std, mean + std, step="mid", color="#56B4E9", linewidth=0, label="mean ± std")
        axes.plot(places, mean, ".", color="#003b5c", markersize=2.5, label="mean")
        axes.set_xlim(-0.5, len(columns) - 0.5)
    still = places[high <= low]
    if len(still):
        axes.plot(
            still, np.zeros(len(still)), "|", color=_WARNING, label="constant", transform=axes.get_xaxis_transform()
        )
    axes.axhline(0, color="black", linewidth=0.5)


def _name_columns(axes: Axes, parts: Sequence[Channels]) -> None:
    """Writes names of joints under their columns, as many as fit legibly."""
    if len(parts) == 1:
        if parts[0].width == 1:
            axes.set_xticks([])
        elif parts[0].kind == "position" and parts[0].width == 3:
            axes.set_xticks(range(3), ("x (m)", "y (m)", "z (m)"))
        return
    ends = np.cumsum([part.width for part in parts])
    each = -(-len(parts) // _MOST_NAMES)
    middles = ends - np.array([part.width for part in parts]) / 2 - 0.5
    names = [name_words(part.name) for part in parts[::each]]
    axes.set_xticks(middles[::each], names, rotation=35, ha="right", rotation_mode="anchor")
    if each == 1:
        for end in ends[:-1]:
            axes.axvline(end - 0.5, color="white", linewidth=0.6)


def _draw_ways(height: Axes, above: Axes, look: Look) -> None:
    """Draws the root's height over time, and its path from above; a root that never moves is marked."""
    assert look.root is not None
    root, frames, clips = look.root, int(_MOST_SECONDS * look.store.fps), look.sample.clips
    rows = [look.store.rows(name) for name in clips[: len(CLIP_COLORS)]]
    paths = [root.path(look.store.read(first, min(stop, first + frames))) for first, stop in rows]
    still = [bool((np.ptp(path, axis=0) <= _STILL).all()) for path in paths]
    for path, is_still, words, color in zip(paths, still, short_names(clips, 22), CLIP_COLORS, strict=False):
        label = f"{words} (root does not move)" if is_still and not all(still) else words
        height.plot(np.arange(len(path)) / look.store.fps, path[:, 1], color=color, linewidth=1.2, label=label)
        above.plot(path[:, 0], path[:, 2], color=color, linewidth=1.2)
        above.plot(*path[-1, [0, 2]], "o", color=color, markersize=4)
    height.axhline(0, color="black", linewidth=1)
    height.set_ylim(*_with_ground(*height.get_ylim()))
    height.set_xlabel("seconds")
    height.set_ylabel("y, up (m)")
    # There is room between the ground below and the root above.
    height.legend(fontsize=8, ncols=3, loc="center right", framealpha=0.7, edgecolor="none")
    height.grid(color="#eeeeee")
    median = f", median {look.facts['root']['height_m']['median']:.2f} m"
    _tidy(height, "root height" + (f", first {_MOST_SECONDS:g} s" if look.lengths.max() > frames else "") + median)
    above.plot(0, 0, "+", color="black", markersize=9)
    above.set_aspect("equal", adjustable="datalim")
    above.invert_yaxis()  # so that x, y and z are right-handed when seen from above
    above.set_xlabel("x (m)")
    above.set_ylabel("z (m)")
    above.grid(color="#eeeeee")
    if all(still):
        for axes in (height, above):
            axes.text(
                *(0.5, 0.85),  # above the legend in the middle
                "the root does not move",
                transform=axes.transAxes,
                ha="center",
                va="center",
                color=_WARNING,
                fontsize=10,
            )
    _tidy(above, "root from above: + start, dot end")


def _with_ground(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (max(high, 0.0) - min(low, 0.0))
    return min(low, -margin), max(high, margin)
