"""A run's folder shows one history, for any checkpoint that a resume went back to, and wherever it was interrupted."""

import json
import os
import shutil
import sys

import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.checkpoints import (
    ABANDONED,
    BESIDE,
    BEST,
    LATEST,
    MANIFEST,
    RESUMING,
    damage_of,
    digest_of,
    latest,
    named_checkpoint,
    read_manifest,
    seal,
)
from ds_rvqvae.runs.history import put_aside
from ds_rvqvae.runs.references import find_reference
from ds_rvqvae.tokenizer.folder import read_config
from tests.damage import damage
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
    """The run's history: step, start and L1 of each of its checkpoints; and all checkpoints that ever existed."""
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
    """Checks that all files in the folder, and all that commands use, belong to the history."""
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


def test_pruning_and_the_best_keep_to_the_history(tmp_path):
    run = MadeRun(tmp_path / "run")
    run.start("a", {10: 0.5, 20: 0.2, 30: 0.6, 40: 0.7}, keep=2)
    assert run.checkpoints() == {"global_step20": "a 20", "global_step30": "a 30", "global_step40": "a 40"}
    # Back to a step that still has the best, then on with only one kept.
    run.start("b", {30: 0.5, 50: 0.3}, "global_step20", keep=1)
    assert run.checkpoints() == {"global_step20": "a 20", "global_step50": "b 50"}
    assert named_checkpoint(run.saved, BEST).name == "global_step20"
    # The best checkpoint is not in the history of the one resumed from, or is gone.
    shutil.rmtree(run.saved / "global_step20")
    (note,) = find_reference(run.folder, BEST).notes
    assert note == "global_step20, which scored best (L1 0.2), is gone; global_step50 is used"
    said = run.start("c", {60: 0.35}, True, keep=1)
    assert "the checkpoint that scored best (L1 0.2) is gone; now the best is global_step50 (0.3)" in said
    assert run.checkpoints() == {"global_step50": "b 50", "global_step60": "c 60"}
    run.start("d", {70: 0.1}, "global_step40", keep=1)
    assert run.checkpoints() == {"global_step70": "d 70"}
    assert [(line["step"], line["start"]) for line in run.metrics()] == [
        *((step, "a") for step in (10, 20, 30, 40)),
        (70, "d"),
    ]


def test_a_resume_past_damaged_checkpoints_stays_in_the_history(tmp_path):
    run = MadeRun(tmp_path / "run")
    run.start("a", {10: 0.5, 20: 0.4, 30: 0.6, 40: 0.3})
    run.start("b", {25: 0.7, 35: 0.8, 45: 0.9}, "global_step20", finish=False)
    run.damage(45)
    (run.saved / "global_step35" / "manifest.json").write_text("")
    taken = find_reference(run.folder)
    assert taken.folder.name == "global_step25" and "global_step25 is used" in taken.notes[-1]
    assert [note.startswith("damaged, skipped: ") for note in taken.notes] == [True, True, False]
    said = run.start("c", {30: 0.2}, True)
    assert sum(note.startswith("damaged, skipped: ") for note in said) == 2
    assert any("put aside, not deleted: global_step35, global_step45" in note for note in said)
    check(run, [(10, "a", 0.5), (20, "a", 0.4), (25, "b", 0.7), (30, "c", 0.2)])


def test_what_a_version_up_to_0_3_mixed_is_told_apart_as_far_as_steps_go(tmp_path):
    run = MadeRun(tmp_path / "run", old=True)
    run.start("a", {10: 0.5, 20: 0.4, 30: 0.1})
    (run.saved / LATEST).write_text("global_step20")  # as a version up to 0.3 went back
    said = run.start("b", {25: 0.3}, True)
    assert any("global_step20 was saved by a version up to 0.3" in note and "as earlier ones" in note for note in said)
    assert any("(L1 0.4) is gone" in note for note in said) is False
    assert run.checkpoints() == {"global_step10": "a 10", "global_step20": "a 20", "global_step25": "b 25"}
    run.old = False
    run.start("c", {40: 0.35}, True)
    assert named_checkpoint(run.saved, BEST).name == "global_step25"


def test_a_pointer_to_another_history_is_refused_in_words(tmp_path):
    run = MadeRun(tmp_path / "run", old=True)
    run.start("a", {10: 0.5, 20: 0.4, 30: 0.1})
    (run.saved / LATEST).write_text("global_step20")
    with pytest.raises(UserError, match="best names global_step30, which is not in the history of global_step20"):
        find_reference(run.folder, BEST)


def test_a_name_that_means_several_is_asked_for_in_full(tmp_path):
    run = MadeRun(tmp_path / "run")
    run.start("a", {10: 0.5, 20: 0.4})
    run.start("b", {20: 0.3}, "global_step10")
    run.start("c", {15: 0.3}, "global_step10")
    names = [path.name for path in put_aside(run.saved)]
    with pytest.raises(
        UserError, match=f"--resume global_step20: several were put aside, name one: {', '.join(names)}$"
    ):
        run.resume("global_step20")
    with pytest.raises(UserError, match=f"global_step17/manifest.json is missing; checkpoints there: .*{names[0]}"):
        run.resume("global_step17")
    weights = {(path / "model.pt").read_text(): path.name for path in put_aside(run.saved)}
    assert find_reference(run.saved / ABANDONED / weights["a 20"]).run == run.folder
    run.resume(weights["a 20"])
    check(run, [(10, "a", 0.5), (20, "a", 0.4)])


def test_what_was_converted_goes_with_its_checkpoint_and_strangers_stay(tmp_path):
    run = MadeRun(tmp_path / "run")
    run.start("a", {10: 0.5, 20: 0.4})
    (run.saved / "global_step20_universal").mkdir()
    (run.folder / "tokenizer" / "mine.txt").write_text("mine")
    said = run.start("b", {15: 0.3}, "global_step10")
    assert any("tokenizer belongs to another history until the run's end" in note for note in said)
    (aside,) = put_aside(run.saved)
    assert aside.with_name(f"{aside.name}_universal").is_dir() and not (run.saved / "global_step20_universal").exists()
    run.resume("global_step20")
    assert (run.saved / "global_step20_universal").is_dir()
    assert (run.folder / "tokenizer" / "mine.txt").read_text() == "mine"
    assert find_reference(run.folder).folder == run.saved / "global_step20"


def test_without_its_lines_a_history_begins_anew_and_that_is_said(tmp_path):
    run = MadeRun(tmp_path / "run")
    run.start("a", {10: 0.5, 20: 0.4})
    run.start("b", {15: 0.3}, "global_step10")
    for file in (run.saved / ABANDONED).glob("history-*"):
        file.unlink()
    said, _ = run.resume("global_step20")
    assert any("metrics.jsonl and TensorBoard: only from global_step20 on;" in note for note in said)
    assert run.metrics() == [] and run.board() == []


def test_lines_that_a_checkpoint_kept_are_not_said_to_be_lost(tmp_path):
    run = MadeRun(tmp_path / "run")
    run.start("a", {10: 0.5, 20: 0.4})
    lines = (run.folder / "metrics.jsonl").read_bytes()
    kept = run.saved / "global_step20"
    (kept / "metrics.jsonl").write_bytes(lines)
    manifest = read_manifest(kept) | {BESIDE: {"metrics.jsonl": digest_of(kept / "metrics.jsonl")}}
    (kept / MANIFEST).write_text(json.dumps(seal(manifest)))
    run.start("b", {15: 0.3}, "global_step10")
    for file in (run.saved / ABANDONED).glob("history-*"):
        file.unlink()
    said, _ = run.resume("global_step20")
    assert any("TensorBoard: only from global_step20 on;" in note for note in said)
    assert (run.folder / "metrics.jsonl").read_bytes() == lines and run.board() == []


def test_files_of_tensorboard_go_with_their_history(tmp_path):
    run = MadeRun(tmp_path / "run")
    tell(run, STORIES["there and back again"][:3])
    assert run.board() == ["events-a", "events-c"]
    run.resume("global_step35")
    assert run.board() == ["events-a", "events-b"]
    run.resume("global_step50")
    assert run.board() == ["events-a", "events-c"]


CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open")


def _killed_at(run, which, change):
    """Resumes in a process that is killed right before this change; returns whether it was."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    left = [change]

    def count(event, arguments):
        if event in CHANGES and (event != "open" or "w" in (arguments[1] or "")):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)

    sys.addaudithook(count)
    try:
        run.resume(which)
    finally:
        os._exit(0)


def _content(folder):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: content for name, content in files.items() if ".unfinished" not in name}


@pytest.mark.parametrize(
    ("story", "which"),
    [(STORIES["to the old end"][:1], "global_step20"), (STORIES["to the old end"], "global_step40-")],
    ids=["back", "to what was left at the same steps"],
)
def test_a_resume_that_is_killed_anywhere_is_finished_by_the_next(tmp_path, story, which):
    made = MadeRun(tmp_path / "made")
    tell(made, story)
    if which.endswith("-"):
        which = next(path.name for path in put_aside(made.saved) if path.name.startswith(which))
    before = made.checkpoints()
    others = [*before.values(), *((path / "model.pt").read_text() for path in put_aside(made.saved))]
    others.remove("a 10")
    whole = made.copy(tmp_path / "whole")
    _, target = whole.resume(which)
    expected = _content(whole.folder)
    for change in range(200):
        run = made.copy(tmp_path / f"run{change}")
        if not _killed_at(run, which, change):
            break
        head = latest(run.saved)
        begun = (run.saved / RESUMING).is_file()
        # Reading meanwhile gives one of both, or an error that names the resume.
        if head is None:
            with pytest.raises(UserError, match="a resume was interrupted"):
                find_reference(run.folder, LATEST)
        else:
            weights = (head / "model.pt").read_text()
            assert weights in ((target / "model.pt").read_text(), *([] if begun else [before[head.name]]))
            assert damage_of(head) is None
        again, other = (run.copy(tmp_path / f"{name}{change}") for name in ("again", "other"))
        for one, how in ((run, which), (again, True)):
            if how is True and not begun:
                continue
            one.resume(how)
            assert _content(one.folder) == expected, (change, how)
        # Another checkpoint is asked for instead: the run resumes from it, and nothing is lost.
        other.resume("global_step10")
        assert other.checkpoints() == {"global_step10": "a 10"}
        assert [line["start"] for line in other.metrics() if line["step"] <= 10] == ["a"]
        assert sorted((path / "model.pt").read_text() for path in put_aside(other.saved)) == sorted(others)
        for one in (run, again, other):
            shutil.rmtree(one.folder)
    assert change > 15


@pytest.mark.parametrize("kind", ["empty", "random bytes after it"])
def test_a_resume_cut_short_whose_word_a_crash_spoilt_is_refused_until_a_checkpoint_is_named(tmp_path, kind):
    made = MadeRun(tmp_path / "made")
    made.start("a", {10: 0.5, 20: 0.4, 30: 0.6}, keep=1)
    made.start("b", {40: 0.3}, "global_step20", keep=1)
    which = next(path.name for path in put_aside(made.saved) if path.name.startswith("global_step30"))
    whole = made.copy(tmp_path / "whole")
    whole.resume(which)
    refused = 0
    for change in range(200):
        run = made.copy(tmp_path / f"run{change}")
        if not _killed_at(run, which, change):
            break
        resuming = run.saved / RESUMING
        if resuming.is_file():
            refused += 1
            damage(resuming, kind)
            with pytest.raises(
                UserError, match=r"resuming: damaged, and only it names .*--resume TAG: .*global_step30"
            ):
                run.resume(True)
            with pytest.raises(UserError, match="a resume was interrupted"):
                find_reference(run.folder)
            run.resume("global_step30")
            for content in (MadeRun.checkpoints, MadeRun.metrics, MadeRun.board):
                assert content(run) == content(whole), change
            assert not resuming.exists()
        shutil.rmtree(run.folder)
    assert refused > 8


def test_a_run_whose_checkpoints_all_lie_aside_does_not_begin_anew(tmp_path):
    run = MadeRun(tmp_path / "run")
    run.start("a", {10: 0.5, 20: 0.4})
    run.start("b", {15: 0.3}, "global_step10")
    for name in run.checkpoints():
        shutil.rmtree(run.saved / name)
    with pytest.raises(UserError, match=r"no complete checkpoint: none is left; go on .* --resume global_step20-"):
        run.resume(True)


def test_runs_that_die_after_an_evaluation_put_nothing_aside_again_and_again(tmp_path):
    run = MadeRun(tmp_path / "run")
    run.start("a", {10: 0.5, 20: 0.4}, finish=False)
    expected = json.loads((run.folder / "eval" / "scores.json").read_text())
    for step in (22, 24, 26):
        scores = {"step": step, "l1": 0.1, "checkpoint": None}
        (run.folder / "eval" / "scores.json").write_text(json.dumps(scores))
        (run.folder / "eval" / "reconstruction_val.png").write_text(f"a {step}")
        said, _ = run.resume(True)
        assert not any("put aside" in note for note in said)
        assert json.loads((run.folder / "eval" / "scores.json").read_text()) == expected
        (aside,) = (run.saved / ABANDONED).iterdir()
        assert (aside / "reconstruction_val.png").read_text() == f"a {step}"


def test_a_damaged_checkpoint_is_not_in_the_way_of_one_that_comes_back(tmp_path):
    run = MadeRun(tmp_path / "run")
    run.start("a", {10: 0.5, 20: 0.4, 30: 0.6})
    run.start("b", {20: 0.3, 30: 0.2}, "global_step10")
    (run.saved / "global_step20" / "manifest.json").write_text("")
    run.resume(next(path.name for path in put_aside(run.saved) if path.name.startswith("global_step30")))
    check(run, [(10, "a", 0.5), (20, "a", 0.4), (30, "a", 0.6)])
    assert {(path / "model.pt").read_text() for path in put_aside(run.saved)} == {"b 20", "b 30"}
