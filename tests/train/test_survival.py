"""Runs that survive: different numbers of ranks, full disks, bad numbers, resumes from any checkpoint."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ds_rvqvae.model.losses import Losses
from ds_rvqvae.runs.checkpoints import checkpoints, damage_of
from ds_rvqvae.text import counted
from tests.damage import damage
from tests.ranks import finish, run_ranks, start_ranks, train_ranks
from tests.train.small import EXACT, SMALL, make_trainer, read_metrics

pytestmark = pytest.mark.processes
NOTING = "import sys; from tests.train.test_survival import *; train_and_note_devices(sys.argv[1], sys.argv[2:])"


def train_and_note_devices(folder, flags):
    """Trains on this rank. When a checkpoint of another number of ranks is loaded, notes in a file the device of each
    tensor of the optimizer's state and that of its parameter."""
    from ds_rvqvae.train import checkpointer
    from ds_rvqvae.train.engine import own_device
    from ds_rvqvae.train.rank import main

    place = checkpointer.place_optimizer_state

    def noted(optimizer):
        place(optimizer)
        found = [
            [name, value.device == parameter.device and value.device == own_device(), float(state["step"])]
            for parameter, state in optimizer.state.items()
            for name, value in state.items()
        ]
        Path(folder, f"devices{os.environ['RANK']}.json").write_text(json.dumps(found))

    checkpointer.place_optimizer_state = noted
    main(flags)


def test_the_number_of_ranks_may_change_on_the_way(tmp_path, demo_folder):
    common = [*SMALL, *EXACT, f"--data_path={demo_folder}", f"--out={tmp_path}", "--nb_code=8", "--save_every=4"]
    train_ranks(2, *common, "--name=never", "--batch_size=6", "--total_iter=12")
    train_ranks(2, *common, "--name=often", "--batch_size=6", "--total_iter=4")
    often = [*common, "--name=often", "--batch_size=6", "--resume"]
    # Twice with 3 ranks: they also resume their own checkpoint with the same global batch.
    for ranks, total, batch in (
        (3, 6, "4 x accumulation 1"),
        (3, 8, "4 x accumulation 1"),
        (1, 12, "6 x accumulation 2"),
    ):
        noted = tmp_path / f"noted{total}"
        noted.mkdir()
        printed = finish(start_ranks(ranks, ["-c", NOTING, str(noted), *often, f"--total_iter={total}"]))
        assert f"{counted(ranks, 'rank')}: the global batch stays 12, as micro batch {batch}" in printed[0]
        assert "WARNING" not in "".join(printed)
        loads = [json.loads(file.read_text()) for file in noted.iterdir()]
        step = {6: 4.0, 12: 8.0}.get(total)
        names = ("exp_avg", "exp_avg_sq", "step")
        assert [sorted(load) for load in loads] == [[[name, True, step] for name in names]] * (ranks if step else 0)
    never, often = (read_metrics(tmp_path / name) for name in ("never", "often"))
    assert [line["step"] for line in often] == list(range(1, 13))
    for mine, theirs in zip(often, never, strict=True):
        for key in ("loss", "recons", "velocity", "commit"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4), (mine["step"], key)
    (ranks,) = start_ranks(1, ["-m", "ds_rvqvae.train", *common, "--name=never", "--batch_size=6", "--total_iter=20"])
    assert "--resume" in ranks.communicate(timeout=60)[0] and ranks.returncode == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def train_with_little_room(folder, data, before_check):
    """Trains in a folder whose disk is full during the saves of steps 4 and 6: before the check of a save, or after it.

    Returns the number of failed saves in a row after each, and the messages about them.
    """
    import logging
    from pathlib import Path

    trainer = make_trainer(folder, data, ["--batch_size=4", "--total_iter=8", "--save_every=2", "--keep_checkpoints=9"])
    save, write, failed, said = trainer.checkpointer.save, trainer.engine.save_checkpoint, [], []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("ds_rvqvae").addHandler(handler)
    filler = Path(folder) / "filler"

    def fill():
        if trainer.steps_done in (4, 6):
            filler.write_bytes(b"x" * (shutil.disk_usage(folder).free - 40_000))

    def filled_save(*arguments):
        if before_check and trainer.rank == 0:
            fill()
        save(*arguments)
        filler.unlink(missing_ok=True)
        failed.append(trainer.checkpointer.failures)

    def filled_write(*arguments, **keywords):
        if trainer.rank == 0:
            fill()
        write(*arguments, **keywords)

    trainer.checkpointer.save, trainer.engine.save_checkpoint = filled_save, filled_write
    trainer.train()
    return {"failed": failed, "said": [text for text in said if "no checkpoint saved" in text]}


@pytest.mark.parametrize(
    ("before_check", "reason"),
    [(True, r"[0-9,]+ too few for a checkpoint"), (False, "RuntimeError: |No space left")],
    ids=["seen before", "in the middle of a file"],
)
def test_a_full_disk_leaves_the_older_checkpoint_and_training_goes_on(
    small_disk, tmp_path, demo_folder, before_check, reason
):
    arguments = {"folder": str(small_disk / "run"), "data": str(demo_folder), "before_check": before_check}
    first, second = run_ranks(2, train_with_little_room, tmp_path, **arguments)
    assert first["failed"] == second["failed"] == [0, 1, 2, 0]
    assert len(first["said"]) == 2 and re.search(reason, first["said"][0]), first["said"]
    saved = checkpoints(small_disk / "run" / "checkpoints")
    assert [path.name for path in saved] == ["global_step2", "global_step8"]
    assert all(damage_of(path) is None for path in saved)
    assert len(read_metrics(small_disk / "run")) == 8


def train_on_poisoned_batches(folder, data):
    """Trains with a NaN on one rank in every tenth step."""
    import logging

    import torch

    trainer = make_trainer(folder, data, ["--batch_size=4", "--total_iter=40", "--log_every=10"])
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("ds_rvqvae").addHandler(handler)
    gather = trainer.loader.next

    def poisoned():
        batches = gather()
        if trainer.rank == 1 and trainer.steps_done % 10 == 5:
            batches[0][0, 3] = float("nan")
        return batches

    trainer.loader.next = poisoned
    trainer.train()
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    named = [message for message in messages if "skipped" in message]
    return {"finite": all(bool(torch.isfinite(tensor).all()) for tensor in tensors), "named": named}


def test_a_tenth_of_poisoned_batches_is_survived_and_their_clips_named(tmp_path, demo_folder):
    arguments = {"folder": str(tmp_path / "run"), "data": str(demo_folder)}
    for result in run_ranks(2, train_on_poisoned_batches, tmp_path, **arguments):
        assert result["finite"] and len(result["named"]) == 4
        assert "step 6 skipped" in result["named"][0] and "its clips: 1_" in result["named"][0]
    assert read_metrics(tmp_path / "run")[-1]["skipped_steps"] == 4


def train_on_nothing_but_nan(folder, data):
    """Prints the error with which the run gave up."""
    trainer = make_trainer(folder, data, ["--batch_size=4", "--total_iter=40", "--max_skipped_steps=3"])
    gather = trainer.loader.next
    trainer.loader.next = lambda: [batch * (float("nan") if trainer.steps_done > 4 else 1.0) for batch in gather()]
    try:
        trainer.train()
    except RuntimeError as error:
        return [trainer.steps_done, str(error)]


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path, demo_folder):
    arguments = {"folder": str(tmp_path / "run"), "data": str(demo_folder)}
    for step, said in run_ranks(2, train_on_nothing_but_nan, tmp_path, **arguments):
        assert step == 7 and said.startswith("3 steps in a row")


def test_the_best_checkpoint_stays(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    # At this learning rate the model diverges soon after its first evaluation.
    flags += ["--lr=5", "--save_every=2", "--eval_every=2", "--keep_checkpoints=1", "--keep_every=6"]
    train_ranks(1, *flags, "--total_iter=10")
    saved = tmp_path / "run" / "checkpoints"
    best = (saved / "best").read_text()
    assert {path.name for path in checkpoints(saved)} == {best, "global_step6", "global_step10"}
    assert (saved / "latest").read_text() == "global_step10"


def test_resume_takes_a_tag_or_a_folder(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--batch_size=4", "--save_every=2"]
    train_ranks(1, *flags, "--name=run", "--total_iter=6")
    printed = train_ranks(1, *flags, "--name=run", "--resume=global_step2", "--total_iter=4")
    assert "going on from" in printed[0] and "global_step2" in printed[0]
    own = [f"--resume={tmp_path / 'run'}", "--total_iter=5"]
    printed = train_ranks(1, *own)
    assert "global_step4" in printed[0]
    (rank,) = start_ranks(1, ["-m", "ds_rvqvae.train", *flags, "--name=run", "--resume=global_step3"])
    printed = rank.communicate(timeout=60)[0]
    assert rank.returncode == 2 and "global_step3" in printed and "checkpoints there" in printed
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "global_step5" / "manifest.json").read_text())
    assert manifest["step"] == 5 and manifest["global_batch"] == 4 and set(manifest["versions"]) >= {"torch"}
    assert len(manifest["profile"]["sha256"]) == 64


def _weights(run, step):
    import torch

    file = run / "checkpoints" / f"global_step{step}" / "mp_rank_00_model_states.pt"
    return torch.load(file, weights_only=False)["module"]


def test_a_run_goes_on_as_before_where_a_crash_damaged_its_files(tmp_path, demo_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--batch_size=4", "--eval_every=2"]
    train_ranks(1, *flags, "--name=whole", "--total_iter=4", "--save_every=2")
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    train_ranks(1, *flags, "--name=whole", "--total_iter=6", "--resume")
    names = ["profile.json", "metrics.jsonl", "run.log", "memory.json", "checkpoints/latest", "checkpoints/best"]
    for name in (*names, "eval/scores.json", "eval/untrained.json"):
        damage(run / name, "nuls at its end")
    (board,) = (run / "tensorboard").iterdir()
    damage(board, "half")
    printed = train_ranks(1, *flags, "--name=run", "--total_iter=6", "--resume")[0]
    for name in ("profile.json", "metrics.jsonl"):
        assert re.search(rf"{name}: .*damaged.*; restored from .*global_step4", printed)
    assert "points are written again from metrics.jsonl" in printed
    for mine, theirs in zip(*map(read_metrics, (run, tmp_path / "whole")), strict=True):
        for key in ("step", *Losses._fields, "perplexity", "usage", "lr", "grad_norm"):
            assert mine[key] == theirs[key], (mine["step"], key)
    mine, theirs = (_weights(folder, 6) for folder in (run, tmp_path / "whole"))
    assert all(mine[name].equal(theirs[name]) for name in theirs) and mine.keys() == theirs.keys()
    assert json.loads((run / "eval" / "scores.json").read_text())["step"] == 6
    assert not any(byte < 9 for byte in (run / "run.log").read_bytes()) and (run / "run.log").read_bytes().decode()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("Train/loss")] == [4 * step for step in range(1, 7)]
