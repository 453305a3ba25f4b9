"""How a store keeps numbers on disk: rounded as torch rounds them, never to infinity."""

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.store.number_formats import NUMBER_FORMATS
from ds_rvqvae.data.store.prepare import prepare_store
from tests.data.motion import write_packed


def test_a_bfloat16_store_rounds_as_torch_does(tmp_path):
    import torch

    values = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32) * 10.0 ** np.arange(-3, 2)
    file = write_packed(tmp_path / "all.npz", motion=values)
    for dtype in ("bfloat16", "float16"):
        store = prepare_store(DataConfig(path=str(file), store_dtype=dtype), tmp_path / dtype)
        rounded = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, dtype)).float().numpy()
        assert store.clip("clip2").dtype == np.float32 and np.array_equal(store.clip("clip2"), rounded[70:])
        assert store.nbytes == 120 * 5 * 2 and (store.folder / "shards/00000.npy").stat().st_size == 128 + 1200
    assert NUMBER_FORMATS["float16"].encode(np.array([1e9], np.float32))[0] == np.finfo(np.float16).max


@pytest.mark.parametrize(
    ("name", "kind", "values", "bits"),
    [
        ("float32", "<f4", [1.0, -2.5], None),
        # One sign bit, 5 of the exponent around 15, 10 of the mantissa.
        ("float16", "<f2", [1.0, -2.5, 65504.0], [0x3C00, 0xC100, 0x7BFF]),
        # The upper half of float32: 1 + 1/256 lies between two numbers, and the even one is taken, as of 1 + 3/256.
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
