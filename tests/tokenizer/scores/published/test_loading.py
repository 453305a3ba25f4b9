"""Files of weights: told apart by keys and shapes, and refused in one line."""

import numpy as np
import pytest
import torch

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import smplx_layout
from ds_rvqvae.tokenizer.scores.published.gestures import GestureEvaluator
from ds_rvqvae.tokenizer.scores.published.loading import check_fits, load_evaluator
from ds_rvqvae.tokenizer.scores.published.matching import MatchingEvaluator
from tests.tokenizer.scores.published.weights import gesture_checkpoint, matching_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published folders of both evaluators."""
    folder = tmp_path_factory.mktemp("checkpoints")
    file = folder / "t2m" / "text_mot_match" / "model" / "finest.tar"
    meta = folder / "t2m" / "Comp_v6_KLD005" / "meta"
    for place in (file.parent, meta):
        place.mkdir(parents=True)
    torch.save(matching_checkpoint(263), file)
    np.save(meta / "mean.npy", np.full(263, 3, np.float32))
    np.save(meta / "std.npy", np.full(263, 2, np.float32))
    torch.save(gesture_checkpoint(), folder / "AESKConv_240_100.bin")
    return folder


def _finest(folder):
    return folder / "t2m" / "text_mot_match" / "model" / "finest.tar"


def test_evaluators_are_told_apart_and_the_mean_lies_where_it_is_published(folder, tmp_path):
    matching = load_evaluator(_finest(folder))
    assert isinstance(matching, MatchingEvaluator) and matching.columns == 263
    assert matching.mean.unique().tolist() == [3] and matching.std.unique().tolist() == [2]
    np.save(tmp_path / "mean.npy", np.zeros(263, np.float32))
    np.save(tmp_path / "std.npy", np.ones(263, np.float32))
    own = load_evaluator(_finest(folder), tmp_path / "mean.npy", tmp_path / "std.npy")
    assert own.mean.unique().tolist() == [0] and own.std.unique().tolist() == [1]
    assert isinstance(load_evaluator(folder / "AESKConv_240_100.bin"), GestureEvaluator)


def _without(checkpoint, part, key):
    del checkpoint[part][key]
    return checkpoint


def _with(checkpoint, part, key, value):
    checkpoint[part][key] = value
    return checkpoint


LAST = "module.encoder.layers.3.0.shortcut.bias"
DAMAGED = {
    "a matrix": (lambda: torch.zeros(2), "not an evaluator that is known here; give text_mot_match"),
    "a tokenizer": (lambda: {"net": {"a": torch.zeros(2)}}, "not an evaluator that is known here"),
    "a decoder alone": (lambda: {"model_state": {"decoder.a": torch.zeros(2)}}, r"layers\.0\..* is missing"),
    "a key less": (
        lambda: _without(matching_checkpoint(263), "motion_encoder", "hidden"),
        r"motion_encoder hidden \[2, 1, 1024\] is missing",
    ),
    "a key more": (
        lambda: _with(matching_checkpoint(263), "motion_encoder", "extra", torch.zeros(2)),
        "motion_encoder extra is not a weight",
    ),
    "another width": (
        lambda: _with(matching_checkpoint(263), "movement_encoder", "main.0.weight", torch.zeros(512, 100, 4)),
        r"is \[512, 100, 4\], not \[512, 259, 4\] \(HumanML3D\)",
    ),
    "another shape": (
        lambda: _with(gesture_checkpoint(), "model_state", LAST, torch.zeros(7)),
        r"is \[7\], not \[240\]",
    ),
    "integers": (
        lambda: _with(gesture_checkpoint(), "model_state", LAST, torch.zeros(240, dtype=torch.int64)),
        "holds no floating-point numbers",
    ),
    "NaN": (
        lambda: _with(gesture_checkpoint(), "model_state", LAST, torch.full((240,), torch.nan)),
        "holds NaN or infinite values",
    ),
    "objects": (lambda: {"model_state": UserError("run me")}, "holds Python objects besides tensors"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_wrong_files_are_refused_in_a_line(tmp_path, name):
    made, message = DAMAGED[name]
    torch.save(made(), tmp_path / "file.tar")
    with pytest.raises(UserError, match=message) as error:
        load_evaluator(tmp_path / "file.tar")
    assert "\n" not in str(error.value) and "file.tar" in str(error.value)


def test_files_that_torch_did_not_save_are_refused(tmp_path):
    (tmp_path / "text.bin").write_text("not weights")
    with pytest.raises(UserError, match="not a file that torch saved"):
        load_evaluator(tmp_path / "text.bin")
    with pytest.raises(UserError, match="cannot be read: no such file"):
        load_evaluator(tmp_path / "missing.bin")


def test_a_mean_and_std_that_do_not_fit_are_refused(folder, tmp_path):
    torch.save(matching_checkpoint(251), tmp_path / "finest.tar")
    with pytest.raises(UserError, match="give --evaluator_mean and --evaluator_std"):
        load_evaluator(tmp_path / "finest.tar")
    meta = folder / "t2m" / "Comp_v6_KLD005" / "meta"
    with pytest.raises(UserError, match="give both, or none"):
        load_evaluator(_finest(folder), meta / "mean.npy")
    with pytest.raises(UserError, match=r"--evaluator_mean .*: \[263\], but the evaluator needs floats \[251\]"):
        load_evaluator(tmp_path / "finest.tar", meta / "mean.npy", meta / "std.npy")
    with pytest.raises(UserError, match="EMAGE's evaluator has no normalisation"):
        load_evaluator(folder / "AESKConv_240_100.bin", meta / "mean.npy", meta / "std.npy")
    for values, message in ((np.zeros(263), "column 0 is not above 0"), (np.full(263, np.nan), "NaN"), (b"", "not a")):
        (tmp_path / "std.npy").write_bytes(b"")
        if not isinstance(values, bytes):
            np.save(tmp_path / "std.npy", values)
        with pytest.raises(UserError, match=rf"--evaluator_std .*{message}"):
            load_evaluator(_finest(folder), meta / "mean.npy", tmp_path / "std.npy")


def test_motion_at_another_frame_rate_is_refused(folder):
    evaluator = load_evaluator(folder / "AESKConv_240_100.bin")
    check_fits(evaluator, smplx_layout(), 30.0, "motion")
    check_fits(None, smplx_layout(), 20.0, "motion")
    with pytest.raises(UserError, match="motion: 20 fps, but the motion autoencoder of EMAGE's evaluation takes 30"):
        check_fits(evaluator, smplx_layout(), 20.0, "motion")
