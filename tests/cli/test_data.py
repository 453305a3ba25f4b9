"""`ds-rvqvae data plot`: the picture of a store that it writes, and what it refuses."""

import numpy as np
from PIL import Image

from ds_rvqvae import cli


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
    assert "not a prepared store" in capsys.readouterr().err
    (tmp_path / "folder.png").mkdir()
    assert cli.main(["data", "plot", str(demo_store.folder), "--out", str(tmp_path / "folder.png")]) == 2
    assert "folder.png: is a folder" in capsys.readouterr().err
