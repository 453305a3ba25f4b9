"""`ds-rvqvae evaluate`: one tokenizer, several side by side, features and pictures, and what it refuses."""

import json
import os
import re
import sys

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer, cli
from ds_rvqvae.cli.evaluate import _data_config
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.motion.layout import Channels, feature_layout, select_columns, smplx_layout, take_channels
from ds_rvqvae.runs.references import find_reference
from ds_rvqvae.tokenizer.scores.evaluation import evaluate_split
from tests.data.formats.bvh_files import write_bvh_motion
from tests.data.motion import write_matrices, write_packed
from tests.tokenizer.scores.published.weights import gesture_checkpoint, matching_checkpoint

CONTRACT = {
    *("split", "clips", "frames", "l1", "angle_error_deg", "velocity_error", "usage", "perplexity", "by_levels"),
}
MODEL = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=3)


def _save(folder, body_part, levels=3, std=0.5, seed=0, **config):
    torch.manual_seed(seed)
    _, layout = select_columns(smplx_layout(), body_part)
    width = layout[-1].stop
    model = RVQVAE(width, MODEL.model_copy(update={"num_quantizers": levels, **config}))
    mean, std = torch.full((width,), 0.1), torch.full((width,), std)
    MotionTokenizer(model, mean, std, layout, 30.0, {"body_part": body_part}).save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, demo_folder):
    """A run's folder of which only the profile and the tokenizer are left."""
    _save(tmp_path / "run" / "tokenizer", "lower_trans")
    profile = load_profile("demo", [f"rvqvae.data.path={demo_folder}", "rvqvae.data.body_part=lower_trans"])
    (tmp_path / "run" / "profile.json").write_text(json.dumps(profile.to_dict()))
    return tmp_path / "run"


def _evaluate(capsys, *arguments):
    status = cli.main(["evaluate", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def _encoder(tmp_path, columns=57):
    torch.manual_seed(0)
    torch.jit.trace(torch.nn.Conv1d(32, 4, columns), torch.zeros(1, 32, columns)).save(str(tmp_path / "encoder.pt"))
    return tmp_path / "encoder.pt"


def test_a_run_is_scored_as_its_tokenizer_folder_is(run, tmp_path, demo_folder, capsys):
    status, out, _ = _evaluate(capsys, run, "--json")
    scores = json.loads(out)
    assert status == 0 and scores.keys() >= CONTRACT and scores["name"] == "run"
    tokenizer = MotionTokenizer.from_pretrained(run / "tokenizer")
    data = MotionData.open(DataConfig(path=str(demo_folder), body_part="lower_trans"))
    data.use_normalisation(tokenizer.mean.numpy(), tokenizer.std.numpy())
    expected = evaluate_split(tokenizer.model, data, "val", "cpu")
    assert {key: scores[key] for key in expected} == expected
    assert scores["mpjpe_mm"] > 0 and scores["foot_sliding"] > 0 and scores["skeleton"] == "built-in"
    assert (run / "eval" / "reconstruction_val.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "eval" / "rate_distortion_val.png").read_bytes().startswith(b"\x89PNG")

    # The tokenizer's folder alone: its run's profile is beside it, or --data_path names the motion.
    assert json.loads(_evaluate(capsys, run / "tokenizer", "--json")[1]) == scores
    (run / "tokenizer").rename(tmp_path / "alone")
    scored = json.loads(_evaluate(capsys, tmp_path / "alone", "--data_path", demo_folder, "--json")[1])
    assert scored == {**scores, "name": "alone", "normalised_by": "alone"}


def test_bvh_motion_is_measured_on_its_own_figure_and_parts_by_name(tmp_path, capsys):
    for seed in range(3):
        write_bvh_motion(tmp_path / "data" / f"{seed}.bvh", frames=100, seed=seed)
    data = MotionData.open(DataConfig(path=str(tmp_path / "data")))
    _, layout = take_channels(data.layout, ["Hips", "LeftArm", "LeftHand", "translation"])
    for part, kept in (("arm", layout), (None, data.layout)):
        width = kept[-1].stop
        torch.manual_seed(0)
        tokenizer = MotionTokenizer(
            RVQVAE(width, MODEL), torch.zeros(width), torch.ones(width), kept, 30.0, {"body_part": part}
        )
        tokenizer.save_pretrained(tmp_path / str(part))
    line = ["--data_path", tmp_path / "data", "--split", "all", "--json"]
    status, out, error = _evaluate(capsys, tmp_path / "arm", tmp_path / "None", *line)
    assert status == 0, error
    arm, whole = json.loads(out)["tokenizers"]
    assert (arm["frames"], whole["frames"]) == (300, 300)
    assert arm["skeleton"] == whole["skeleton"] == "data"
    assert (arm["mpjpe_joints"], whole["mpjpe_joints"]) == (2, 3)
    assert arm["root_error_mm"] > 0 and arm["mpjpe_mm"] > 0


def test_several_side_by_side(run, tmp_path, capsys):
    other = _save(tmp_path / "other" / "run" / "tokenizer", "lower_trans", levels=2, std=0.25)
    pictures = tmp_path / "pictures"
    data_path = load_profile(run / "profile.json").rvqvae.data.path
    file = tmp_path / "scores.json"
    arguments = (run, other, run, "--data_path", data_path, "--split", "all", "--pictures", pictures, "--json", file)
    status, out, _ = _evaluate(capsys, *arguments)
    result = json.loads(file.read_text())
    first, second, third = result["tokenizers"]
    assert status == 0 and [one["num_quantizers"] for one in result["tokenizers"]] == [3, 2, 3]
    names = [one["name"] for one in result["tokenizers"]]
    assert names[0].endswith("/run") and names[1] == "other/run" and names[2] == f"{names[0]} (2)"
    assert {**third, "name": names[0]} == first and second["normalised_by"] == names[0]
    own = json.loads(_evaluate(capsys, other, "--data_path", data_path, "--split", "all", "--json")[1])
    # Its own units are half as large.
    assert second["l1"] == pytest.approx(own["l1"] / 2) and second["mpjpe_mm"] == pytest.approx(own["mpjpe_mm"])
    table = out[out.rindex("tokenizer  ") :].splitlines()
    assert table[3].startswith("other/run ") and f"{second['l1']:.4f}" in table[3]
    assert f"in units of the standard deviations of {names[0]}" in out
    assert {"comparison_all.png", "rate_distortion_all.png"} < {picture.name for picture in pictures.iterdir()}
    assert len(list(pictures.iterdir())) == 5


def test_a_table_for_a_paper(run, tmp_path, demo_folder, capsys):
    torch.manual_seed(1)
    other = _save(tmp_path / "slow_50%", "lower_trans", down_t=3)
    line = [run, other, "--data_path", demo_folder, "--split", "all", "--json", tmp_path / "scores.json"]
    status, out, errors = _evaluate(capsys, *line, "--markdown", "--latex", tmp_path / "table.tex")
    assert status == 0, errors
    table = (tmp_path / "table.tex").read_text()
    assert r"slow\_50\% & " in table and r"\caption{Motion: " in table and "original motion" in table
    assert out.startswith("| tokenizer | parameters | ") and "L1 (norm.) ↓" in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    first, second = scores["tokenizers"]
    assert f"all: {first['clips']} clips, {first['frames']:,} frames. " in out
    # 8 frames per code and 4: both score the same frames.
    assert first["frames"] == second["frames"] and first["frames"] % 8 == 0 and first["clips_cut_to"] == 8
    assert "Clips are cut to a multiple of 8 frames, so that all tokenizers score the same frames." in scores["notes"]
    (pair,) = scores["differences"]
    assert (pair["first"], pair["second"]) == (first["name"], second["name"])
    for key, one in pair["scores"].items():
        assert one["difference"] == pytest.approx(first[key] - second[key], abs=1e-6), key
        assert one["interval"][0] <= one["interval"][1] and isinstance(one["is_certain"], bool)
    assert {"l1", "angle_error_deg", "mpjpe_mm", "foot_skating"} < pair["scores"].keys()
    for one in (first, second):
        assert (one["confidence"], one["resamples"], one["seed"]) == (0.95, 9999, 0)
        assert sum(clip["frames"] for clip in one["clips_scores"]) == one["frames"]
        mean = sum(clip["l1"] * clip["frames"] for clip in one["clips_scores"]) / one["frames"]
        assert one["l1"] == pytest.approx(mean) and one["intervals"]["l1"][0] < one["l1"] < one["intervals"]["l1"][1]
    printed = _evaluate(capsys, *line)[1]
    assert "minus slow_50%, on the same clips:" in printed and "interval of" in printed


def test_tokenizers_of_other_columns_are_not_compared(run, tmp_path, demo_folder, capsys):
    upper = _save(tmp_path / "upper", "upper")
    status, out, _ = _evaluate(capsys, run, upper, "--data_path", demo_folder)
    assert status == 0 and "in each tokenizer's own normalised units: they cannot be compared" in out
    assert not (run / "eval").exists()


def test_a_skeleton_of_ones_own(run, tmp_path, capsys):
    bones = {
        "name": "giant",
        "joint_names": ["pelvis", "left_hip", "left_knee"],
        "parents": [-1, 0, 1],
        "offsets": [[0, 2, 0], [0.2, 0, 0], [0, -1, 0]],
    }
    (tmp_path / "giant.json").write_text(json.dumps(bones))
    status, out, _ = _evaluate(capsys, run, "--skeleton", tmp_path / "giant.json")
    assert status == 0 and "over 2 joints on the skeleton giant, roots aligned" in out


def test_features_give_a_distance_and_a_warning_where_it_says_little(run, tmp_path, capsys):
    encoder = _encoder(tmp_path)
    arguments = (run, "--features", encoder, "--feature_window", "32", "--split", "all")
    status, out, _ = _evaluate(capsys, *arguments, "--json")
    scores = json.loads(out)
    assert status == 0 and scores["frechet"] > 0
    assert (scores["frechet_samples"], scores["frechet_dimensions"], scores["frechet_window"]) == (6 * 5 * 4, 1, 32)
    _, _, errors = _evaluate(capsys, run, "--features", _encoder(tmp_path, columns=8), *arguments[3:])
    assert errors == ""  # 120 samples in 50 dimensions
    _, out, errors = _evaluate(capsys, run, "--features", _encoder(tmp_path, columns=8), "--feature_window", "32")
    assert "Fréchet distance" in out and "samples in 50 dimensions: the covariances are singular" in errors


def test_published_evaluators_add_their_distances_and_refuse_other_motion(run, tmp_path, capsys):
    whole = _save(tmp_path / "whole", "whole")
    data_path = load_profile(run / "profile.json").rvqvae.data.path
    torch.save(gesture_checkpoint(), tmp_path / "gestures.bin")
    arguments = ("--data_path", data_path, "--split", "all", "--evaluator", tmp_path / "gestures.bin")
    status, out, error = _evaluate(capsys, run, whole, *arguments, "--json")
    assert status == 0, error
    part, body = json.loads(out)["tokenizers"]
    assert (part["fgd_joints"], body["fgd_joints"]) == (9, 52) and "original's" in part["protocols"]["fgd"]
    assert part["evaluator_samples"] == body["evaluator_samples"] > 0 and part["fgd"] is not None
    status, out, _ = _evaluate(capsys, run, *arguments)
    assert "9 of 55 joints reconstructed, the others are the original's" in out and "FGD: of the motion" in out

    torch.save(matching_checkpoint(263), tmp_path / "finest.tar")
    for value in ("mean", "std"):
        np.save(tmp_path / f"{value}.npy", np.ones(263, np.float32))
    own = ("--evaluator_mean", tmp_path / "mean.npy", "--evaluator_std", tmp_path / "std.npy")
    line = ("--evaluator", tmp_path / "finest.tar", *own)
    status, _, error = _evaluate(capsys, run, *line)
    assert status == 2 and "takes the 263 of HumanML3D" in error and error.count("\n") == 1
    status, _, error = _evaluate(capsys, run, *own)
    assert status == 2 and "belong to --evaluator" in error

    motion = write_matrices(tmp_path / "motion", tuple(map(str, range(20))), 263, frames=46)
    torch.manual_seed(0)
    tokenizer = MotionTokenizer(RVQVAE(263, MODEL), torch.zeros(263), torch.ones(263), feature_layout(263), 20.0)
    file = tmp_path / "scores.json"
    more = ("--data_path", motion, "--split", "all", *line, "--json", file)
    tokenizer.save_pretrained(tmp_path / "20")
    status, out, error = _evaluate(capsys, tmp_path / "20", *more)
    assert status == 0, error
    scores = json.loads(file.read_text())
    assert scores["evaluator_samples"] == 20 and min(scores["fid"], scores["matching"]) > 0
    assert "text" in scores["protocols"]["matching"] and "singular" in scores["warnings"][0]
    assert "diversity - (more than 100 clips are needed)" in out and "not the matching with a text" in out


def test_refusals_are_one_line_and_leave_nothing(run, tmp_path, demo_folder, capsys):
    other = tuple(Channels(f"joint{index}", "rotation_6d", 6 * index, 6 * index + 6) for index in range(9))
    layout = json.dumps([{"name": part.name, "kind": part.kind, "columns": [part.start, part.stop]} for part in other])
    rotations = np.tile(np.eye(3)[:2].reshape(-1), (120, 9)).astype(np.float32)
    stranger = write_packed(tmp_path / "stranger.npz", motion=rotations, layout=np.array(layout))
    lower, alone = _save(tmp_path / "lower", "lower"), _save(tmp_path / "alone", "upper")
    narrow = write_packed(tmp_path / "narrow.npz")
    fast = write_packed(tmp_path / "fast.npz", width=57, fps=np.array(60))
    trains = write_packed(tmp_path / "trains.npz", (40, 30), width=57, split=np.array(["train", "train"]))
    (tmp_path / "empty").mkdir()
    pictures = tmp_path / "pictures"
    cases = {
        (): "required: RUN",
        (run, "--latex", tmp_path / "nowhere" / "a.tex"): "a.tex: cannot be written: .*nowhere is not a folder",
        (run, "--latex", "--markdown"): "--markdown and --latex: both go to standard output",
        (run, "--latex", tmp_path / "x", "--json", tmp_path / "x"): "--json and --latex: both go to .*x; name a file",
        (tmp_path / "empty",): "not a run's folder",
        (alone,): "no motion to score",
        (run, "--data_path", narrow): "narrow.npz: 5 columns, but the tokenizer takes 57",
        (run, "--data_path", fast): "fast.npz: 60 fps, but .*takes 30; give --data_path",
        (lower, "--data_path", stranger): "column 0 is joint0 .* takes pelvis",
        (run, "--data_path", trains, "--split", "test"): r"in test \(there is train\)",
        (run, "--features", stranger): "stranger.npz: not a TorchScript",
        (run, "--features", _encoder(tmp_path, 58), "--feature_window", "32"): "does not take motion",
        (run, "--feature_window", "0"): "not a whole number from 1",
        (run, "--skeleton", tmp_path / "none.json"): "none.json",
        (run, "--levels", "3"): "unknown flag --levels",
        (run, "--pictures", narrow): "--pictures",
    }
    for arguments, complaint in cases.items():
        more = () if "--pictures" in arguments else ("--pictures", pictures)
        try:
            status, out, errors = _evaluate(capsys, *arguments, *more)
        except SystemExit as refusal:
            printed = capsys.readouterr()
            status, out, errors = refusal.code, printed.out, printed.err
        assert status == 2 and out == "" and len(errors.splitlines()) == 1, (arguments, errors)
        assert re.search(complaint, errors), errors
        assert not pictures.exists() or not list(pictures.iterdir())


def test_scores_are_printed_whatever_becomes_of_the_pictures(run, capsys):
    (run / "eval" / "rate_distortion_val.png").mkdir(parents=True)
    status, out, errors = _evaluate(capsys, run)
    assert status == 0 and "val: 1 clip, " in out and f"picture: {run / 'eval' / 'reconstruction_val.png'}" in out
    assert errors.startswith("warning: ") and errors.endswith(f"Is a directory: {run}/eval/rate_distortion_val.png\n")
    # Pictures that the user asked for are part of the result.
    status, asked, errors = _evaluate(capsys, run, "--pictures", run / "eval")
    assert (status, asked) == (2, out) and errors.startswith(
        f"error: --pictures {run / 'eval'}: not all pictures are drawn: "
    )


def test_without_matplotlib_scores_are_printed_and_pictures_refused(run, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib" or ".viz" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("MPLBACKEND", "nosuch")
    reason = "pictures: matplotlib cannot be used: ValueError: Key backend: 'nosuch'"
    status, out, errors = _evaluate(capsys, run)
    assert status == 0 and "val: 1 clip, " in out and "picture:" not in out
    assert errors.startswith("warning: ") and errors.count("\n") == 1 and reason in errors
    status, out, errors = _evaluate(capsys, run, "--pictures", tmp_path / "pictures")
    assert (status, out) == (2, "") and errors.startswith(f"error: {reason}") and errors.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_named(run, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    status, _, errors = _evaluate(capsys, run, "--pictures", tmp_path / "locked")
    assert status == 2 and "permission denied; name another folder" in errors


@pytest.mark.real_data
def test_real_motion_on_its_own_skeleton(real_data, tmp_path, capsys):
    torch.manual_seed(0)
    task = real_data / "cmu" / "task.npz"
    data = MotionData.open(DataConfig(path=str(task)))
    model = RVQVAE(data.in_features, MODEL)
    mean, std = torch.from_numpy(data.mean), torch.from_numpy(data.std)
    MotionTokenizer(model, mean, std, data.layout, 30.0).save_pretrained(tmp_path / "tokenizer")
    skeleton = ("--skeleton", real_data / "cmu" / "motion_6d.npz")
    status, out, _ = _evaluate(
        capsys, tmp_path / "tokenizer", "--data_path", task, "--split", "test", "--json", *skeleton
    )
    scores = json.loads(out)
    assert status == 0 and scores["frames"] == 3_376 and scores["jitter_truth"] == pytest.approx(0.1479, abs=1e-4)
    assert scores["mpjpe_joints"] == 23 and 100 < scores["mpjpe_mm"] < 1000


def test_files_are_read_for_a_run_as_the_store_was_that_it_trained_on(tmp_path):
    tokenizer = MotionTokenizer.from_pretrained(_save(tmp_path / "run" / "tokenizer", "lower_trans"))
    (tmp_path / "run" / "profile.json").write_text(json.dumps(load_profile("demo").to_dict()))
    reference = find_reference(tmp_path / "run")
    read = _data_config(reference, tokenizer, "files")
    assert (read.reading_version, read.up_axis) == (2, None)
    tokenizer.details["reading"] = {"reading_version": 1, "up_axis": "y"}
    read = _data_config(reference, tokenizer, "files")
    assert (read.path, read.reading_version, read.up_axis) == ("files", 1, "y")
