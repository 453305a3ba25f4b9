"""A real run that goes back to an earlier step: its commands, metrics and TensorBoard afterwards."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from ds_rvqvae.runs.checkpoints import checkpoints, latest, mark_in, named_checkpoint
from ds_rvqvae.runs.history import put_aside
from ds_rvqvae.runs.references import find_reference
from ds_rvqvae.runs.tokenizers import open_single
from tests.ranks import train_ranks
from tests.train.small import EXACT, SMALL, read_metrics

pytestmark = pytest.mark.processes


def _points(run, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [
        (event.step // 4, event.value) for event in EventAccumulator(str(run / "tensorboard")).Reload().Scalars(tag)
    ]


def _check(run, steps, losses):
    """Checks that all that the run shows belongs to the history with these losses, and its last step is exported."""
    saved = run / "checkpoints"
    assert [line["step"] for line in read_metrics(run)] == steps
    assert [line["loss"] for line in read_metrics(run)] == losses
    points = _points(run, "Train/loss")
    assert [step for step, _ in points] == steps and [value for _, value in points] == pytest.approx(losses)
    head = latest(saved)
    l1 = {path: json.loads((path / "manifest.json").read_text())["scores"]["l1"] for path in checkpoints(saved)}
    assert named_checkpoint(saved, "best") == min(l1, key=l1.get)
    fingerprint = mark_in(head).fingerprint
    for file in ("eval/scores.json", "tokenizer/config.json", "memory.json"):
        assert json.loads((run / file).read_text())["checkpoint"] == fingerprint, file
    assert json.loads((run / "eval" / "scores.json").read_text())["l1"] == l1[head]
    validated = {step: value for step, value in _points(run, "Val/l1") if step}
    assert validated == pytest.approx({int(path.name.removeprefix("global_step")): l1[path] for path in l1})
    taken = find_reference(run)
    assert (taken.folder, taken.notes) == (run / "tokenizer", ())
    assert open_single(run).fingerprint == open_single(head).fingerprint


def test_a_run_goes_back_on_other_ranks_and_at_another_rate_and_there_again(tmp_path, demo_folder):
    flags = [*SMALL, *EXACT, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    flags += ["--save_every=2", "--eval_every=2", "--keep_checkpoints=9"]
    run = tmp_path / "run"
    saved = run / "checkpoints"
    train_ranks(1, *flags, "--total_iter=6")
    first = [line["loss"] for line in read_metrics(run)]
    _check(run, [1, 2, 3, 4, 5, 6], first)
    tokenizer = load_file(run / "tokenizer" / "model.safetensors")

    # Made worse on purpose, at the steps that it has in common with the first history.
    (said, *_) = train_ranks(2, *flags, "--total_iter=4", "--resume=global_step2", "--lr=0.1")
    assert "put aside, not deleted: global_step4, global_step6" in said
    second = [line["loss"] for line in read_metrics(run)]
    assert second[:2] == first[:2] and second[2:] != first[2:4]
    _check(run, [1, 2, 3, 4], second)
    assert named_checkpoint(saved, "best").name == "global_step2"
    (aside,) = (path for path in put_aside(saved) if path.name.startswith("global_step6-"))

    (said,) = train_ranks(1, *flags, f"--resume={aside.name}", "--total_iter=6")
    assert "brought back: global_step4, global_step6" in said and "nothing to do" in said
    _check(run, [1, 2, 3, 4, 5, 6], first)
    assert (run / "eval" / "reconstruction_val.png").is_file()

    # Killed at its end, right before it wrote the tokenizer.
    shutil.rmtree(run / "tokenizer")
    (said,) = train_ranks(1, *flags, "--resume", "--total_iter=6")
    assert f"{run / 'tokenizer'} was missing: made again from global_step6" in said
    again = load_file(run / "tokenizer" / "model.safetensors")
    assert all(again[name].equal(weight) for name, weight in tokenizer.items())
