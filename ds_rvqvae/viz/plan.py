"""A plan as a picture: a GPU's memory with the amount that the run takes, and its components as a stacked bar."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ds_rvqvae.gpu.plan import Plan
from ds_rvqvae.gpu.plan_table import described_parts
from ds_rvqvae.text import GIB, size

_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#E69F00", "#CC79A7", "#999999", "#333333")
"""The palette of Okabe and Ito, which works with any colour vision; and a dark grey for the assumed component."""
_AVERAGE = "#AA4499"
"""Colour of the weights' average, which not every plan has; the other components keep their colours."""


def plan_figure(plan: Plan, title: str) -> Figure:
    """Draws a plan: above, the run in the GPU's memory; below, the components of `total_bytes` in the table's order."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    verdict = "fits" if plan.fits else "does not fit"
    total, card = plan.total_bytes / GIB, plan.card.memory_bytes / GIB
    figure.suptitle(f"{title}: {size(plan.total_bytes)} of {size(plan.card.memory_bytes)}, {verdict}")
    whole, parts = figure.subplots(2, 1, height_ratios=[1, 2])
    _stack(whole, plan)
    whole.barh(0, max(card - total, 0), left=total, color="white", edgecolor="#888888", linewidth=0.8)
    whole.axvline(card, color="black", linestyle="--", linewidth=1.5)
    whole.set_xlim(0, 1.03 * max(card, total))
    whole.set_xlabel("GiB; dashed: memory of the GPU", fontsize=9)
    _stack(parts, plan)
    parts.set_xlim(0, total)
    parts.set_xlabel("GiB on one GPU at the peak of a step", fontsize=9)
    handles, labels = parts.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _stack(axes: Axes, plan: Plan) -> None:
    left, colours = 0.0, list(_COLOURS)
    if plan.weight_average_bytes:
        colours.insert(3, _AVERAGE)
    for (name, count, _), colour in zip(described_parts(plan), colours, strict=True):
        axes.barh(
            0, count / GIB, left=left, color=colour, edgecolor="white", linewidth=0.4, label=f"{name}, {size(count)}"
        )
        left += count / GIB
    axes.set_yticks([])
    axes.margins(y=0.05)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
