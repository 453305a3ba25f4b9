"""The windows for the first codes: enough of them, and the same for any number of ranks."""

import pytest
import torch

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.data.order import BatchOrder
from ds_rvqvae.train.first_latents import count_steps, stretch
from tests.ranks import train_ranks
from tests.train.small import SMALL

LENGTHS = {"one length": {}, "several lengths": {"window_sizes": [16, 32, 48]}}


@pytest.fixture(params=LENGTHS.values(), ids=LENGTHS.keys())
def order(request, demo_folder):
    """Batches of 12 windows of demo motion, in seven micro batches, and their data."""
    settings = {"path": str(demo_folder), "body_part": "upper", "window_size": 32, "window_stride": 16}
    data = MotionData.open(DataConfig(**settings, **request.param))
    return BatchOrder.of(data, 14, 0, 7), data


def config(nb_code):
    return ModelConfig(nb_code=nb_code, down_t=2, stride_t=2)


def latents_of(order, steps):
    return sum(order.batch(step) * order.window_size(step) // 4 for step in steps)


@pytest.mark.parametrize("nb_code", [8, 100, 150])
def test_as_many_batches_as_bring_two_latents_a_code(order, nb_code):
    order, _ = order
    steps, latents = count_steps(order, 0, config(nb_code))
    assert latents == latents_of(order, range(steps)) >= 2 * nb_code
    assert steps == 1 or latents_of(order, range(steps - 1)) < 2 * nb_code


def test_no_more_than_an_epoch_of_windows(order):
    order, _ = order
    windows = sum(sequence.num_windows for sequence in order.sequences.values())
    steps, latents = count_steps(order, 0, config(65_536))
    assert latents < 65_536
    assert sum(map(order.batch, range(steps))) >= windows > sum(map(order.batch, range(steps - 1)))


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_together_have_what_one_rank_has_in_its_order(order, ranks):
    order, data = order

    def windows(rank, world_size):
        with BatchLoader(data, order, rank=rank, world_size=world_size, num_workers=0) as loader:
            return [window for part in stretch(loader, order, range(3), rank, world_size) for window in part]

    alone, together = windows(0, 1), [window for rank in range(ranks) for window in windows(rank, ranks)]
    assert len(alone) == len(together) == sum(map(order.batch, range(3)))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(together, alone, strict=True))
    with BatchLoader(data, order, rank=0, world_size=1, num_workers=0) as loader:
        assert torch.equal(alone[0], loader.next()[0][0])


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "words"), [([], "first codes: 64 per level from 128 latents, 4 batches"), (["--lineage"], None)]
)
def test_a_run_says_what_its_first_codes_are_from(tmp_path, demo_folder, flags, words):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4", *flags]
    train_ranks(1, *flags, "--nb_code=64", "--total_iter=1")
    log = (tmp_path / "run" / "run.log").read_text()
    assert "bf16 arithmetic of this CPU: " in log
    assert (words in log) if words else "first codes: " not in log
