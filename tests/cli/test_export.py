"""`ds-rvqvae export`: the weights of training, from any checkpoint, and errors."""

import json
import shutil

import pytest
import torch

from ds_rvqvae import MotionTokenizer, cli
from tests.ranks import train_ranks
from tests.train.small import SMALL

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def run(tmp_path_factory, demo_folder):
    """A small run of two ranks, with the checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("export")
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={folder}", "--batch_size=4", "--total_iter=6"]
    train_ranks(2, *flags, "--name=run", "--save_every=2", "--eval_every=2", "--keep_checkpoints=3")
    return folder / "run"


def _export(capsys, *arguments):
    status = cli.main(["export", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def _same(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_the_newest_checkpoint_is_what_training_exported(run, tmp_path, capsys):
    for flags in ([], ["--checkpoint", "latest"], ["--checkpoint", "global_step6"]):
        out = tmp_path / f"tokenizer{len(flags)}{flags[-1:]}"
        status, printed, _ = _export(capsys, run, "--out", out, *flags, "--json")
        assert status == 0
        result = json.loads(printed)
        assert result["training_step"] == 6 and result["files"] == ["README.md", "config.json", "model.safetensors"]
        exported, trained = MotionTokenizer.from_pretrained(out), MotionTokenizer.from_pretrained(run / "tokenizer")
        assert _same(exported, trained) and exported.details == trained.details
        assert result["fingerprint"] == exported.fingerprint == trained.fingerprint
        config = json.loads((out / "config.json").read_text())
        scores = json.loads((run / "eval" / "scores.json").read_text())
        assert scores.pop("checkpoint") == config["checkpoint"] and len(config["checkpoint"]) == 64
        assert config["scores"] == scores and config["body_part"] == "upper" and len(config["joint_names"]) == 13


def test_an_older_checkpoint_and_the_best(run, tmp_path, capsys):
    assert _export(capsys, run, "--checkpoint", "global_step2", "--out", tmp_path / "second")[0] == 0
    second = MotionTokenizer.from_pretrained(tmp_path / "second")
    assert second.details["training_step"] == second.details["scores"]["step"] == 2
    assert not _same(second, MotionTokenizer.from_pretrained(run / "tokenizer"))
    assert _export(capsys, run, "--checkpoint", "best", "--out", tmp_path / "best")[0] == 0
    best = MotionTokenizer.from_pretrained(tmp_path / "best").details
    assert (run / "checkpoints" / "best").read_text() == f"global_step{best['training_step']}"


def test_a_tokenizer_is_exported_again(run, tmp_path, capsys):
    assert _export(capsys, run / "tokenizer", "--out", tmp_path / "again")[0] == 0
    assert _same(
        MotionTokenizer.from_pretrained(tmp_path / "again"), MotionTokenizer.from_pretrained(run / "tokenizer")
    )


def test_refusals_leave_nothing(run, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    file = damaged / "checkpoints" / "global_step6" / "mp_rank_00_model_states.pt"
    file.write_bytes(file.read_bytes()[:-1])
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_text("")
    cases = [
        ([run, "--checkpoint", "global_step5"], "no checkpoint global_step5; there is global_step2, global_step4"),
        ([run, "--checkpoint", "../../elsewhere"], "no checkpoint ../../elsewhere"),
        ([damaged, "--checkpoint", "latest"], "global_step6: mp_rank_00_model_states.pt has"),
        ([empty], "not a run's folder"),
        ([run / "tokenizer", "--checkpoint", "best"], "has no checkpoints"),
        ([run, "--format", "t2mgpt"], "3"),
    ]
    for arguments, message in cases:
        status, out, err = _export(capsys, *arguments, "--out", tmp_path / "out")
        assert (status, out, err.count("\n")) == (2, "", 1) and message in err, err
        assert not (tmp_path / "out").exists()
    for taken in (empty, tmp_path / "file"):
        status, _, err = _export(capsys, run, "--out", taken)
        assert status == 2 and "exists" in err
    assert _export(capsys, run, "--out", tmp_path / "file" / "out")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "empty", "file"]
