"""Pictures of scores: error against rate, and several tokenizers in a table."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ds_rvqvae.text import counted
from ds_rvqvae.tokenizer.scores.tables import best_cells, comparison_cells

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, which works with any colour vision; markers and dashes differ as well."""
_MARKERS, _DASHES = ("o", "s", "^", "D", "v", "P", "X"), ("-", "--", "-.", ":")
_PANELS = (
    ("angle_error_deg", "mean joint angle error (degrees)"),
    ("l1", "L1 (normalised units)"),
    ("mpjpe_mm", "MPJPE (mm)"),
)


def rate_distortion_figure(results: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draws error against bits per second with 1 … Q levels: one curve per tokenizer, one panel per error available.

    Args:
        results: scores with `by_levels`, and `name`.
    """
    panels = [panel for panel in _PANELS if any(_points(result, panel[0]) for result in results)]
    legend_height = 0.28 * (len(results) + 1) if len(results) > 1 else 0.0
    figure = Figure(figsize=(max(4.6 * len(panels), 6.0), 4.2 + legend_height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    handles = []
    for place, (key, label) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        handles = [_draw_curve(axes, result, key, index) for index, result in enumerate(results)]
        axes.set_xlabel("rate (bits per second)")
        axes.set_ylabel(label)
        axes.margins(x=0.1, y=0.14)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    if len(results) > 1:
        figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9)
    return figure


def comparison_figure(results: Sequence[dict[str, Any]], title: str, notes: Sequence[str] = ()) -> Figure:
    """Draws the table of `comparison_cells`; the lowest error of each column is bold."""
    cells, best = comparison_cells(results), best_cells(results)
    widths = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
    lines = len(cells) + 1.5 + len(notes)
    figure = Figure(figsize=(0.088 * sum(widths) + 0.4, 0.27 * lines + 0.3))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1, sum(widths) + 1), ylim=(lines + 0.4, -0.4))
    axes.set_axis_off()
    axes.text(0, 0.5, title, fontsize=11, fontweight="bold", va="center")
    for row, line in enumerate(cells):
        right = 0
        for column, (text, width) in enumerate(zip(line, widths, strict=True)):
            right += width
            style: dict[str, Any] = {"color": "#666666" if row == 1 else "black", "fontsize": 8 if row == 1 else 9}
            weight = "bold" if row == 0 or (row, column) in best else "normal"
            place, side = (0, "left") if column == 0 else (right, "right")
            axes.text(place, row + 2, text, ha=side, va="center", fontweight=weight, **style)
    for height, thick in ((1.5, 1.2), (3.5, 0.6), (len(cells) + 1.5, 1.2)):
        axes.plot([0, sum(widths)], [height, height], color="black", linewidth=thick)
    for index, note in enumerate(notes):
        axes.text(0, len(cells) + 2.1 + index, note, fontsize=8, color="#444444", va="center")
    return figure


def _points(result: dict[str, Any], key: str) -> list[tuple[float, float, int]]:
    rows = result["by_levels"]
    return [(row["bits_per_second"], row[key], row["levels"]) for row in rows if row[key] is not None]


def _draw_curve(axes: Axes, result: dict[str, Any], key: str, index: int) -> Any:
    points = _points(result, key)
    color = _COLORS[index % len(_COLORS)]
    (curve,) = axes.plot(
        [rate for rate, _, _ in points],
        [error for _, error, _ in points],
        color=color,
        marker=_MARKERS[index % len(_MARKERS)],
        linestyle=_DASHES[index % len(_DASHES)],
        linewidth=1.6,
        markersize=6,
        label=result["name"],
    )
    for number, (rate, error, levels) in enumerate(points):
        if number in (0, len(points) - 1):
            text = counted(levels, "level")
            place, side = ((5, 5), "left") if number == 0 else ((0, -14), "center")
            axes.annotate(text, (rate, error), place, textcoords="offset points", ha=side, fontsize=8, color=color)
    return curve
