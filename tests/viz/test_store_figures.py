"""Five figures of a store from two sides, or heat maps of columns that are not a figure."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.look import look_at
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.viz.store_figures import PAGE_WIDTH, FigureDrawing, draw_heat_maps
from tests.data.motion import write_packed
from tests.data.store.looked_at import demo_with


def _drawn(look):
    drawing = FigureDrawing(look)
    page = Figure(figsize=(PAGE_WIDTH, sum(drawing.row_heights)), layout="constrained")
    FigureCanvasAgg(page)
    drawing.draw(page, page.add_gridspec(*drawing.grid))
    page.canvas.draw()
    return page


def test_five_figures_stand_from_the_front_and_from_the_side(demo_store):
    front, side = _drawn(look_at(demo_store, 64)).axes
    assert front.get_title(loc="left").startswith("front") and side.get_title(loc="left").startswith("side")
    for axes in (front, side):
        assert len(axes.collections) == 5 and len(axes.patches) == 5 and len(axes.get_xticklabels()) == 5
        heights = [np.concatenate(bones.get_segments())[:, 1] for bones in axes.collections]
        # From the ground to the head: the demo's figure of 1.75 m, without the part above its head joint.
        assert all(abs(up.min()) < 0.1 and 1.4 < up.max() < 1.7 for up in heights)
        middles = [np.concatenate(bones.get_segments())[:, 0].mean() for bones in axes.collections]
        assert (np.diff(middles) > 0.5).all()
    # From the front, the figure's left is blue and to the right.
    first = front.collections[0]
    places = np.array([segment.mean(axis=0)[0] for segment in first.get_segments()])
    colors = np.array([to_hex(color) for color in first.get_colors()])
    assert places[colors == "#1f77b4"].mean() > places[colors == "#d9541e"].mean() + 0.1


def test_joints_beside_the_part_are_grey(demo_store):
    bones = _drawn(look_at(demo_store, 64, "upper")).axes[0].collections[0]
    assert {to_hex(color) for color in bones.get_colors()} == {"#1f77b4", "#d9541e", "#3a3a3a", "#cccccc"}
    whole = _drawn(look_at(demo_store, 64)).axes[0].collections[0]
    assert {to_hex(color) for color in whole.get_colors()} == {"#1f77b4", "#d9541e", "#3a3a3a"}


def test_columns_that_are_no_figure_are_heat_maps_over_time(tmp_path):
    motion = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    file = write_packed(tmp_path / "data.npz", (40, 30, 50), motion=motion)
    look = look_at(prepare_store(DataConfig(path=str(file)), tmp_path / "store"), 16)
    page = Figure()
    FigureCanvasAgg(page)
    draw_heat_maps(page, page.add_gridspec(1, 1)[0], look)
    maps = {axes.get_title(): axes.images[0] for axes in page.axes if axes.get_title()}
    assert maps.keys() == set(look.sample.clips) == {"clip0", "clip1", "clip2"}
    for name, rows, seconds in (("clip0", slice(0, 40), 40 / 30), ("clip2", slice(70, 120), 50 / 30)):
        values = (motion[rows] - motion.mean(axis=0)) / motion.std(axis=0)
        np.testing.assert_allclose(maps[name].get_array(), values.T, atol=1e-4)
        assert maps[name].get_extent() == pytest.approx([0, seconds, 5, 0])


def test_figures_that_hang_above_y_0_stand_on_a_floor_of_their_own(tmp_path, demo_folder):
    def lifted(arrays):
        return arrays | {"trans": arrays["trans"] + np.array([0, 0.4, 0])}

    def words(look):
        axes = _drawn(look).axes[0]
        return [text.get_text() for text in axes.texts], axes.get_lines()[0].get_ydata()[0]

    texts, ground = words(look_at(demo_with(tmp_path, demo_folder, lifted, files=2), 64))
    assert ground == pytest.approx(0.4, abs=0.06) and f"floor at the lowest joints, y = {ground:.2f} m" in texts


def test_of_figures_whose_root_is_in_no_column_that_is_said(demo_store):
    look = look_at(demo_store, 64)
    texts = [text.get_text() for text in _drawn(look).axes[0].texts]
    assert _drawn(look).axes[0].get_lines()[0].get_ydata()[0] == 0 and not any("floor" in text for text in texts)
    texts = [text.get_text() for text in _drawn(replace(look, root=None)).axes[0].texts]
    assert "no columns for the root's position: figures stay in place" in texts
