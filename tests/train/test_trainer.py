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
