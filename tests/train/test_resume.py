"""Save, load, continue: the numbers show no difference."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ds_rvqvae import MotionTokenizer
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.train.readings import READING_KEYS
from tests.ranks import finish, start_ranks, train_ranks
from tests.train.small import SMALL, read_metrics

pytestmark = pytest.mark.processes
MACHINE_READINGS = ("samples_per_s", "data_wait", *READING_KEYS)


def _numbers(run):
    lines = read_metrics(run)
    return [{key: value for key, value in line.items() if key not in MACHINE_READINGS} for line in lines]


def _assert_equal_tokenizers(first, second):
    weights, others = (load_file(run / "tokenizer" / "model.safetensors") for run in (first, second))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


def test_save_load_and_go_on_equals_no_interruption(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--batch_size=4", "--log_every=4"]
    flags += ["--quantize_dropout_prob=0.5", "--gradient_accumulation_steps=2", "--milestones=5", "--save_every=3"]
    flags += ["--total_iter=8", "--resume", "--set=rvqvae.training.ema_decay=0.9", "--set=rvqvae.schedule.kind=cosine"]
    printed = train_ranks(2, *flags, "--name=whole")
    assert "has no checkpoint yet: starting at step 0" in printed[0]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert [line["step"] for line in read_metrics(whole)] == [1, 4, 8]
    # The state after death in step 8: saved at 3 and 6, in the middle of a logging interval, with an incomplete line.
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "global_step8")
    (broken / "checkpoints" / "latest").write_text("global_step6")
    shutil.rmtree(broken / "tokenizer")
    lines = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join(lines[:2]) + '{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    printed = train_ranks(2, *flags, "--name=broken", new_interpreters=True)
    assert "going on from" in printed[0] and "global_step6" in printed[0]
    assert json.loads((broken / "memory.json").read_text())["first_step"] == 6
    assert _numbers(broken) == _numbers(whole)
    _assert_equal_tokenizers(whole, broken)
    assert "nothing to do" in train_ranks(2, *flags, "--name=broken")[0]


def test_a_damaged_checkpoint_is_passed_over_and_past_ones_do_not_push_out_new_ones(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--batch_size=4", "--save_every=2", "--resume"]
    # A face does not support all keys of this profile: its run leaves them out, and again on a resume.
    flags += ["--name=run", "--keep_checkpoints=2", "--profile=best", "--body_part=face"]
    said = train_ranks(1, *flags, "--total_iter=6")[0]
    saved = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in saved.glob("global_step*")) == ["global_step4", "global_step6"]
    model = saved / "global_step6" / "mp_rank_00_model_states.pt"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    (saved / ".unfinished-global_step5").mkdir()
    printed = train_ranks(1, *flags, "--total_iter=5")
    assert "global_step6: mp_rank_00_model_states.pt does not have its sha256" in printed[0]
    assert (saved / "latest").read_text() == "global_step5" and (saved / "global_step5").is_dir()
    assert not list(saved.glob(".unfinished*"))
    left_out = "face: left out of the profile: rvqvae.data.augment.mirror, because expressions "
    assert said.count(left_out) == printed[0].count(left_out) == 1
    assert re.findall("changed: ([^:]+)", printed[0]) == ["rvqvae.training.total_iter"]
    kept = json.loads((tmp_path / "run" / "profile.json").read_text())["rvqvae"]
    assert (kept["data"]["augment"]["mirror"], kept["data"]["augment"]["offset"]) == (0, 0.2)
    assert kept["loss"]["loss_rotation"] == 0


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path, demo_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [
        *SMALL,
        f"--data_path={demo_folder}",
        f"--out={tmp_path}",
        "--batch_size=4",
        "--save_every=3",
        "--name=run",
    ]
    train_ranks(1, *flags, "--total_iter=5")
    checkpoints = tmp_path / "run" / "checkpoints"
    # Like a run that died after step 5 with its last checkpoint at step 3.
    (checkpoints / "latest").write_text("global_step3")
    train_ranks(1, *flags, "--total_iter=7", "--resume")
    # And like a run that then died again without any.
    _assert_steps(EventAccumulator(str(tmp_path / "run" / "tensorboard")), 7)
    shutil.rmtree(checkpoints)
    train_ranks(1, *flags, "--total_iter=2", "--resume")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    _assert_steps(events, 2)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]
    tags = events.Tags()
    for tag in ("Train/lr", "Train/grad_norm", "Train/skipped_steps", "Speed/samples_per_s", "Speed/data_wait"):
        assert tag in tags["scalars"]
    assert "Train_perplexity/level_3" in tags["scalars"] and "Memory_GiB/rank_0" in tags["scalars"]
    assert "Train_code_counts/level_1" in tags["histograms"]
    assert set(tags["images"]) == {"Reconstruction/train", "Reconstruction/val"}


def _assert_steps(events, count):
    assert [event.step for event in events.Reload().Scalars("Train/loss")] == [4 * step for step in range(1, count + 1)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, demo_folder):
    """The flags of a run of two steps, and its folder; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={folder}", "--batch_size=4", "--name=run"]
    train_ranks(1, *flags, "--total_iter=2")
    return flags, folder / "run"


@pytest.mark.parametrize(
    ("flag", "pattern"),
    [
        ("--width=64", "rvqvae.model.width was 32 in .* and cannot change to 64"),
        ("--set=rvqvae.model.codebook_distance=cosine", 'codebook_distance was "euclidean" in .* and cannot change'),
        ("--body_part=hands", 'rvqvae.data.body_part was "upper"'),
        ("--data_path={other}", "other columns or another normalisation"),
    ],
)
def test_a_resume_that_does_not_fit_is_refused_and_touches_nothing(trained, tmp_path, flag, pattern):
    flags, run = trained
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    other = write_demo_motion(tmp_path / "other", clips=4, frames=160, seed=5)
    command = ["-m", "ds_rvqvae.train", *flags, "--total_iter=4", "--resume", flag.format(other=other)]
    (rank,) = start_ranks(1, command)
    printed = rank.communicate(timeout=120)[0]
    assert rank.returncode == 2, printed
    assert re.search(pattern, printed) and "Traceback" not in printed
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_an_interrupted_run_is_scored_from_its_checkpoint(tmp_path, demo_folder):
    flags = [
        *SMALL,
        f"--data_path={demo_folder}",
        f"--out={tmp_path}",
        "--batch_size=4",
        "--name=run",
        "--total_iter=3",
    ]
    train_ranks(2, *flags)
    run = tmp_path / "run"
    scores = json.loads((run / "eval" / "scores.json").read_text())
    shutil.rmtree(run / "tokenizer")
    evaluate = ["-m", "ds_rvqvae.cli", "evaluate", str(run), "--json", str(tmp_path / "scores.json")]
    finish(start_ranks(1, evaluate))
    again = json.loads((tmp_path / "scores.json").read_text())
    assert again["l1"] == pytest.approx(scores["l1"], rel=1e-5) and again["usage"] == scores["usage"]


def test_a_run_goes_on_on_the_other_kind_of_cpu(tmp_path, demo_folder, monkeypatch):
    """With bf16 arithmetic and without: each resumes a run of the other, and computes the same up to rounding."""
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--batch_size=4", "--mixed_precision=bf16"]
    for begins, goes_on in (("native", "none"), ("none", "native")):
        monkeypatch.setenv("DS_RVQVAE_CPU_BF16", begins)
        train_ranks(1, *flags, f"--name={begins}", "--total_iter=4", "--save_every=2")
        other = shutil.copytree(tmp_path / begins, tmp_path / f"{begins}-{goes_on}")
        shutil.rmtree(other / "checkpoints" / "global_step4")
        (other / "checkpoints" / "latest").write_text("global_step2")
        monkeypatch.setenv("DS_RVQVAE_CPU_BF16", goes_on)
        printed = train_ranks(1, *flags, f"--name={other.name}", "--total_iter=4", "--resume")
        assert "global_step2" in printed[0]
        assert f"bf16 arithmetic of this CPU: {goes_on} (forced" in (other / "run.log").read_text()
        for mine, theirs in zip(read_metrics(other), read_metrics(tmp_path / begins), strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.02), mine["step"]
        # Tokenizers too: codes from the weights of the other kind, in fp32.
        monkeypatch.delenv("DS_RVQVAE_CPU_BF16")
        tokenizers = [MotionTokenizer.from_pretrained(run / "tokenizer") for run in (other, tmp_path / begins)]
        motion = torch.randn(64, tokenizers[0].model.in_features, generator=torch.Generator().manual_seed(0))
        codes = [tokenizer.encode(motion) for tokenizer in tokenizers]
        assert (codes[0][:, 0] == codes[1][:, 0]).float().mean() > 0.8
