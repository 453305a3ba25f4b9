"""Starting from a tokenizer: its weights, codebooks and normalisation, and none that does not fit."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, BodyTokenizer, MotionTokenizer, load_profile
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.request import Start
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import feature_layout
from ds_rvqvae.runs import checkpoints
from ds_rvqvae.runs.checkpoints import MANIFEST, MODEL_FILE, seal
from ds_rvqvae.runs.folder import NORMALISATION, copies_of
from ds_rvqvae.runs.init_from import keep_normalisation, mend_normalisation, take_start
from ds_rvqvae.runs.tokenizers import motion_state
from ds_rvqvae.tokenizer.folder import read_config
from ds_rvqvae.tokenizer.scores.evaluation import evaluate_split
from tests.damage import DAMAGES, damage
from tests.ranks import run_ranks, start_ranks, train_ranks
from tests.train.small import SMALL, read_metrics

MODEL = ModelConfig(width=32, depth=2, code_dim=8, nb_code=16, num_quantizers=3)
SETTINGS = [f"rvqvae.model.{key}={value}" for key, value in MODEL.model_dump(exclude_defaults=True).items()]
SETTINGS += ["rvqvae.data.window_size=32", "rvqvae.data.window_stride=16"]


@pytest.fixture
def profile(demo_folder):
    return load_profile("demo", [*SETTINGS, f"rvqvae.data.path={demo_folder}"])


@pytest.fixture
def tokenizer(profile):
    """A tokenizer of the demo's upper body, with a normalisation that is not the demo's."""
    torch.manual_seed(3)
    data = MotionData.open(profile.rvqvae.data)
    model = RVQVAE(data.in_features, MODEL)
    model.quantizer.codebooks.mul_(0.05)
    model.quantizer.ema_sum.copy_(model.quantizer.codebooks * 7)
    model.quantizer.ema_count.fill_(7.0)
    model.quantizer.initialized.fill_(True)
    model.quantizer.updates.fill_(41)
    mean, std = torch.from_numpy(data.mean) + 0.1, torch.from_numpy(data.std) * 1.5
    return MotionTokenizer(model, mean, std, data.layout, data.fps)


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def start(profile, folder, run_folder=None):
    """Returns the tokenizer that a run of the profile would start from, and its motion."""
    profile = profile.with_values({"rvqvae.training.init_from": str(folder)})
    data = MotionData.open(profile.rvqvae.data)
    return take_start(run_folder or folder.parent / "run", profile, data, Start.of(run_folder is not None)), data


def refusal(profile, folder):
    with pytest.raises(UserError) as error:
        start(profile, folder)
    assert "\n" not in str(error.value) and str(error.value).startswith("--init_from ")
    return str(error.value)


def test_the_run_takes_over_the_normalisation(profile, tokenizer, folder):
    initial, data = start(profile, folder)
    assert initial.folder == folder and initial.warnings(data) == []
    np.testing.assert_array_equal(data.mean, tokenizer.mean.numpy())
    np.testing.assert_array_equal(data.std, tokenizer.std.numpy())


def test_of_a_body_the_part_is_taken(profile, tokenizer, tmp_path):
    BodyTokenizer({"upper": tokenizer}).save_pretrained(tmp_path / "body")
    initial, _ = start(profile, tmp_path / "body")
    assert initial.folder == tmp_path / "body" / "upper"
    profile = profile.with_values({"rvqvae.data.body_part": "hands"})
    assert "this body has no part" in refusal(profile, tmp_path / "body")


@pytest.mark.parametrize("key", ["width", "nb_code", "activation"])
def test_the_first_key_that_differs_is_named_with_both_values(profile, folder, key):
    other = {"width": 48, "nb_code": 8, "activation": "gelu"}[key]
    said = refusal(profile.with_values({f"rvqvae.model.{key}": other}), folder)
    expected = json.dumps(getattr(MODEL, key))
    assert f"rvqvae.model.{key} is {expected} there and {json.dumps(other)} in the profile" in said
    assert f"--set rvqvae.model.{key}={expected}" in said


def test_other_columns_are_refused(profile, tokenizer, folder, tmp_path):
    hands = profile.with_values({"rvqvae.data.body_part": "hands"})
    assert "takes 78 columns" in (said := refusal(hands, folder)) and "180 for body part hands" in said
    first, second, *rest = tokenizer.layout
    swapped = (type(first)(second.name, first.kind, 0, 6), type(first)(first.name, first.kind, 6, 12), *rest)
    tokenizer.layout = swapped
    tokenizer.save_pretrained(tmp_path / "swapped")
    assert "its column 0 is spine2" in refusal(profile, tmp_path / "swapped")
    # The tokenizer, like an imported one, knows only the number of its columns.
    tokenizer.layout = feature_layout(78)
    tokenizer.save_pretrained(tmp_path / "imported")
    assert start(profile, tmp_path / "imported")[0] is not None


def test_another_frame_rate_is_a_warning(profile, tokenizer, tmp_path):
    tokenizer.fps = 20.0
    tokenizer.save_pretrained(tmp_path / "slow")
    initial, data = start(profile, tmp_path / "slow")
    (warning,) = initial.warnings(data)
    assert "20 fps, this motion is at 30 fps" in warning
    tokenizer.fps, tokenizer.details["reading"] = 30.0, {"reading_version": 1}
    tokenizer.save_pretrained(tmp_path / "old")
    initial, data = start(profile, tmp_path / "old")
    (warning,) = initial.warnings(data)
    assert 'its motion was read with {"reading_version": 1}, this one is with {"reading_version": 2}' in warning


def _normalisation(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["normalisation"] |= changes
    del config["fingerprint"]  # changed on purpose
    (folder / "config.json").write_text(json.dumps(config))


def _config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


DAMAGE = {
    "no such folder": (shutil.rmtree, "config.json is missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "another fps": (lambda folder: _config(folder, fps=25.0), "was saved with (in fps)"),
    "weights cut off": (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "cannot be read"),
    "std of 0": (lambda folder: _normalisation(folder, std=[0.0] * 78), "not above 0"),
    "mean of NaN": (lambda folder: _normalisation(folder, mean=[float("nan")] * 78), "not finite"),
    "mean of another width": (lambda folder: _normalisation(folder, mean=[0.0] * 77), "shape"),
    "mean of words": (lambda folder: _normalisation(folder, mean=["x"] * 78), "not a tokenizer's config"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_tokenizer_is_named(profile, folder, damage, words):
    damage(folder)
    said = refusal(profile, folder)
    assert words in said and str(folder) in said


def test_the_folder_of_a_run_is_answered_with_its_tokenizer(profile, folder):
    assert f"did you mean {folder}?" in refusal(profile, folder.parent)


def test_a_normalisation_of_ones_own_does_not_go_with_it():
    with pytest.raises(UserError, match=r"init_from.*mean_file"):
        load_profile(
            "demo", ["rvqvae.training.init_from=t", "rvqvae.data.mean_file=m.npy", "rvqvae.data.std_file=s.npy"]
        )


def test_a_run_with_a_checkpoint_goes_on_with_its_own_normalisation(profile, tokenizer, folder, tmp_path):
    initial, _ = start(profile, folder)
    run = tmp_path / "run"
    run.mkdir()
    keep_normalisation(run, initial)
    shutil.rmtree(folder)
    (run / "checkpoints" / "global_step3").mkdir(parents=True)
    again, data = start(profile, folder, run_folder=run)
    assert again is None
    np.testing.assert_array_equal(data.mean, tokenizer.mean.numpy())
    (run / NORMALISATION).write_text('{"mean": [0]}')
    with pytest.raises(UserError, match=NORMALISATION):
        start(profile, folder, run_folder=run)
    keep_normalisation(run, None)
    assert not (run / NORMALISATION).exists()


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("has_copy", [True, False])
def test_a_damaged_normalisation_is_restored_from_a_checkpoint(profile, tokenizer, folder, tmp_path, kind, has_copy):
    """Versions up to 0.3 kept no copy beside a checkpoint, but mean and std are in it."""
    initial, started = start(profile, folder)
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "global_step3"
    checkpoint.mkdir(parents=True)
    keep_normalisation(run, initial)
    copies = copies_of(run) if has_copy else {}
    for name, content in copies.items():
        (checkpoint / name).write_bytes(content)
    torch.save({"rvqvae": {**motion_state(started, MODEL), "scores": None}}, checkpoint / MODEL_FILE)
    files, beside = (
        {name: checkpoints.digest_of(checkpoint / name) for name in names} for names in ([MODEL_FILE], copies)
    )
    (checkpoint / MANIFEST).write_text(json.dumps(seal({"step": 3, "files": files, "beside": beside})))
    before = damage(run / NORMALISATION, kind)
    _, data = start(profile, folder, run_folder=run)
    np.testing.assert_array_equal(data.mean, tokenizer.mean.numpy())
    np.testing.assert_array_equal(data.std, tokenizer.std.numpy())
    (note,) = mend_normalisation(run, data)
    assert note.startswith(f"{run / NORMALISATION}: missing or damaged; restored")
    assert (run / NORMALISATION).read_bytes() == before
    assert mend_normalisation(run, data) == []


def initial_weights(data: str, folder: str) -> str:
    """In a rank: a sha256 of the fp32 weights and of every buffer that an engine started from a tokenizer has."""
    # Only rank 0 has to see the folder.
    import os
    from pathlib import Path

    from ds_rvqvae.train.engine import build_engine, fp32_model, start_distributed

    place = Path(folder if os.environ["RANK"] == "0" else "/nowhere")
    profile = load_profile("demo", [*SETTINGS, f"rvqvae.data.path={data}"])
    start_distributed()
    config = read_config(Path(folder))
    with pytest.raises(UserError, match="was replaced by another tokenizer since this start"):
        build_engine(
            profile, 78, Path(folder).parent / "run", init_from=place, normalisation=(config.mean, config.std + 1)
        )
    taken = (config.mean, config.std)
    engine = build_engine(profile, 78, Path(folder).parent / "run", init_from=place, normalisation=taken)
    assert next(engine.module.parameters()).dtype == torch.bfloat16
    return digest_of(fp32_model(engine))


def digest_of(model) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.processes
def test_every_rank_starts_from_the_very_weights_also_in_bf16(tokenizer, folder, demo_folder, tmp_path):
    digests = run_ranks(3, initial_weights, tmp_path / "results", data=str(demo_folder), folder=str(folder))
    assert digests == [digest_of(tokenizer.model)] * 3


@pytest.mark.processes
def test_the_first_scores_are_the_tokenizers_and_a_resume_needs_it_no_more(profile, tokenizer, folder, tmp_path):
    other = write_demo_motion(tmp_path / "other", clips=5, frames=160, seed=5)
    flags = [*SMALL, f"--data_path={other}", f"--out={tmp_path}", "--batch_size=4", "--name=run"]
    train_ranks(2, *flags, f"--init_from={folder}", "--total_iter=2")
    run = tmp_path / "run"
    first = json.loads((run / "eval" / "untrained.json").read_text())
    data = MotionData.open(profile.rvqvae.data.with_values({"path": str(other)}))
    data.use_normalisation(tokenizer.mean.numpy(), tokenizer.std.numpy())
    expected = evaluate_split(tokenizer.model, data, "val", "cpu")
    assert (first["step"], first["clips"]) == (0, expected["clips"]) and first["usage"] == expected["usage"]
    for key in ("l1", "angle_error_deg", "velocity_error"):
        assert first[key] == pytest.approx(expected[key], rel=1e-6)
    assert json.loads((run / "profile.json").read_text())["rvqvae"]["training"]["init_from"] == str(folder)
    exported = MotionTokenizer.from_pretrained(run / "tokenizer")
    assert torch.equal(exported.mean, tokenizer.mean) and torch.equal(exported.std, tokenizer.std)
    assert exported.model.quantizer.updates == tokenizer.model.quantizer.updates + 2

    shutil.rmtree(folder)
    printed = train_ranks(2, *flags, f"--init_from={folder}", "--total_iter=4", "--resume")
    assert "going on from" in printed[0] and "init_from is not read again" in printed[0]
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4]
    assert torch.equal(MotionTokenizer.from_pretrained(run / "tokenizer").mean, tokenizer.mean)


@pytest.mark.processes
def test_a_tokenizer_that_does_not_fit_is_refused_and_leaves_no_run(folder, demo_folder, tmp_path):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path / 'runs'}", f"--init_from={folder}"]
    (rank,) = start_ranks(1, ["-m", "ds_rvqvae.train", *flags, "--width=64"])
    printed = rank.communicate(timeout=120)[0]
    assert rank.returncode == 2, printed
    assert "rvqvae.model.width is 32 there and 64 in the profile" in printed and "Traceback" not in printed
    assert not (tmp_path / "runs").exists()
