import pytest

from ds_rvqvae.motion.clip import piece_name, whole_name


@pytest.mark.parametrize("name", ["walk", "01/01_01", "a#b", "#", ""])
def test_a_piece_is_named_after_its_clip(name):
    assert [piece_name(name, index) for index in (0, 12)] == [f"{name}#0", f"{name}#12"]
    assert whole_name(piece_name(name, 12)) == whole_name(name) == name


def test_a_name_that_only_looks_like_a_piece():
    assert [whole_name(name) for name in ("a#1/b", "a#", "a#1#2", "a#x1")] == ["a#1/b", "a#", "a#1", "a#x1"]
