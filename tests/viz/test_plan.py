"""The picture of a plan: its bars are the plan's bytes, in the GPU's memory and by component."""

import pytest

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.plan import make_plan
from ds_rvqvae.gpu.plan_table import described_parts
from ds_rvqvae.viz.plan import plan_figure

GIB = 2**30


def _plan(memory=24 * GIB, overrides=()):
    return make_plan(load_profile("large", list(overrides)), 78, 7, CARDS["4090"].with_memory(memory))


AVERAGE = pytest.param(["rvqvae.training.ema_decay=0.999"], id="average")


@pytest.mark.parametrize("overrides", [pytest.param([], id="plain"), AVERAGE])
def test_bars_are_the_parts_of_the_plan_one_after_another(overrides):
    plan = _plan(overrides=overrides)
    whole, parts = plan_figure(plan, "large on 7 cards").axes
    assert bool(plan.weight_average_bytes) == bool(overrides)
    bytes_of_parts = [count for _, count, _ in described_parts(plan)]
    widths = [bar.get_width() for bar in parts.patches]
    assert [width * GIB for width in widths] == pytest.approx(bytes_of_parts)
    assert [bar.get_x() for bar in parts.patches] == pytest.approx([sum(widths[:at]) for at in range(len(widths))])
    assert sum(widths) * GIB == pytest.approx(plan.total_bytes)
    assert len({bar.get_facecolor() for bar in parts.patches}) == len(widths)
    # The rest of the GPU's memory is free.
    assert whole.patches[-1].get_x() + whole.patches[-1].get_width() == pytest.approx(24)
    assert whole.lines[0].get_xdata()[0] == 24


def test_the_title_and_the_legend_say_what_the_bars_are():
    plan = _plan()
    figure = plan_figure(plan, "large on 7 cards")
    total = f"{plan.total_bytes / GIB:.2f} GiB"
    assert figure.get_suptitle() == f"large on 7 cards: {total} of 24.00 GiB, fits"
    (legend,) = figure.legends
    names = [text.get_text().rpartition(", ")[0] for text in legend.get_texts()]
    assert names == [name for name, _, _ in described_parts(plan)]


def test_what_does_not_fit_reaches_beyond_the_card():
    plan = _plan(memory=2 * GIB)
    figure = plan_figure(plan, "large")
    whole = figure.axes[0]
    assert figure.get_suptitle().endswith("does not fit")
    assert whole.patches[-1].get_width() == 0 and whole.get_xlim()[1] > plan.total_bytes / GIB > 2
