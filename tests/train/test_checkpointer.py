"""Checks of a save before it writes; devices of the optimizer's state after a load."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ds_rvqvae.gpu.sizes import parameter_count
from ds_rvqvae.runs.checkpoints import checkpoint_bytes, read_manifest
from ds_rvqvae.train.checkpointer import place_optimizer_state
from tests.ranks import run_ranks
from tests.train.small import SMALL

pytestmark = pytest.mark.processes


def saves_with_so_much_free(folder: str, data: str, *, averaged: bool):
    """In a rank: the saved step, the failed saves, and whether the scored step counts as the best; with one byte too
    few on the disk, and with enough."""
    import shutil
    from unittest import mock

    from tests.train.small import make_trainer

    trainer = make_trainer(folder, data, [*SMALL, *(["--set=rvqvae.training.ema_decay=0.9"] if averaged else [])])
    trainer.initialize_codebooks()
    trainer.step()
    trainer.evaluator.evaluate(1, "scores.json")
    needed = checkpoint_bytes(parameter_count(trainer.data.in_features, trainer.profile.rvqvae.model), averaged)
    found = []
    for free in (needed - 1, needed):
        # Only the disk's free space is simulated: to fill a real disk to the byte takes a separate file system.
        usage = shutil.disk_usage(folder)._replace(free=free)
        with mock.patch("shutil.disk_usage", return_value=usage):
            trainer.save()
        found.append([trainer.checkpointer.saved_step, trainer.checkpointer.failures, trainer.evaluator.is_best(1)])
        # The best checkpoint must be on disk.
        assert (trainer.evaluator.best_l1 < math.inf) is trainer.evaluator.is_best(1)
        trainer.evaluator.evaluate(1, "scores.json")
    return found


@pytest.mark.parametrize("averaged", [False, True])
def test_room_for_the_whole_checkpoint_is_asked_for_the_weights_average_too(tmp_path, demo_folder, averaged):
    arguments = {"folder": str(tmp_path / "run"), "data": str(demo_folder), "averaged": averaged}
    (found,) = run_ranks(1, saves_with_so_much_free, tmp_path, **arguments)
    assert found == [[None, 1, False], [1, 0, True]]
    manifest = read_manifest(tmp_path / "run" / "checkpoints" / "global_step1")
    assert manifest["best"]["step"] == 1 and manifest["best"]["l1"] == manifest["scores"]["l1"]
    assert (manifest["parent"], manifest["ancestors"]) == (None, [])


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_count_on_the_cpu_goes_to_the_gpu_of_its_parameter_where_the_optimizer_needs_it(fused):
    """The GPU is torch's fake one, whose tensors have a device and no content."""
    with FakeTensorMode():
        weights = torch.nn.Parameter(torch.zeros(4, device="cuda:1"))
        weights.grad = torch.zeros_like(weights)
        optimizer = torch.optim.AdamW([weights], fused=fused)
        moments = {"exp_avg": torch.zeros_like(weights), "exp_avg_sq": torch.zeros_like(weights)}
        state = optimizer.state[weights] = {**moments, "step": torch.tensor(2.0)}  # as DeepSpeed's universal load does
        assert state["step"].device == torch.device("cpu") != weights.device
        place_optimizer_state(optimizer)
        assert state["step"].device == (weights.device if fused else torch.device("cpu"))
        assert all(state[name] is moment and moment.device == weights.device for name, moment in moments.items())
        optimizer.step()


def test_the_whole_state_goes_to_another_device():
    weights = torch.nn.Parameter(torch.zeros(4, device="meta"))
    optimizer = torch.optim.AdamW([weights], capturable=True)
    optimizer.state[weights] = {"step": torch.tensor(2.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}
    place_optimizer_state(optimizer)
    assert [value.device for value in optimizer.state[weights].values()] == [weights.device] * 3
