"""A small run for tests: its flags, and its engine and trainer inside a rank."""

import json
import time
from pathlib import Path

SMALL = [
    "--profile=demo",
    "--width=32",
    "--depth=2",
    "--code_dim=8",
    "--nb_code=16",
    "--num_quantizers=3",
    "--window_size=32",
    "--window_stride=16",
    "--log_every=1",
    "--eval_every=1000",
    "--save_every=1000",
    "--num_workers=1",
]
EXACT = ["--mixed_precision=no", "--dropout=0", "--quantize_dropout_prob=0"]
"""Nothing random, nothing rounded: any number of ranks computes the same."""
THREE_STEPS = [*EXACT, "--batch_size=4", "--gradient_accumulation_steps=2", "--total_iter=3", "--nb_code=64"]
"""A run of three steps, two micro batches each."""


def make_trainer(folder: str, data: str, flags: list[str]):
    """Builds a trainer on this rank, for the small run with more flags."""
    from ds_rvqvae.config.request import read_training_flags
    from ds_rvqvae.data.dataset import MotionData
    from ds_rvqvae.train.trainer import Trainer

    profile = read_training_flags([*SMALL, f"--data_path={data}", *flags]).request().profile
    return Trainer.build(profile, MotionData.open(profile.rvqvae.data), Path(folder))


def read_metrics(run: Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_until(done, seconds=90):
    """Waits until ranks have reached a state; fails if they do not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
