"""GPU models that a run can be planned for, and memory sizes as a user writes them."""

import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.gpu.cards import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 << 30), ("24GB", 24 * 10**9), ("24564MiB", 24564 << 20), ("1.5 GiB", 3 << 29), ("900b", 900)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["24", "24G", "GiB", "-3GiB", "0GiB", "24 GiBs", "nan", "1e3GiB", "", "9" * 400 + "GiB"]
)
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="give a size with its unit") as caught:
        parse_bytes(text)
    assert "\n" not in str(caught.value)
