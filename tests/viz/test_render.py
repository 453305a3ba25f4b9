"""The pictures of an animation: which frames they show, and what moves in them."""

import numpy as np

from ds_rvqvae.motion.skeleton import builtin_skeleton
from ds_rvqvae.viz.comparison import compare
from ds_rvqvae.viz.render import Animation
from tests.viz.shown import moving_clip

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
