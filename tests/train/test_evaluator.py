"""Which step of a run is its best, and what is said of scores and tokenizers that cannot be written."""

import math

import pytest

from tests.ranks import run_ranks
from tests.train.small import THREE_STEPS, make_trainer

pytestmark = pytest.mark.processes


def best_checkpoints(folder: str, data: str) -> list:
    """In a rank: after each save, its step and whether it counted as the best; and what evaluations say of a step."""
    trainer = make_trainer(folder, data, [*THREE_STEPS, "--eval_every=1", "--save_every=1", "--lr=5"])
    save, saved = trainer.checkpointer.save, []

    def noted(step, state, best):
        saved.append([step, best, state["scores"]["step"], state["scores"]["l1"]])
        save(step, state, best)

    trainer.checkpointer.save = noted
    trainer.train()
    assert trainer.evaluator.scores_of(2) is None and trainer.evaluator.scores_of(3)["step"] == 3
    assert trainer.evaluator.best_l1 == min(l1 for *_, l1 in saved)
    return saved


def test_the_best_is_the_step_that_scores_better_than_all_before(tmp_path, demo_folder):
    (saved,) = run_ranks(1, best_checkpoints, tmp_path / "results", folder=str(tmp_path / "run"), data=str(demo_folder))
    steps, best, scored, errors = zip(*saved, strict=True)
    assert steps == scored == (1, 2, 3)
    assert list(best) == [error < min(errors[:place], default=math.inf) for place, error in enumerate(errors)]
    assert best != (True, True, True)


def export_into_a_file(folder: str, data: str) -> dict:
    """In a rank: a run whose tokenizer cannot be written, and whose scores cannot either."""
    import logging
    from pathlib import Path

    trainer = make_trainer(folder, data, THREE_STEPS)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("ds_rvqvae").addHandler(handler)
    for name in ("tokenizer", "eval"):
        (Path(folder) / name).write_text("in the way")
    trainer.train()
    return {"said": said, "steps": trainer.steps_done}


def test_what_cannot_be_written_is_said_and_the_run_ends_well(tmp_path, demo_folder):
    run = tmp_path / "run"
    (found,) = run_ranks(1, export_into_a_file, tmp_path / "results", folder=str(run), data=str(demo_folder))
    assert found["steps"] == 3
    assert any("scores and pictures not written" in text for text in found["said"])
    assert any(f"`ds-rvqvae export {run} --out DIR` does it" in text for text in found["said"]), found["said"]
