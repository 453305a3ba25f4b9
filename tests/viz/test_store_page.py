"""A page of a store is drawn, whatever its columns are, and written by the verb."""

import pytest

from ds_rvqvae.data import open_store
from ds_rvqvae.data.look import look_at
from ds_rvqvae.errors import UserError
from ds_rvqvae.viz.store_page import store_page
from tests.data.motion import write_packed
from tests.data.store.looked_at import make_store


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
