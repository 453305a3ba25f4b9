"""A run's folder shows one history, whatever a resume went back to, and wherever that was cut short."""

import json
import os
import shutil
import sys

import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.checkpoints import ABANDONED, BEST, LATEST, RESUMING, damage_of, latest, named_checkpoint
from ds_rvqvae.runs.history import put_aside
from ds_rvqvae.runs.references import find_reference
from ds_rvqvae.tokenizer.folder import read_config
from tests.runs.made import MadeRun

FIRST = ("a", {10: 0.5, 20: 0.4, 30: 0.6, 40: 0.3}, None)
STORIES = {
    "never resumed": [FIRST],
    "from an earlier step, to before the old end": [FIRST, ("b", {30: 0.45}, "global_step20")],
    "to the old end": [FIRST, ("b", {30: 0.7, 40: 0.8}, "global_step20")],
    "past the old end": [FIRST, ("b", {30: 0.7, 40: 0.8, 50: 0.35}, "global_step20")],
    "at other steps": [FIRST, ("b", {25: 0.7, 33: 0.2}, "global_step10")],
    "to a longer end": [FIRST, ("b", {50: 0.7, 60: 0.2}, True)],
    "back, and not scored since": [FIRST, ("b", {30: None, 35: None}, "global_step20")],
    "back before the first that was scored": [("a", {10: None, 20: 0.1}, None), ("b", {20: None}, "global_step10")],
    "back twice": [FIRST, ("b", {30: 0.2}, "global_step20"), ("c", {20: 0.45, 30: 0.6}, "global_step10")],
    "back, and on by a bare flag": [FIRST, ("b", {30: 0.7}, "global_step20"), ("c", {40: 0.65}, True)],
    "to what was left, from further on": [
        *(FIRST, ("b", {25: 0.7, 35: 0.1}, "global_step20"), ("c", {50: 0.25}, "global_step40")),
    ],
    "to the middle of what was left": [
        *(FIRST, ("b", {25: 0.7, 35: 0.1}, "global_step20"), ("c", {36: 0.9}, "global_step30")),
    ],
    "there and back again": [
        *(FIRST, ("b", {25: 0.7, 35: 0.1}, "global_step20"), ("c", {50: 0.25}, "global_step40")),
        ("d", {55: 0.3}, "global_step35"),
    ],
}
"""Starts: name, L1 by step, and what `--resume` was given."""


def told(story):
    """What the run's history is: step, start and L1 of each of its checkpoints; and all that there ever were."""
    every, history = {}, []
    for name, scores, resume in story:
        if isinstance(resume, str):
            step = int(resume.removeprefix("global_step"))
            here = [one for one in history if one[0] == step]
            head = here[0] if here else next(one for one in every if one[0] == step)
            history = every[head]
        for step, l1 in scores.items():
            history = [*history, (step, name, l1)]
            every[history[-1]] = history
    return history, list(every)


def tell(run, story, **how):
    said = []
    for name, scores, resume in story:
        said = run.start(name, scores, resume, **how)
    return said


def check(run, history, finished=True):
    """All that is in the folder and all that commands take is of the history."""
    by_step = {f"global_step{step}": f"{name} {step}" for step, name, _ in history}
    step, name, _ = history[-1]
    assert run.checkpoints() == by_step
    assert latest(run.saved).name == (run.saved / LATEST).read_text() == f"global_step{step}"
    scored = [(l1, step) for step, _, l1 in history if l1 is not None]
    if scored:
        best = f"global_step{min(scored)[1]}"
        assert named_checkpoint(run.saved, BEST).name == (run.saved / BEST).read_text() == best
        assert find_reference(run.folder, BEST).folder == run.saved / best
        last = max(step for _, step in scored)
        scores = json.loads((run.folder / "eval" / "scores.json").read_text())
        assert scores["step"] == last
        assert scores["l1"] == next(l1 for own, _, l1 in history if own == last)
        pictures = run.folder / "eval" / "reconstruction_val.png"
        assert not pictures.is_file() or pictures.read_text() == by_step[f"global_step{last}"]
    else:
        assert not (run.saved / BEST).exists() and not (run.folder / "eval" / "scores.json").exists()
        with pytest.raises(ValueError, match="no checkpoint best"):
            named_checkpoint(run.saved, BEST)
    assert [(line["step"], line["start"]) for line in run.metrics()] == [(step, name) for step, name, _ in history]
    taken = find_reference(run.folder)
    if finished:
        assert read_config(taken.folder).details["made_of"] == f"{name} {step}"
        assert json.loads((run.folder / "memory.json").read_text())["last_step"] == step
    else:
        assert taken.folder == run.saved / f"global_step{step}"
    assert taken.notes == ()


@pytest.mark.parametrize("old", [False, True], ids=["now", "of a version up to 0.3"])
@pytest.mark.parametrize("story", STORIES)
def test_all_that_a_folder_shows_is_of_one_history(tmp_path, story, old):
    run = MadeRun(tmp_path / "run", old)
    tell(run, STORIES[story])
    history, every = told(STORIES[story])
    check(run, history)
    # Nothing is lost.
    aside = {(path / "model.pt").read_text() for path in put_aside(run.saved)}
    assert {*aside, *run.checkpoints().values()} == {f"{name} {step}" for step, name, _ in every}
    assert not (run.saved / RESUMING).exists()
