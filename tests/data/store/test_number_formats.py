"""How a store keeps numbers on disk: rounded as torch rounds them, never to infinity."""

import numpy as np

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
