"""The best step of a run, and messages about scores and tokenizers that cannot be written."""

import math

import pytest

from ds_rvqvae.train.evaluator import evaluation_line
from tests.ranks import run_ranks
from tests.train.small import THREE_STEPS, make_trainer

pytestmark = pytest.mark.processes


def best_checkpoints(folder: str, data: str) -> list:
    """In a rank: the step of each save and whether it counted as the best, and the scores noted for a step."""
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


def line_of(best_step, best_l1=0.3301, **scores):
    values = {
        "step": 300_000,
        "split": "val",
        "l1": 0.3412,
        "angle_error_deg": 12.844,
        "perplexity": [487.0, 1.0, 102.0],
    }
    return evaluation_line(values | scores, best_l1, best_step)


def test_an_evaluation_is_a_line_of_a_terminal():
    assert line_of(200, step=200) == "step 200, val: angle 12.84 deg, L1 0.3412 (best), levels 2/3, perplexity 197"
    assert line_of(150, step=200) == "step 200, val: angle 12.84 deg, L1 0.3412 (best 0.3301 at 150), levels 2/3"
    assert line_of(None, step=0).endswith("L1 0.3412 (before training), levels 2/3")
    assert line_of(295_000, perplexity=[9.0] * 16).startswith("step 300,000, val: 12.84 deg, L1 0.341 (best 0.330 at ")
    assert line_of(295_000) == "step 300,000, val: angle 12.84 deg, L1 0.341 (best 0.330 at 295,000), levels 2/3"
    assert max(len(line_of(step, split="train")) for step in (None, 1, 295_000, 300_000)) <= 80
    assert "deg" not in line_of(1, angle_error_deg=None) and "L1 0.3412" in line_of(1, angle_error_deg=None)
    assert line_of(1, l1=None, angle_error_deg=None).endswith("no clip is long enough to be scored")
    assert "L1 nan" in line_of(1, l1=math.nan)


def train_amid_failures(folder: str, data: str, fails: bool) -> dict:
    """In a rank: a run of three steps in which everything that only reports fails on rank 0; its messages."""
    import json
    import logging
    import os
    import shutil
    import sys
    from pathlib import Path

    run = Path(folder)
    if fails:
        run.mkdir(parents=True, exist_ok=True)
        (run / "csv").write_text("in the way")  # of a monitor
    monitors = [f"--set=csv_monitor.output_path={folder}", "--set=csv_monitor.job_name=csv"]
    flags = [*THREE_STEPS, "--eval_every=1", "--save_every=2", *monitors, "--set=csv_monitor.enabled=true"]
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("ds_rvqvae").addHandler(handler)
    trainer = make_trainer(folder, data, flags)
    step, losses = trainer.step, []

    def noted():
        losses.append(step())
        if fails and trainer.rank == 0 and trainer.steps_done == 2:
            shutil.rmtree(run / "tensorboard")
            sys.modules["ds_rvqvae.viz.reconstruction"] = None  # as if matplotlib were not installed
            trainer.log._file._file._handle = os.open(run / "metrics.jsonl", os.O_RDONLY)
            (run / "metrics.jsonl").unlink()
            shutil.rmtree(run / "eval")
            for name in ("tokenizer", "eval"):
                (run / name).write_text("in the way")
            (run / "memory.json").mkdir()
            trainer.log.meter._memory._process = None  # every reading fails, as after the loss of the driver
            trainer.loader._threads.shutdown = None
        return losses[-1]

    if fails and trainer.rank == 0:
        (run / "eval").mkdir()
        (run / "eval" / "reconstruction_train.png").mkdir()
    trainer.step = noted
    trainer.train()
    values = [[float(value) for value in loss] for loss in losses]
    saved = json.loads((run / "checkpoints" / "global_step3" / "manifest.json").read_text())["scores"]
    return {"said": said, "losses": values, "saved": trainer.checkpointer.saved_step, "scores": saved}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, demo_folder):
    """Results of two ranks for an undisturbed run and for one with failures, and the folder of the second."""
    folder = tmp_path_factory.mktemp("failures")
    arguments = {"data": str(demo_folder)}
    found = [
        run_ranks(
            2, train_amid_failures, folder / f"found-{fails}", folder=str(folder / name), fails=fails, **arguments
        )
        for name, fails in (("whole", False), ("run", True))
    ]
    return *found, folder / "run"


def test_what_only_decorates_or_reports_changes_nothing_on_any_rank(runs):
    undisturbed, disturbed, _ = runs
    for whole, mine in zip(undisturbed, disturbed, strict=True):
        assert mine["losses"] == whole["losses"] and len(mine["losses"]) == 3
        assert mine["saved"] == 3 and mine["scores"] == whole["scores"]
        assert [text for text in whole["said"] if "cannot" in text or "not " in text] == []


@pytest.mark.parametrize(
    "text",
    [
        "csv_monitor: cannot be written: ",
        "tensorboard: gets no more data until a restart: ",
        "step 0: no picture of train: Is a directory: {run}/eval/reconstruction_train.png",
        "step 2: no picture of val: ModuleNotFoundError: ",
        "step 2: scores not written: File exists",
        "step 3: not all is logged: ",
        "the last lines of metrics.jsonl may not be on the disk: ",
        "memory.json not written: Is a directory: {run}/memory.json",
        "step 3: tokenizer not exported: ",
        "{run} --out DIR` does it",
        "at the end of the training, after all was saved: ",
    ],
)
def test_what_cannot_be_written_or_drawn_is_said(runs, text):
    _, (first, _), run = runs
    said = [line for line in first["said"] if text.format(run=run) in line]
    assert said, "\n".join(first["said"])
    if "until a restart" in text:
        assert len(said) == 1
