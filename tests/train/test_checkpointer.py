"""What a save checks before it writes."""

import pytest

from ds_rvqvae.gpu.sizes import parameter_count
from ds_rvqvae.runs.checkpoints import checkpoint_bytes
from tests.ranks import run_ranks
from tests.train.small import SMALL

pytestmark = pytest.mark.processes


def saves_with_so_much_free(folder: str, data: str, *, averaged: bool):
    """In a rank: the step saved and the saves failed, where a byte is missing on the disk, and where none is."""
    import shutil
    from unittest import mock

    from tests.train.small import make_trainer

    trainer = make_trainer(folder, data, [*SMALL, *(["--set=rvqvae.training.ema_decay=0.9"] if averaged else [])])
    trainer.initialize_codebooks()
    trainer.step()
    needed = checkpoint_bytes(parameter_count(trainer.data.in_features, trainer.profile.rvqvae.model), averaged)
    found = []
    for free in (needed - 1, needed):
        # The disk alone is played: filling a real one to the byte takes a file system of its own.
        usage = shutil.disk_usage(folder)._replace(free=free)
        with mock.patch("shutil.disk_usage", return_value=usage):
            trainer.save()
        found.append([trainer.checkpointer.saved_step, trainer.checkpointer.failures])
    return found


@pytest.mark.parametrize("averaged", [False, True])
def test_room_for_the_whole_checkpoint_is_asked_for_the_weights_average_too(tmp_path, demo_folder, averaged):
    arguments = {"folder": str(tmp_path / "run"), "data": str(demo_folder), "averaged": averaged}
    (found,) = run_ranks(1, saves_with_so_much_free, tmp_path, **arguments)
    assert found == [[None, 1], [1, 0]]
