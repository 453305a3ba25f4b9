"""A canvas in memory: the pixels that a figure becomes, and what is put back of them."""

import numpy as np
from matplotlib.figure import Figure

from ds_rvqvae.viz.canvas import canvas_of, pixels_on


def _red_figure():
    """40 x 20 pixels, all red."""
    return Figure(figsize=(0.4, 0.2), dpi=100, facecolor=(1, 0, 0))


def test_a_figure_is_drawn_in_its_size_and_colour():
    figure = _red_figure()
    canvas = canvas_of(figure)
    assert figure.canvas is canvas
    canvas.draw()
    pixels = pixels_on(canvas)
    assert pixels.shape == (20, 40, 4) and pixels.dtype == np.uint8
    assert (pixels == [255, 0, 0, 255]).all()


def test_pixels_are_a_view_that_the_next_drawing_overwrites():
    figure = _red_figure()
    canvas = canvas_of(figure)
    canvas.draw()
    pixels = pixels_on(canvas)
    figure.set_facecolor((0, 0, 1))
    canvas.draw()
    assert (pixels == [0, 0, 255, 255]).all()


def test_what_was_copied_is_put_back():
    figure = _red_figure()
    canvas = canvas_of(figure)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.draw_artist(axes.fill_between([0, 1], [0, 0], [1, 1], color="white"))
    assert not (pixels_on(canvas) == [255, 0, 0, 255]).all()
    canvas.restore_region(background)
    assert (pixels_on(canvas) == [255, 0, 0, 255]).all()
