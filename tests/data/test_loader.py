import subprocess
import sys

import numpy as np
import pytest
import torch

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.data.order import BatchOrder, Shuffled
from tests.data.motion import write_packed


def open_data(folder, **settings) -> MotionData:
    file = write_packed(folder / "all.npz", split=np.array(["train"] * 3))
    return MotionData.open(DataConfig(path=str(file), window_size=16, window_stride=2, **settings))


@pytest.fixture
def data(tmp_path) -> MotionData:
    return open_data(tmp_path)


@pytest.fixture
def of_several_lengths(tmp_path) -> MotionData:
    return open_data(tmp_path, window_sizes=[16, 24, 40])


def loader_of(data, batch, *, seed=3, world_size=1, rank=0, **settings) -> BatchLoader:
    order = BatchOrder.of(data, batch, seed, world_size * settings.get("accumulation", 1))
    return BatchLoader(data, order, rank=rank, world_size=world_size, **settings)


def load(data, steps, batch, **settings) -> list[torch.Tensor]:
    """Returns each step's windows on one rank, `[windows, window_size, C]`."""
    with loader_of(data, batch, **settings) as loader:
        return [torch.cat(loader.next()) for _ in range(steps)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("several", [False, True])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(tmp_path, world_size, several):
    data = open_data(tmp_path, window_sizes=[16, 24, 40] if several else None)
    ranks = [load(data, 6, 42, world_size=world_size, rank=rank) for rank in range(world_size)]
    together = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
    alone = load(data, 6, 42)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert {tuple(windows.shape[:2]) for windows in alone} == (
        {(42, 16), (28, 24), (16, 40)} if several else {(42, 16)}
    )


def test_accumulation_cuts_a_ranks_slice_in_order(data):
    with loader_of(data, 12, world_size=2, rank=1, accumulation=3) as loader:
        batches = loader.next()
    assert [tuple(batch.shape) for batch in batches] == [(2, 16, 5)] * 3
    wanted = data.windows(data.window_starts()[BatchOrder.of(data, 12, seed=3).step(0).windows[6:12]])
    assert np.array_equal(torch.cat(batches).numpy(), wanted)


def test_windows_of_several_lengths_come_in_micro_batches_of_about_equal_frames(of_several_lengths):
    data = of_several_lengths
    order = BatchOrder.of(data, 14, seed=3, parts=4)
    with loader_of(data, 14, world_size=2, rank=1, accumulation=2) as loader:
        for step in range(6):
            samples, batches = order.step(step), loader.next()
            sizes = {16: [3, 4], 24: [2, 3], 40: [1, 2]}[samples.window_size]
            assert [tuple(batch.shape) for batch in batches] == [(size, samples.window_size, 5) for size in sizes]
            starts = data.training_windows[samples.window_size][samples.windows[-sum(sizes) :]]
            assert np.array_equal(torch.cat(batches).numpy(), data.windows(starts, samples.window_size))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("settings", [{}, {"window_sizes": [24, 16, 40], "balance": "speaker"}])
def test_resuming_at_a_step_goes_on_as_if_nothing_happened(tmp_path, num_workers, settings):
    data = open_data(tmp_path, **settings)
    whole = load(data, 12, 8, num_workers=num_workers)
    resumed = load(data, 5, 8, num_workers=num_workers, start_step=7)
    assert all(torch.equal(one, other) for one, other in zip(whole[7:], resumed, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_while_gathering_reaches_the_trainer(data, num_workers):
    data.training_windows[16] += 1000  # beyond the store
    with (
        loader_of(data, 8, num_workers=num_workers) as loader,
        pytest.raises(IndexError, match="windows of 16 rows"),
    ):
        loader.next()


def test_waiting_is_measured_and_closing_is_final(data):
    loader = loader_of(data, 8, num_workers=0)
    loader.next()
    assert loader.take_wait() > 0 and loader.take_wait() == 0
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        loader.next()


def test_an_order_for_other_data_is_refused(data):
    other = BatchOrder({16: Shuffled(5, 0)}, {16: 8}, seed=0)
    with pytest.raises(ValueError, match=r"but the order has \{16: 5\}"):
        BatchLoader(data, other, rank=0, world_size=1)
    with pytest.raises(ValueError, match=r"steps of \{16: 2\} windows for 3 x 1 micro batches"):
        BatchLoader(data, BatchOrder.of(data, 2, seed=0), rank=0, world_size=1, accumulation=3)


def test_reading_a_store_needs_no_torch(data):
    code = f"""
import sys
from ds_rvqvae.data import open_store
import ds_rvqvae.data.dataset, ds_rvqvae.data.loader, ds_rvqvae.data.demo
print(open_store({str(data.store.folder)!r}).clip_names, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['clip0', 'clip1', 'clip2'] False"
