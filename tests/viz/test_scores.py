"""Pictures of scores: curves through what was measured, and a table with the best in bold."""

import pytest

from ds_rvqvae.tokenizer.scores.tables import comparison_cells
from ds_rvqvae.viz.scores import comparison_figure, rate_distortion_figure


def _result(name, angles=(8.0, 6.0, 5.0), places=(None, None, None), l1=0.5):
    rows = [
        {
            "levels": level,
            "bits_per_second": 67.5 * level,
            "angle_error_deg": angle,
            "l1": l1 / level,
            "mpjpe_mm": place,
        }
        for level, (angle, place) in enumerate(zip(angles, places, strict=True), start=1)
    ]
    same = {"data_path": "x", "clips": 1, "frames": 64, "normalised_by": "a"}
    return {"name": name, "by_levels": rows, "l1": l1, "code_rate": 7.5, **same}


def test_a_curve_goes_through_the_errors_by_rate():
    figure = rate_distortion_figure([_result("a")], "held out")
    assert figure.get_suptitle() == "held out" and not figure.legends
    angle, l1 = figure.axes
    assert angle.get_ylabel() == "mean joint angle error (degrees)" and l1.get_ylabel() == "L1 (normalised units)"
    (curve,) = angle.lines
    assert curve.get_xydata().tolist() == [[67.5, 8.0], [135.0, 6.0], [202.5, 5.0]]
    assert l1.lines[0].get_ydata() == pytest.approx([0.5, 0.25, 0.5 / 3])
    assert [text.get_text() for text in angle.texts] == ["1 level", "3 levels"]


def test_a_panel_is_there_where_any_has_its_error_and_curves_differ():
    results = [_result("a"), _result("b", places=(30.0, 20.0, 10.0)), _result("c", angles=(None, None, None))]
    figure = rate_distortion_figure(results, "")
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3]
    angle, _, places = figure.axes
    assert [len(curve.get_xdata()) for curve in angle.lines] == [3, 3, 0]
    assert [len(curve.get_xdata()) for curve in places.lines] == [0, 3, 0]
    styles = {(curve.get_color(), curve.get_marker(), curve.get_linestyle()) for curve in angle.lines}
    assert len({color for color, _, _ in styles}) == len({marker for _, marker, _ in styles}) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]


def test_the_table_shows_the_cells_and_the_best_in_bold():
    results = [_result("a", l1=0.5), _result("b", l1=0.25)]
    figure = comparison_figure(results, "two tokenizers", ["a note"])
    texts = figure.axes[0].texts
    shown = [text.get_text() for text in texts]
    assert shown == ["two tokenizers", *(cell for row in comparison_cells(results) for cell in row), "a note"]
    bold = [text.get_text() for text in texts if text.get_fontweight() == "bold"]
    assert bold == ["two tokenizers", *comparison_cells(results)[0], "0.2500"]
    figure.canvas.draw()
    extents = [text.get_window_extent() for text in texts if text.get_text()]
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in extents)
