"""The history that checkpoints know."""

import pytest
import torch

from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.checkpoints import MODEL_FILE, mark_in
from ds_rvqvae.runs.history import best_before, find_checkpoint, marks_before, saved_state, unfinished_resume
from tests.runs.made import MadeRun


@pytest.mark.parametrize("old", [False, True], ids=["now", "of a version up to 0.3"])
def test_the_best_is_the_earliest_of_those_that_scored_alike(tmp_path, old):
    run = MadeRun(tmp_path / "run", old)
    run.start("a", {10: 0.5, 20: 0.2, 30: None, 40: 0.2, 50: 0.1})
    checkpoints = {step: run.saved / f"global_step{step}" for step in (10, 20, 30, 40, 50)}
    assert best_before(checkpoints[40]).mark == mark_in(checkpoints[20])
    assert best_before(checkpoints[10]).l1 == 0.5
    assert [mark.step for mark in marks_before(checkpoints[40])] == [10, 20, 30]
    assert find_checkpoint(run.saved, f"global_step40-{mark_in(checkpoints[40]).fingerprint[:12]}") == checkpoints[40]
    assert unfinished_resume(run.saved) is None


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    for content in (b"", b"nothing"):
        (tmp_path / MODEL_FILE).write_bytes(content)
        with pytest.raises(UserError, match=f"^{tmp_path / MODEL_FILE}: cannot be read: "):
            saved_state(tmp_path)
    torch.save({"rvqvae": {"scores": None}}, tmp_path / MODEL_FILE)
    assert saved_state(tmp_path) == {"scores": None}
