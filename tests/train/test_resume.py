"""Save, load, go on: nobody can tell from the numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import train_ranks
from tests.train.small import SMALL

pytestmark = pytest.mark.processes
MACHINE_READINGS = ("samples_per_s", "data_wait", "memory_gib")


def _metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MACHINE_READINGS} for line in lines]


def test_save_load_and_go_on_equals_no_interruption(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--batch_size=4", "--log_every=2"]
    flags += ["--quantize_dropout_prob=0.5", "--gradient_accumulation_steps=2", "--milestones=5", "--save_every=5"]
    train_ranks(2, *flags, "--name=whole", "--total_iter=8")
    first = train_ranks(2, *flags, "--name=parts", "--total_iter=5", "--resume")
    assert "has no checkpoint yet: starting at step 0" in first[0]
    assert (tmp_path / "parts" / "checkpoints" / "latest").read_text() == "global_step5"
    # What a crash after the checkpoint leaves behind: later lines, the last one torn.
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.0}\n{"step": 8, "lo')
    second = train_ranks(2, *flags, "--name=parts", "--total_iter=8", "--resume")
    assert "going on from" in second[0]
    whole, parts = (_metrics(tmp_path / name) for name in ("whole", "parts"))
    # A run's last step is always logged, so the interrupted one has a line more.
    assert [line["step"] for line in parts] == [1, 2, 4, 5, 6, 8]
    same = [line for line in parts if line["step"] in (1, 2, 4, 8)]
    assert same == [line for line in whole if line["step"] in (1, 2, 4, 8)]
    weights, resumed = (load_file(tmp_path / name / "tokenizer" / "model.safetensors") for name in ("whole", "parts"))
    assert weights.keys() == resumed.keys()
    for name, value in weights.items():
        assert torch.equal(value, resumed[name]), name
    third = train_ranks(2, *flags, "--name=parts", "--total_iter=8", "--resume")
    assert "nothing to do" in third[0]


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path, demo_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [
        *SMALL,
        f"--data_path={demo_folder}",
        f"--out={tmp_path}",
        "--batch_size=4",
        "--name=run",
        "--save_every=3",
    ]
    flags.append("--name=run")
    train_ranks(1, *flags, "--total_iter=5")
    checkpoints = tmp_path / "run" / "checkpoints"
    # As if the run had died after step 5 with its last checkpoint at step 3.
    (checkpoints / "latest").write_text("global_step3")
    train_ranks(1, *flags, "--total_iter=7", "--resume")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("Train/loss")] == [4 * step for step in range(1, 8)]
    assert [line["step"] for line in _metrics(tmp_path / "run")] == list(range(1, 8))
    tags = events.Tags()
    for tag in ("Train/lr", "Train/grad_norm", "Train/skipped_steps", "Speed/samples_per_s", "Speed/data_wait"):
        assert tag in tags["scalars"]
    assert "Train_perplexity/level_3" in tags["scalars"] and "Memory_GiB/rank_0" in tags["scalars"]
    assert "Train_code_counts/level_1" in tags["histograms"]
    assert set(tags["images"]) == {"Reconstruction/train", "Reconstruction/val"}
