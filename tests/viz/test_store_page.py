"""A page of a store is drawn, whatever its columns are, and written by the verb."""

import numpy as np
import pytest
from PIL import Image

from ds_rvqvae import cli
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store.look import look_at
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


def test_the_verb_writes_a_picture(tmp_path, demo_store, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "plot", str(demo_store.folder), "--body_part", "upper", "--window_size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "figures stand 1.5" in printed and "picture: store.png" in printed
    with Image.open(tmp_path / "store.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] == 1500 and pixels.shape[0] > 1000
    below = pixels[-350:].reshape(-1, 3)
    for color in ((0x1F, 0x77, 0xB4), (0xD9, 0x54, 0x1E), (0xCC, 0xCC, 0xCC)):  # the part's sides, and the rest of it
        assert (np.abs(below.astype(int) - color).max(axis=1) < 3).sum() > 100


def test_refusals(tmp_path, demo_store, capsys):
    assert cli.main(["data", "plot", str(demo_store.folder), "--out", str(tmp_path / "page.jpg")]) == 2
    assert "pictures are PNG" in capsys.readouterr().err
    assert cli.main(["data", "plot", str(tmp_path)]) == 2
    assert "no prepared store" in capsys.readouterr().err
    with pytest.raises(UserError, match="body_part: tail is not known"):
        look_at(open_store(demo_store.folder), 64, "tail")
