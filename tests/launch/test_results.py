"""The launcher's output at the end of a run, of a body, and of a start that was stopped."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.request import read_launch_flags
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.host import VISIBLE
from ds_rvqvae.launch.body import CheckedRun
from ds_rvqvae.launch.hosts import Ranks
from ds_rvqvae.launch.results import joined, program, result_lines, resuming, tell_ending
from ds_rvqvae.process.terminal import PLAIN
from tests.damage import DAMAGES, damage


def told(folder, parts, data):
    """The lines of a pipe."""
    return PLAIN.text(result_lines(folder, parts, data)).split("\n")


def scores(l1, split="test", angle=2.0):
    row = {"levels": 1, "bits_per_second": 60.0, "l1": l1, "angle_error_deg": angle, "velocity_error": 0.5}
    counts = {"split": split, "clips": 3, "frames": 1234, "usage": [0.5], "perplexity": [7.0], "by_levels": [row]}
    return {**row, **counts, "code_rate": 7.5, "entropy_bits_per_second": 50.0}


@pytest.fixture
def data(demo_folder):
    return MotionData.open(DataConfig(path=str(demo_folder)))


def made_run(run, **changes):
    """A run's folder with scores, a tokenizer and a profile."""
    (run / "eval").mkdir(parents=True)
    (run / "tokenizer").mkdir()
    (run / "profile.json").write_text("{}")
    for name, l1 in (("scores", 0.25), ("untrained", 0.875)):
        (run / "eval" / f"{name}.json").write_text(json.dumps(scores(l1, **changes)))
    return run


def words_of(lines):
    """The commands among lines, by what each does."""
    commands = [shlex.split(line) for line in (lines[lines.index("next:") + 1 :] if "next:" in lines else [])]
    commands += [shlex.split(line.removeprefix("curves: ")) for line in lines if line.startswith("curves: ")]
    kinds = ("render", "encode", "evaluate", "--logdir")
    return {next(word for word in words if word in kinds): words for words in commands}


def test_a_run_tells_scores_before_and_after_what_it_made_and_what_comes_next(tmp_path, data):
    run = made_run(tmp_path / "run")
    for name, seconds in (("reconstruction_a.png", 2000), ("reconstruction_b.png", 1000)):
        (run / "eval" / name).touch()
        os.utime(run / "eval" / name, (seconds, seconds))
    lines = told(run, (), data)
    assert lines[0] == "test: 3 clips, 1,234 frames"
    assert lines[2].split()[-2:] == ["0.8750", "0.2500"]
    for line in (f"picture: {run / 'eval' / 'reconstruction_a.png'}", f"tokenizer: {run / 'tokenizer'}", f"run: {run}"):
        assert line in lines
    assert list(words_of(lines)) == ["render", "encode", "evaluate", "--logdir"]


def test_commands_name_a_held_out_clip_and_the_motion(tmp_path, data, demo_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = made_run(Path("my runs") / "one's run")
    commands = words_of(told(run, (), data))
    held_out = data.segments("test")[0].name
    encode = commands["encode"]
    assert encode[-4:] == [f"{run}/tokenizer", str(demo_folder), "--out", "codes/one's run"]
    render = commands["render"][commands["render"].index("render") + 1 :]
    (file,) = demo_folder.rglob(f"{held_out}.npz")
    assert render == [str(run), str(file), "--out", f"{file.stem}.mp4"]
    assert commands["evaluate"][-3:] == [str(run), "--split", "test"]
    assert commands["--logdir"][-3:] == [f"{run}/tensorboard", "--host", "localhost"]


def test_commands_of_a_run_on_a_store_name_a_clip_in_it_and_the_files_it_was_made_of(tmp_path, demo_folder):
    store = prepare_store(DataConfig(path=str(demo_folder), split="time"), tmp_path / "store").folder
    data = MotionData.open(DataConfig(path=str(store), split="time"))
    commands = words_of(told(made_run(tmp_path / "run"), (), data))
    segment = data.segments("test")[0]
    assert segment.start > 0
    render = commands["render"][commands["render"].index("render") + 2 :]
    assert render[:5] == [str(store), "--clip", segment.name, "--start", f"{segment.start / data.fps:.1f}"]
    assert commands["encode"][-3] == str(demo_folder)
    data.store = replace(data.store, sources=[str(tmp_path / "gone")])
    assert list(words_of(told(tmp_path / "run", (), data))) == ["render", "evaluate", "--logdir"]


def test_a_run_without_a_figure_is_offered_no_video(tmp_path, demo_folder):
    for part, offered in {"face": [], "face_jaw": [], "hands": ["render"]}.items():
        data = MotionData.open(DataConfig(path=str(demo_folder), body_part=part))
        commands = words_of(told(made_run(tmp_path / part), (), data))
        assert list(commands) == [*offered, "encode", "evaluate", "--logdir"]


@pytest.mark.parametrize("variables", [{}, {"CUDA_VISIBLE_DEVICES": "1, 2", "DS_ACCELERATOR": "cpu"}])
def test_a_failed_run_names_its_log_and_how_it_goes_on_where_it_ran(tmp_path, data, monkeypatch, capsys, variables):
    run = made_run(tmp_path / "run")
    (run / "run.log").write_text("")
    monkeypatch.setattr(sys, "argv", ["launch/train_8x4090.py", "--profile", "wide"])
    ranks = Ranks("localhost:1", {"localhost": [1]}, [1], 29500, None, True, visible=variables.get(VISIBLE))
    flags = read_launch_flags([f"--data_path={data.config.path}"])
    request = replace(flags, environment=variables).request()
    tell_ending(run, (), CheckedRun(request, run, ranks, data, 0, False), ExitStatus.FAILED)
    log, again = capsys.readouterr().err.splitlines()
    placed = "CUDA_VISIBLE_DEVICES='1, 2' " if variables else ""  # its slots are GPUs, whatever else is set
    assert log == f"what happened is in {run / 'run.log'}"
    assert again == f"continue with: {placed}{joined(resuming(run))}"


def test_scores_of_training_motion_are_said_to_be_so(tmp_path, data):
    lines = told(made_run(tmp_path / "run", split="train", angle=None), (), data)
    assert any("no clip is held out" in line for line in lines)


@pytest.mark.parametrize("kind", DAMAGES)
def test_scores_that_cannot_be_read_are_said_and_the_rest_is_told(tmp_path, data, capsys, kind):
    run = made_run(tmp_path / "run")
    damage(run / "eval" / "untrained.json", kind)
    lines = told(run, (), data)
    said = capsys.readouterr().err
    assert f"warning: {run / 'eval'}: the scores cannot be read: " in said and "evaluate" in said
    assert f"run: {run}" in lines and "encode" in words_of(lines)


def test_without_scores_of_before_or_a_tokenizer_the_rest_is_told(tmp_path, data, capsys):
    run = made_run(tmp_path / "run")
    (run / "eval" / "untrained.json").unlink()
    (run / "tokenizer").rmdir()
    lines = told(run, (), data)
    assert lines[0].startswith("test: 3 clips") and list(words_of(lines)) == ["--logdir"]
    assert f"export {run} --out DIR" in capsys.readouterr().err


def test_a_body_tells_each_part_in_a_line_and_commands_of_the_whole(tmp_path, data):
    body = tmp_path / "body"
    for part, angle in (("upper", 2.0), ("face", None)):
        made_run(body / part, angle=angle)
    (body / "tokenizer").mkdir()
    lines = told(body, ("upper", "face"), data)
    assert lines[:2] == [
        "upper: test, angle 2.00 untrained, 2.00 deg trained; L1 0.8750 untrained, 0.2500 trained",
        "face: test, L1 0.8750 untrained, 0.2500 trained",
    ]
    commands = words_of(lines)
    assert f"tokenizer: {body / 'tokenizer'}" in lines and commands["encode"][-4] == str(body / "tokenizer")
    assert commands["--logdir"][-3] == commands["evaluate"][-3] == str(body)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--profile", "wide"], ["--profile", "wide"]),
        (["--resume", "--profile=wide"], ["--profile=wide"]),
        (["--name=a b", "--resume", "global_step40"], ["--name=a b"]),
        (["--resume=runs/other", "--demo"], ["--demo"]),
    ],
)
def test_what_was_stopped_goes_on_by_the_same_flags_and_the_run_s_folder(tmp_path, monkeypatch, given, kept):
    run = made_run(tmp_path / "a run")
    monkeypatch.setattr(sys, "argv", ["launch/train_8x4090.py", *given])
    words = resuming(run)
    assert words[1:] == ["launch/train_8x4090.py", *kept, "--resume", str(run)]
    # A run that no rank has opened has no folder; several hosts may each see another disk.
    named = [] if "--name=a b" in kept else ["--name", "none"]
    assert resuming(tmp_path / "none")[1:] == ["launch/train_8x4090.py", *kept, *named, "--resume"]
    assert resuming(None)[1:] == ["launch/train_8x4090.py", *kept, "--resume"]
    assert shlex.split(joined(words)) == words


def test_the_launcher_is_named_as_it_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(sys, "argv", [str(Path("launch/train_8x4090.py").absolute())])
    assert resuming(tmp_path)[:2] == ["bash", "launch/train_8x4090.sh"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/ds-rvqvae", "train", "--demo"])
    words = resuming(None)
    assert words[-3:] == ["train", "--demo", "--resume"] and words[:-3] == program()


def test_the_program_of_this_environment_is_named_as_it_is_found(tmp_path, monkeypatch):
    own = Path(sys.executable).with_name("ds-rvqvae")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(own.parent.parent)
    assert program() == (["bin/ds-rvqvae"] if own.exists() else ["bin/python", "-m", "ds_rvqvae.cli"])
    assert subprocess.run([*program(), "--version"], capture_output=True, check=True).stdout
    (tmp_path / "ds-rvqvae").write_text("#!/bin/sh\n")
    (tmp_path / "ds-rvqvae").chmod(0o755)
    assert (program() == ["ds-rvqvae"]) != own.exists()  # another environment's is not ours
    monkeypatch.setenv("PATH", f"{own.parent}:{tmp_path}")
    assert program() == ["ds-rvqvae"]


@pytest.mark.parametrize("name", ["a b", "it's", "new\nline", "\x1b[31m", "\udcff\udcfe", "ünï", "-", "$(x)"])
def test_commands_can_be_pasted_whatever_names_are_in_them(name):
    line = joined(["printf", "%s", name])
    assert line.isprintable()
    printed = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert os.fsdecode(printed) == name
