"""The pictures of an animation: which frames they show, and what moves in them."""

from itertools import pairwise

import numpy as np

from ds_rvqvae.motion.layout import select_columns, smplx_layout
from ds_rvqvae.motion.skeleton import builtin_skeleton
from ds_rvqvae.viz.comparison import compare
from ds_rvqvae.viz.render import Animation
from tests.viz.shown import make_tokenizer, moving_clip

SIZE = (480, 240)


def test_fewer_frames_a_second_show_the_same_stretch(tokenizer):
    comparison = compare([tokenizer], moving_clip(), builtin_skeleton())
    assert Animation(comparison, 30.0, SIZE).frames.tolist() == list(range(60))
    assert Animation(comparison, 15.0, SIZE).frames.tolist() == list(range(0, 60, 2))
    assert len(Animation(comparison, 7.0, SIZE)) == 14


def test_a_picture_shows_three_panels_in_the_size_asked_for(tokenizer):
    animation = Animation(compare([tokenizer], moving_clip(), builtin_skeleton()), 2.0, SIZE)
    pictures = np.stack([picture.copy() for picture in animation])
    assert pictures.shape == (4, 240, 480, 4) and pictures.dtype == np.uint8 and (pictures[..., 3] == 255).all()
    truth, found, difference = np.split(pictures[:, 20:170, :, :3].astype(int), 3, axis=2)
    for panel in (truth, found, difference):
        assert (panel < 100).any() and np.abs(panel[1:] - panel[:-1]).max() > 100
    assert np.abs(truth - found).max() > 100


def test_no_figure_reaches_into_titles_and_scale(tokenizer):
    clip = moving_clip()
    places = np.arange(433)[-103:-100]
    clip.motion[:, places] = [0.0, 1.0, 0.0]
    clip.motion[30, places[1]] = 1.6  # it jumps, for one frame
    animation = Animation(compare([tokenizer], clip, builtin_skeleton()), 6.0, (480, 240))
    pictures = [picture.copy() for picture in animation]
    band = slice(0, int(0.12 * 240) - 1)
    assert all((picture[band] == pictures[0][band]).all() for picture in pictures)
    assert (pictures[6][30:] != pictures[5][30:]).any() and (pictures[0][band, :, :3] < 100).any()


def test_codes_pass_by_below_the_figures(tokenizer):
    comparison = compare([tokenizer], moving_clip(), builtin_skeleton())
    size = (480, 312)
    without = [picture.copy() for picture in Animation(comparison, 6.0, (480, 240))]
    pictures = [picture.copy() for picture in Animation(comparison, 6.0, size, with_codes=True)]
    assert len(pictures) == len(without) and pictures[0].shape == (312, 480, 4)
    # The figures above are those of a picture without codes.
    assert np.abs(pictures[5][:170].astype(int) - without[5][:170]).mean() < 2
    rows = slice(195, 225)
    moved = [(after[rows] != before[rows]).any() for before, after in pairwise(pictures)]
    assert all(moved)
    # The first frame has nothing before now.
    assert (pictures[0][rows, 40:240] == 255).all() and (pictures[0][rows, 260:460] != 255).any(axis=-1).mean() > 0.5
    # A third of a second later, the rows lie that much further left.
    shift = round(0.925 * 480 / 4 / 3)
    strip = slice(100, 430)
    later = pictures[7][200, strip.start - shift : strip.stop - shift].astype(int)
    assert np.abs(pictures[5][200, strip].astype(int) - later).mean() < 40


def test_each_part_of_a_body_has_rows_of_its_own(tokenizer):
    lower = make_tokenizer(select_columns(smplx_layout(), "lower")[1])
    comparison = compare([tokenizer, lower], moving_clip(), builtin_skeleton(), levels=2)
    assert [row.shades.shape for row in comparison.codes] == [(2, 15), (2, 15)]
    assert all(row.seconds == 4 / 30 for row in comparison.codes)
    pictures = [picture.copy() for picture in Animation(comparison, 2.0, (480, 312), with_codes=True)]
    assert (pictures[0][195:225] != 255).any()
