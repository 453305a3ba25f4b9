import subprocess
import sys

import numpy as np
import pytest
import torch

from ds_rvqvae.data.batches import BatchLoader, BatchOrder
from ds_rvqvae.data.motion_data import MotionData
from ds_rvqvae.profile import DataConfig
from tests.data.motion import write_packed


@pytest.fixture
def data(tmp_path) -> MotionData:
    file = write_packed(tmp_path / "all.npz", split=np.array(["train"] * 3))
    return MotionData.open(DataConfig(path=str(file), window_size=16, window_stride=2))


def load(data, steps, *, micro_batch, world_size=1, rank=0, seed=3, **settings) -> list[torch.Tensor]:
    """Each step's windows on one rank, `[micro * accumulation, window, C]`."""
    accumulation = settings.setdefault("accumulation", 1)
    order = BatchOrder(len(data.window_starts()), micro_batch * accumulation * world_size, seed)
    with BatchLoader(data, order, rank=rank, world_size=world_size, micro_batch=micro_batch, **settings) as loader:
        return [torch.cat(loader.next()) for _ in range(steps)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(data, world_size):
    share = 42 // world_size
    ranks = [load(data, 3, micro_batch=share, world_size=world_size, rank=rank) for rank in range(world_size)]
    together = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
    alone = load(data, 3, micro_batch=42)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_accumulation_cuts_a_ranks_slice_in_order(data):
    order = BatchOrder(len(data.window_starts()), 12, seed=3)
    with BatchLoader(data, order, rank=1, world_size=2, micro_batch=2, accumulation=3) as loader:
        batches = loader.next()
    assert [tuple(batch.shape) for batch in batches] == [(2, 16, 5)] * 3
    wanted = data.windows(data.window_starts()[order.step(0)[6:12]])
    assert np.array_equal(torch.cat(batches).numpy(), wanted)


@pytest.mark.parametrize(("num_windows", "global_batch"), [(10, 3), (10, 10), (3, 10), (7, 50), (1, 4)])
def test_every_window_comes_once_an_epoch(num_windows, global_batch):
    order = BatchOrder(num_windows, global_batch, seed=0)
    samples = np.concatenate([order.step(step) for step in range(num_windows * 2)])
    for epoch in samples.reshape(-1, num_windows):
        assert sorted(epoch.tolist()) == list(range(num_windows))


def test_the_order_is_a_function_of_seed_and_step():
    order = BatchOrder(100, 7, seed=5)
    forwards = [order.step(step) for step in range(60)]
    assert all(np.array_equal(forwards[step], BatchOrder(100, 7, seed=5).step(step)) for step in (59, 0, 31))
    assert not np.array_equal(forwards[0], BatchOrder(100, 7, seed=6).step(0))
    assert not np.array_equal(order.epoch(0), order.epoch(1))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_resuming_at_a_step_goes_on_as_if_nothing_happened(data, num_workers):
    whole = load(data, 12, micro_batch=8, num_workers=num_workers)
    resumed = load(data, 5, micro_batch=8, num_workers=num_workers, start_step=7)
    assert all(torch.equal(one, other) for one, other in zip(whole[7:], resumed, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_while_gathering_reaches_the_trainer(data, num_workers):
    order = BatchOrder(len(data.window_starts()), 8, seed=0)
    data.mean = data.mean[:2]  # no longer fits the columns
    with (
        BatchLoader(data, order, rank=0, world_size=1, micro_batch=8, num_workers=num_workers) as loader,
        pytest.raises(ValueError, match="broadcast"),
    ):
        loader.next()


def test_waiting_is_measured_and_closing_is_final(data):
    order = BatchOrder(len(data.window_starts()), 8, seed=0)
    loader = BatchLoader(data, order, rank=0, world_size=1, micro_batch=8, num_workers=0)
    loader.next()
    assert loader.take_wait() > 0 and loader.take_wait() == 0
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        loader.next()


def test_an_order_for_other_data_is_refused(data):
    with pytest.raises(ValueError, match="but the order has 5"):
        BatchLoader(data, BatchOrder(5, 8, seed=0), rank=0, world_size=1, micro_batch=8)


def test_reading_a_store_needs_no_torch(data):
    code = f"""
import sys
from ds_rvqvae.data import open_store
import ds_rvqvae.data.motion_data, ds_rvqvae.data.batches, ds_rvqvae.data.demo
print(open_store({str(data.store.folder)!r}).clip_names, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['clip0', 'clip1', 'clip2'] False"
