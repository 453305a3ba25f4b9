"""Training on windows of several lengths, by real ranks."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from ds_rvqvae.train.readings import READING_KEYS
from tests.ranks import train_ranks
from tests.train.small import EXACT, SMALL, read_metrics

pytestmark = pytest.mark.processes
LENGTHS = ["--window_sizes=16,32,48", "--balance=speaker"]


def _numbers(run):
    readings = ("samples_per_s", "data_wait", *READING_KEYS)
    return [{key: value for key, value in line.items() if key not in readings} for line in read_metrics(run)]


def test_going_on_with_several_lengths_equals_no_interruption(tmp_path, demo_folder):
    # Five windows of the longest size on two ranks: two and three.
    flags = [*SMALL, *LENGTHS, f"--data_path={demo_folder}", f"--out={tmp_path}", "--batch_size=4", "--save_every=4"]
    flags += ["--quantize_dropout_prob=0.5", "--total_iter=7", "--resume"]
    printed = train_ranks(2, *flags, "--name=whole")
    assert "global batch 8 x 32 frames; windows by length: " in printed[0]
    assert "rvqvae.data.balance: share of the samples per speaker (of the windows): 1 25.0%" in printed[0]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    lines = read_metrics(whole)
    for block in (lines[:3], lines[3:6]):
        assert sorted(line["window_size"] for line in block) == [16, 32, 48]
    # The state left by a run that died after its checkpoint at step 4.
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "global_step7")
    (broken / "checkpoints" / "latest").write_text("global_step4")
    shutil.rmtree(broken / "tokenizer")
    train_ranks(2, *flags, "--name=broken")
    assert _numbers(broken) == _numbers(whole)
    weights, others = (load_file(run / "tokenizer" / "model.safetensors") for run in (whole, broken))
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_any_number_of_ranks_computes_the_same_with_several_lengths(tmp_path, demo_folder):
    # Eight windows of the longest size on three ranks: two, three and three.
    shapes = {1: (6, 2), 3: (4, 1)}
    for ranks, (micro, accumulation) in shapes.items():
        flags = [*SMALL, *EXACT, *LENGTHS, f"--data_path={demo_folder}", f"--out={tmp_path}", f"--name={ranks}"]
        flags += [f"--batch_size={micro}", f"--gradient_accumulation_steps={accumulation}", "--total_iter=6"]
        flags += ["--lr=0.001", "--nb_code=8", "--dead_code_threshold=0.5"]
        train_ranks(ranks, *flags)
    alone, together = (read_metrics(tmp_path / str(ranks)) for ranks in shapes)
    for mine, theirs in zip(together, alone, strict=True):
        assert mine["window_size"] == theirs["window_size"]
        for key in ("loss", "recons", "velocity", "commit", "grad_norm"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4), (mine["step"], key)
        assert mine["usage"] == theirs["usage"]
