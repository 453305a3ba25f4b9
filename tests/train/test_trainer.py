"""The trainer, step by step and in complete runs."""

import pytest

from tests.ranks import run_ranks
from tests.train.small import THREE_STEPS, make_trainer, read_metrics

pytestmark = pytest.mark.processes


def steps_by_hand_and_by_the_loop(folder: str, data: str) -> dict:
    """In a rank: the differences between a run of three steps and three single steps, and the losses of the latter."""
    import signal

    import torch

    handlers = [signal.getsignal(number) for number in range(1, signal.NSIG)]
    stepped = make_trainer(f"{folder}/stepped", data, THREE_STEPS)
    changed = handlers != [signal.getsignal(number) for number in range(1, signal.NSIG)]
    losses = []
    for _ in range(3):
        # Only the first call makes codes; none takes a batch away.
        stepped.initialize_codebooks()
        losses.append(stepped.step())
    state = {name: value.clone() for name, value in stepped.model.state_dict().items()}
    stepped.close()
    trained = make_trainer(f"{folder}/trained", data, THREE_STEPS)
    trained.train()
    return {
        "differ": [name for name, value in trained.model.state_dict().items() if not torch.equal(value, state[name])],
        "handlers": [changed, handlers != [signal.getsignal(number) for number in range(1, signal.NSIG)]],
        "steps": [stepped.steps_done, trained.steps_done, trained.checkpointer.saved_step],
        "losses": [{name: float(loss) for name, loss in each._asdict().items()} for each in losses],
    }


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_loop_is_single_steps_and_logs_their_losses(tmp_path, demo_folder, world_size):
    arguments = {"folder": str(tmp_path), "data": str(demo_folder)}
    ranks = run_ranks(world_size, steps_by_hand_and_by_the_loop, tmp_path / "results", **arguments)
    for found in ranks:
        assert found["differ"] == [] and found["steps"] == [3, 3, 3]
        assert found["handlers"] == [False, False]  # neither after building one, nor after training
    for step, line in enumerate(read_metrics(tmp_path / "trained")):
        of_ranks = [found["losses"][step] for found in ranks]
        for name in of_ranks[0]:
            assert line[name] == pytest.approx(sum(losses[name] for losses in of_ranks) / world_size, rel=1e-6), name


def moved_by_a_step(folder: str, data: str, clipping: float) -> list[float]:
    """In a rank: the largest change of a weight in the first step, and the gradient's norm before it was clipped."""
    trainer = make_trainer(folder, data, [*THREE_STEPS, f"--gradient_clipping={clipping}"])
    trainer.initialize_codebooks()
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.step()
    change = max(float((value - before[name]).abs().max()) for name, value in trainer.model.named_parameters())
    norm = float(trainer.engine.get_global_grad_norm())
    trainer.close()
    return [change, norm]


def test_gradients_are_clipped_on_all_ranks(tmp_path, demo_folder):
    found = {}
    for clipping in (0, 1, 1e-12):
        place = tmp_path / str(clipping)
        found[clipping] = run_ranks(
            2, moved_by_a_step, place, folder=str(place), data=str(demo_folder), clipping=clipping
        )
    (free, norm), (usual, _), (tiny, clipped_norm) = (found[clipping][0] for clipping in found)
    assert all(ranks[0] == ranks[1] for ranks in found.values())
    # Adam divides by the gradients' size, so that only gradients below its epsilon of 1e-8 make smaller steps.
    assert free == pytest.approx(usual, rel=0.01) and 0 < tiny < usual / 1000
    assert clipped_norm == pytest.approx(norm, rel=1e-6)
