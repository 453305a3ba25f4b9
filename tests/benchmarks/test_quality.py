"""The command `benchmarks/quality.py`, on small studies of tokenizers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ds_rvqvae.process.command import exit_status_of
from tests.data.motion import write_packed
from tests.ranks import ROOT
from tests.train.small import SMALL

SETTINGS = [flag.removeprefix("--") for flag in SMALL if flag.startswith(("--width", "--depth", "--code_dim"))]
COMMON = [
    "train_micro_batch_size_per_gpu=2",
    "tensorboard.enabled=false",
    *(f"rvqvae.model.{setting}" for setting in (*SETTINGS, "nb_code=16", "num_quantizers=3")),
    "rvqvae.data.window_size=32",
    "rvqvae.data.window_stride=16",
    "rvqvae.data.num_workers=0",
    "rvqvae.training.total_iter=3",
    "rvqvae.training.save_every=3",
]
LENGTHS = ["rvqvae.data.window_sizes=[16, 48]", "rvqvae.data.augment.mix=1"]
"""No window has the `window_size` of COMMON."""
MIRROR = "rvqvae.data.augment.mirror=1"
"""This setting fails, because these columns have no left and right."""
STUDY = {
    "profile": "demo",
    "reference": "plain",
    "seeds": [0],
    "common": COMMON,
    "settings": {"plain": [], "large's": {"profile": "large", "set": ["rvqvae.loss.commit=0.5", *LENGTHS]}},
}


@pytest.fixture
def motion(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    lengths = (64, 64, 48, 48)
    values = np.cumsum(rng.normal(size=(sum(lengths), 5)), axis=0).astype(np.float32)
    return write_packed(
        tmp_path / "motion.npz", lengths, motion=values, split=np.array(["train", "train", "val", "test"])
    )


def run_study(folder: Path, motion: Path, study: dict, *flags: str) -> subprocess.CompletedProcess:
    """Runs the command on a study in a file of the folder."""
    file = folder / "study.json"
    file.write_text(json.dumps(study))
    command = [sys.executable, str(ROOT / "benchmarks" / "quality.py"), f"--study={file}", f"--data_path={motion}"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *flags], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.processes
def test_a_study_trains_each_setting_once_and_goes_on_from_kept_results(tmp_path, motion):
    done = run_study(tmp_path, motion, STUDY, "--jobs=2", "--json=kept.json", "--picture=rates.png")
    assert done.returncode == 0, done.stderr
    assert "2/2" in done.stderr and "| plain |" in done.stdout and "| large's |" in done.stdout
    kept = json.loads((tmp_path / "kept.json").read_text())
    (plain,), (other,) = kept["plain"], kept["large's"]
    assert plain["scores"]["val"]["clips"] == plain["scores"]["test"]["clips"] == 1
    assert plain["scores"]["val"]["l1"] != other["scores"]["val"]["l1"]
    assert len(plain["scores"]["codes_in_use"]) == 3 and max(plain["scores"]["perplexity_in_training"]) <= 16
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    # Nothing is left to train, neither here nor with the kept results.
    for flags in (["--jobs=2"], ["--out=elsewhere", "--known=kept.json"]):
        again = run_study(tmp_path, motion, STUDY, *flags)
        assert (again.returncode, again.stderr, again.stdout) == (0, "", done.stdout)
    # The same settings under another name, trained anew, give the same numbers; a run that fails is named.
    more = {**STUDY, "reference": "again", "settings": {"again": ["rvqvae.loss.commit=0.02"], "mirror": [MIRROR]}}
    third = run_study(tmp_path, motion, more, "--out=third", "--jobs=2", "--json=third.json")
    assert third.returncode == 70 and "mirror-seed0: exit status 2; see third/mirror-seed0.log" in third.stderr
    assert "cannot be mirrored" in (tmp_path / "third" / "mirror-seed0.log").read_text()
    found = json.loads((tmp_path / "third.json").read_text())
    assert found.keys() == {"again"} and found["again"][0]["scores"] == plain["scores"]
    # Settings are recognised by their content, not by their names.
    fourth = run_study(tmp_path, motion, more, "--out=fourth", "--known=kept.json", "--only=again")
    assert fourth.returncode == 0 and fourth.stderr == "" and "| again |" in fourth.stdout


@pytest.mark.processes
def test_without_held_out_clips_there_are_codes_but_no_picture(tmp_path):
    values = np.random.default_rng(0).normal(size=(128, 5)).astype(np.float32)
    motion = write_packed(tmp_path / "motion.npz", (64, 64), motion=values, split=np.array(["train", "train"]))
    study = {**STUDY, "settings": {"plain": []}}
    done = run_study(tmp_path, motion, study, "--picture=rates.png", "--table=table.md")
    assert done.returncode == 2 and "rates.png: no clip of val or test has an error to draw" in done.stderr
    table = (tmp_path / "table.md").read_text()
    assert "codes in use, training" in table and "perplexity, val" not in table and "angle" not in table
    assert not (tmp_path / "rates.png").exists()


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """Runs the command in this process, in an empty folder; returns its one line on stderr. Its status must be 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import quality

    def run(motion: Path, study: dict, *flags: str) -> str:
        Path("study.json").write_text(json.dumps(study))
        monkeypatch.setattr(sys, "argv", ["quality.py", "--study=study.json", f"--data_path={motion}", *flags])
        assert exit_status_of(quality.main) == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "none"}, "no setting is called 'none'"),
        ({"settings": {"plain": ["rvqvae.model.widht=3"]}}, "plain: .*did you mean width"),
        ({"settings": {"plain": {"profile": "best"}}}, "plain: a setting is a list"),
        ({"settings": {"plain": {"profile": "bets", "set": []}}}, "bets: no such profile"),
        ({"seed": 1}, "a study is an object of"),
        ({"seeds": 3}, "seeds: give a list of different whole numbers"),
        ({"seeds": [0, 0]}, "seeds: give a list of different whole numbers"),
        ({"settings": ["plain"]}, "settings: give an object"),
        ({"settings": {"plain": [1]}}, "plain: a setting is a list"),
        ({"settings": {"plain": [], "a/b": []}}, "a/b: the name becomes a file name"),
    ],
)
def test_studies_that_are_none_are_refused(refusal, motion, changes, words):
    said = refusal(motion, {**STUDY, **changes})
    assert said.count("\n") == 1 and re.search(words, said), said
    assert not Path("runs").exists()


def test_motion_and_results_that_are_not_there_are_refused(refusal, tmp_path, motion):
    assert "nowhere.npz: no such file" in refusal(tmp_path / "nowhere.npz", STUDY, "--known=kept.json")
    assert not Path("runs").exists()
    Path("kept.json").write_text("[1]")
    assert "--known kept.json: not results" in refusal(motion, STUDY, "--known=kept.json")
