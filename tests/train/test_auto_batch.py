"""The micro batch that fits on every rank, and the learning rate that goes with a batch."""

import gc
import json
import resource
import shutil

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.plan import make_plan
from ds_rvqvae.model.nets import Encoder
from ds_rvqvae.runs.checkpoints import read_manifest
from ds_rvqvae.runs.start import find_resume
from ds_rvqvae.train.auto_batch import _fits, fit_batch, micro_batches
from ds_rvqvae.train.readings import READING_KEYS
from tests.ranks import finish, run_ranks, start_ranks
from tests.train.limited import limited_memory
from tests.train.small import SMALL, read_metrics

MACHINE_READINGS = ("samples_per_s", "data_wait", *READING_KEYS)


@pytest.mark.parametrize(
    ("largest", "share", "expected"),
    [
        (80, 80, [80, 40, 20, 16, 8, 4, 2, 1]),
        (160, 160, [160, 80, 40, 32, 16, 8, 4, 2, 1]),
        (64, 128, [64, 32, 16, 8, 4, 2, 1]),
        (48, 48, [48, 24, 16, 8, 4, 2, 1]),
        (10, 30, [10, 6, 3, 2, 1]),
        (7, 7, [7, 1]),
        (1, 4, [1]),
    ],
)
def test_micro_batches_go_down_in_sixteens_then_by_halves_and_divide_the_ranks_share(largest, share, expected):
    assert micro_batches(largest, share) == expected


def small_profile(*overrides):
    sizes = ["rvqvae.model.width=32", "rvqvae.model.nb_code=16", "rvqvae.data.window_size=32"]
    return load_profile("demo", [*sizes, *overrides])


def test_a_try_that_fails_leaves_nothing_behind(one_rank):
    profile = small_profile("train_micro_batch_size_per_gpu=48")
    random_state = torch.get_rng_state()
    with limited_memory(30):
        fitted, line = fit_batch(profile, 12, torch.device("cpu"))
    assert line == (
        "--auto_batch_size: 48 does not fit on rank 0; micro batch 24 x accumulation 2, global batch 48 as before"
    )
    assert (fitted.train_micro_batch_size_per_gpu, fitted.gradient_accumulation_steps) == (24, 2)
    assert profile.train_micro_batch_size_per_gpu == 48
    assert not any(isinstance(thing, Encoder) for thing in gc.get_objects())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_batch_that_fits_stays_and_other_errors_come_through(one_rank):
    profile = small_profile("train_micro_batch_size_per_gpu=6", "gradient_accumulation_steps=3")
    fitted, line = fit_batch(profile, 12, torch.device("cpu"))
    assert line == "--auto_batch_size: micro batch 6 fits on every rank"
    assert (fitted.train_micro_batch_size_per_gpu, fitted.gradient_accumulation_steps) == (6, 3)
    with limited_memory(1, RuntimeError("shapes differ")), pytest.raises(RuntimeError, match="shapes differ"):
        fit_batch(profile, 12, torch.device("cpu"))


def fits_with_little_and_then_with_all_memory() -> list[bool]:
    """In a rank on a CPU: whether a step fits while it may allocate only so many MiB more, and after that."""
    dist.init_process_group("gloo")
    sizes = ["rvqvae.model.width=256", "rvqvae.model.depth=2", "bf16.enabled=false", "rvqvae.data.window_size=128"]
    profile = load_profile("demo", [*sizes, "train_micro_batch_size_per_gpu=17"])
    fits = []
    for mebibytes in (*range(20, 84, 8), None):
        limit = -1 if mebibytes is None else psutil.Process().memory_info().data + (mebibytes << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, -1))
        fits.append(_fits(make_plan(profile, 78, 1, CARDS["4090"]), torch.device("cpu"), None))
    return fits


@pytest.mark.processes
def test_memory_that_really_runs_out_is_recognised_and_does_not_spoil_the_next_try(tmp_path):
    # After some of its failures for lack of memory oneDNN makes no operation any more in the same thread.
    (fits,) = run_ranks(1, fits_with_little_and_then_with_all_memory, tmp_path)
    assert fits == [False] * 8 + [True]


def train(limits, *flags, status=0):
    """Runs as many ranks as there are limits; returns the output of rank 0."""
    ranks = start_ranks(len(limits), ["-m", "tests.train.limited", json.dumps(limits), *SMALL, *flags])
    if not status:
        return finish(ranks)[0]
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [status] * len(ranks), printed
    return printed[0]


def numbers(run):
    lines = read_metrics(run)
    return [{key: value for key, value in line.items() if key not in MACHINE_READINGS} for line in lines]


def assert_equal_runs(first, second):
    assert len(numbers(first)) == 4 and numbers(first) == numbers(second)
    weights, others = (load_file(run / "tokenizer" / "model.safetensors") for run in (first, second))
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def batch_of(run):
    profile = load_profile(run / "profile.json")
    return profile.train_micro_batch_size_per_gpu, profile.gradient_accumulation_steps


@pytest.mark.processes
def test_two_ranks_with_unlike_memory_agree_and_train_as_by_hand_and_a_resume_does_not_try_again(tmp_path, demo_folder):
    flags = [f"--data_path={demo_folder}", f"--out={tmp_path}", "--total_iter=4", "--save_every=2"]
    train([99, 99], *flags, "--name=by_hand", "--batch_size=6", "--gradient_accumulation_steps=2")
    flags += ["--batch_size=12", "--auto_batch_size", "--resume"]
    said = train([99, 7], *flags, "--name=fitted")
    chosen = "micro batch 6 x accumulation 2, global batch 24 as before"
    assert f"--auto_batch_size: 12 does not fit on rank 1; {chosen}\n" in said
    fitted, by_hand, resumed = tmp_path / "fitted", tmp_path / "by_hand", tmp_path / "resumed"
    assert batch_of(fitted) == (6, 2) and load_profile(fitted / "profile.json").rvqvae.training.auto_batch_size
    assert_equal_runs(fitted, by_hand)
    shutil.copytree(fitted, resumed)
    shutil.rmtree(resumed / "checkpoints" / "global_step4")
    (resumed / "checkpoints" / "latest").write_text("global_step2")
    # Now there would be room for all 12.
    said = train([99, 99], *flags, "--name=resumed")
    assert "global_step2" in said and "auto_batch_size" not in said and "changed" not in said
    assert batch_of(resumed) == (6, 2)
    assert_equal_runs(resumed, fitted)


@pytest.mark.processes
def test_a_resume_on_other_ranks_may_start_to_fit_and_keeps_global_batch_and_learning_rate(tmp_path, demo_folder):
    flags = [f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=20", "--scale_lr=linear"]
    said = train([99], *flags, "--total_iter=1")
    # The demo's learning rate is meant for its 16 windows per rank on seven ranks.
    assert "--scale_lr linear: learning rate 0.0005 x global batch 20 / 112 = 8.929e-05" in said
    said = train([99, 4], *flags, "--total_iter=2", "--resume", "--auto_batch_size")
    assert "10 does not fit on rank 1, 5 not on rank 1; micro batch 2 x accumulation 5, global batch 20" in said
    assert batch_of(tmp_path / "run") == (2, 10)
    assert [line["lr"] for line in read_metrics(tmp_path / "run")] == [0.0005 * 20 / 112] * 2
    # From now on this size stays, unless a smaller one is asked for, as when even this one no longer fits.
    assert fitted_at_resume(tmp_path / "run", 20, 1) == ((2, 10), (2, 5))
    assert fitted_at_resume(tmp_path / "run", 20, 1, ranks=1) == ((2, 10), None)
    assert fitted_at_resume(tmp_path / "run", 1, 20) == (None, (1, 10))
    assert fitted_at_resume(tmp_path / "run", 20, 2) == (None, None)
    assert fitted_at_resume(tmp_path / "run", 20, 1, automatic="false") == (None, (10, 1))


def fitted_at_resume(run, micro_batch, accumulation, ranks=2, automatic="true"):
    """The sizes that a resume takes over: fitted ones, and those that keep the global batch."""
    asked = [f"train_micro_batch_size_per_gpu={micro_batch}", f"gradient_accumulation_steps={accumulation}"]
    asked.append(f"rvqvae.training.auto_batch_size={automatic}")
    manifest = read_manifest(run / "checkpoints" / "global_step2")
    resume = find_resume(run, load_profile(run / "profile.json", asked), ranks, manifest)
    return resume.fitted, resume.kept


@pytest.mark.processes
def test_where_not_one_window_fits_the_run_is_refused_in_one_line(tmp_path, demo_folder):
    flags = [f"--data_path={demo_folder}", f"--out={tmp_path}", "--batch_size=4", "--auto_batch_size"]
    *stages, refusal = train([4, 0], *flags, status=2).splitlines()
    assert refusal.startswith("error: --auto_batch_size: not even 1 window of 32 frames fits on rank 1: ")
    assert stages and all(
        line.startswith(("reading", "importing", "joining", "finding out", "still ")) for line in stages
    )
    assert not list(tmp_path.glob("*/metrics.jsonl"))


def test_the_learning_rate_is_scaled_by_the_global_batch_where_asked():
    plain = load_profile("baseline", ["train_micro_batch_size_per_gpu=160"])
    assert plain.learning_rate(7) == plain.learning_rate(1) == 2e-4
    scaled = load_profile("baseline", ["rvqvae.training.scale_lr=linear", "rvqvae.training.reference_batch=560"])
    assert scaled.learning_rate(7) == 2e-4
    assert scaled.learning_rate(2) == pytest.approx(2e-4 * 160 / 560)
