"""The parts of a store's table: number formats bit by bit, and files that are never written to again."""

import numpy as np
import pytest

from ds_rvqvae.data.store.table import NUMBER_FORMATS, link_or_copy


@pytest.mark.parametrize(
    ("name", "kind", "values", "bits"),
    [
        ("float32", "<f4", [1.0, -2.5], None),
        # One sign bit, 5 of the exponent around 15, 10 of the mantissa.
        ("float16", "<f2", [1.0, -2.5, 65504.0], [0x3C00, 0xC100, 0x7BFF]),
        # The upper half of float32: 1 + 1/256 and 1 + 3/256 lie between two numbers and round to the even one.
        (
            "bfloat16",
            "<u2",
            [1.0, -2.5, 1 + 1 / 256, 1 + 3 / 256, 1 + 1.1 / 256],
            [0x3F80, 0xC020, 0x3F80, 0x3F82, 0x3F81],
        ),
    ],
)
def test_numbers_are_stored_as_these_bits(name, kind, values, bits):
    numbers = NUMBER_FORMATS[name]
    there = np.array(values, np.float32)
    stored = numbers.encode(there)
    assert numbers.stored == np.dtype(kind) == stored.dtype and numbers.decode(stored).dtype == np.float32
    if bits is None:
        assert stored is there
    else:
        assert stored.view(np.uint16).tolist() == bits


def test_large_numbers_become_the_largest_and_stay_finite():
    huge = np.array([3.4e38, -3.4e38], np.float32)
    for name, largest in (("float16", 65504.0), ("bfloat16", 255 / 128 * 2.0**127)):
        numbers = NUMBER_FORMATS[name]
        assert numbers.decode(numbers.encode(huge)).tolist() == [largest, -largest]


def test_a_file_gets_a_second_name_or_a_copy(tmp_path):
    (tmp_path / "a").write_bytes(b"frames")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")
    link_or_copy(tmp_path / "a", tmp_path / "b")  # a link is not possible, because the file exists
    assert (tmp_path / "b").read_bytes() == b"frames" and not (tmp_path / "a").samefile(tmp_path / "b")
