"""The page of a store is drawn for any columns, and the command writes it."""

import numpy as np
import pytest

from ds_rvqvae.data import open_store
from ds_rvqvae.data.look import look_at
from ds_rvqvae.errors import UserError
from ds_rvqvae.viz.store_page import store_page
from tests.data.motion import write_packed
from tests.data.store.looked_at import demo_with, make_store


def test_a_page_is_drawn_whatever_the_columns_are(tmp_path):
    store = make_store(tmp_path, write_packed(tmp_path / "data.npz", (40, 30, 50), 5), store_dtype="bfloat16")
    look = look_at(store, 128)
    assert any("no clip has the 128 frames" in warning for warning in look.warnings)
    page = store_page(look)
    page.canvas.draw()
    texts = [axes.get_title(loc=side) for axes in page.axes for side in ("left", "center")]
    assert "clip lengths" in texts and "features: 5 columns" in texts and "clip0" in texts


def test_a_part_that_is_not_known_is_refused(demo_store):
    with pytest.raises(UserError, match="body_part: tail is not known"):
        look_at(open_store(demo_store.folder), 64, "tail")


def test_a_root_that_never_moves_is_marked(tmp_path, demo_folder, demo_store):
    def texts(look):
        return [text.get_text() for axes in store_page(look).axes for text in axes.texts]

    def stopped(arrays):
        return arrays | {"trans": np.tile(arrays["trans"][:1], (len(arrays["trans"]), 1))}

    still = look_at(demo_with(tmp_path, demo_folder, stopped, files=2), 64)
    assert texts(still).count("the root does not move") == 2
    page = store_page(still)
    page.canvas.draw()
    (height,) = (axes for axes in page.axes if axes.get_title(loc="left").startswith("root height"))
    (mark,) = height.texts
    legend = height.get_legend()
    assert not mark.get_window_extent().overlaps(legend.get_window_extent())
    assert not any("does not move" in words.get_text() for words in legend.get_texts())
    assert "the root does not move" not in texts(look_at(demo_store, 64))


def test_long_names_stay_apart_and_the_axes_keep_their_width(tmp_path):
    names = [f"dataset-1_of_a_very_long_name_{kind}_001" for kind in ("walk", "run", "a_dance_of_many_words_and_steps")]
    file = write_packed(tmp_path / "data.npz", (40, 30, 50), 5, clip_name=np.array(names))
    page = store_page(look_at(make_store(tmp_path, file), 16))
    page.canvas.draw()
    titles = [axes.get_title() for axes in page.axes if axes.get_title()]
    assert "…walk_001" in titles and "…run_001" in titles and max(map(len, titles)) <= 26
