"""`ds-rvqvae encode` and `decode`: motion files to codes and back."""

import os
import time

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ds_rvqvae import MotionTokenizer, cli, read_codes
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.writing import open_motion_file
from ds_rvqvae.motion.kinematics import angle_between
from ds_rvqvae.motion.layout import BODY_PART_CHANNELS, SMPLX_JOINTS, select_columns
from ds_rvqvae.motion.rotations import axis_angle_to_matrix, matrix_to_rotation_6d
from tests.cli.commands import counts, files_below, run
from tests.data.motion import beat2_arrays, write_beat2, write_beat2_folder, write_packed


def test_a_beat2_folder_and_back(tmp_path, upper, capsys):
    data = tmp_path / "BEAT2"
    write_beat2_folder(data / "smplxflame_30", ("1_a", "2_b"), 61)
    (data / "textgrid").mkdir()
    (data / "textgrid" / "1_a.TextGrid").write_text("")
    assert run(capsys, "encode", upper, data, "--out", tmp_path / "codes")[0] == 0
    assert files_below(tmp_path / "codes") == ["smplxflame_30/1_a.npz", "smplxflame_30/2_b.npz"]
    tokenizer = MotionTokenizer.from_pretrained(upper)
    source = data / "smplxflame_30" / "2_b.npz"
    codes = read_codes(tmp_path / "codes" / "smplxflame_30" / "2_b.npz")
    clip = open_motion_file(source, DataConfig()).read("2_b")
    motion = clip.motion[:, select_columns(clip.layout, "upper")[0]]
    np.testing.assert_array_equal(codes.codes, tokenizer.encode(motion))
    assert (codes.frames, codes.fps, codes.code_rate, codes.levels) == (61, 30.0, 7.5, 3)
    assert (codes.fingerprint, codes.source, codes.format) == (tokenizer.fingerprint, str(source), "beat2")
    assert run(capsys, "decode", upper, tmp_path / "codes", "--out", tmp_path / "motion")[0] == 0
    decoded = tmp_path / "motion" / "smplxflame_30" / "2_b.npz"
    there, found = np.load(source), np.load(decoded)
    assert found.files == there.files
    assert all(found[key].shape == there[key].shape and found[key].dtype == there[key].dtype for key in there.files)
    assert (found["trans"] == there["trans"]).all() and found["mocap_frame_rate"] == 30
    again = open_motion_file(decoded, DataConfig()).read("2_b").motion[:, select_columns(clip.layout, "upper")[0]]
    expected = tokenizer.decode(codes.codes, 61)
    first, second = expected.reshape(61, 13, 6)[..., :3], again.reshape(61, 13, 6)[..., :3]
    np.testing.assert_allclose(second, first / np.linalg.norm(first, axis=-1, keepdims=True), atol=1e-5)


def test_figures_that_lie_are_said_of_files_however_many(tmp_path, upper, capsys):
    for index in range(3):
        poses, lying = beat2_arrays(20)["poses"], [np.pi / 2, 0, 0]
        poses[:, :3] = lying if index else 0
        write_beat2(tmp_path / "data" / f"{index}.npz", 20, poses=poses)
    command = ["encode", str(upper), str(tmp_path / "data"), "--out", str(tmp_path / "codes")]
    assert cli.main(command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "lies along z; y should be up" in line]
    assert len(lines) == 1 and lines[0].endswith("1.npz and 1 more")
    _, result, _ = run(capsys, *command, "--overwrite")
    assert [len(clip["notes"]) for clip in result["done"]] == [0, 1, 1]


def test_matrices_and_packed_files_and_back(tmp_path, five, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "M1.npy", rng.normal(size=(1, 5)))
    write_packed(tmp_path / "data" / "task.npz", (40, 30, 50))
    assert run(capsys, "encode", five, tmp_path / "data", "--out", tmp_path / "codes")[0] == 0
    expected = ["M1.npz", "task/clip0.npz", "task/clip1.npz", "task/clip2.npz"]
    assert files_below(tmp_path / "codes") == expected
    assert read_codes(tmp_path / "codes" / "task" / "clip1.npz").codes.shape == (8, 3)
    assert run(capsys, "decode", five, tmp_path / "codes", "--out", tmp_path / "motion")[0] == 0
    for name, frames in zip(expected, (1, 40, 30, 50), strict=True):
        found = np.load(tmp_path / "motion" / name.replace(".npz", ".npy"))
        codes = read_codes(tmp_path / "codes" / name)
        np.testing.assert_array_equal(found, MotionTokenizer.from_pretrained(five).decode(codes.codes, frames))
        assert found.shape == (frames, 5) and found.dtype == np.float32
    assert run(capsys, "encode", five, tmp_path / "data", "--out", tmp_path / "codes")[1]["done"] == []


def test_matrices_of_another_rate_fail_and_an_assumed_rate_is_said(tmp_path, five, capsys):
    (tmp_path / "data").mkdir()
    for name, rate in {"fast": {"fps": np.array(60)}, "right": {"fps": np.array(29.97)}, "silent": {}}.items():
        np.savez(tmp_path / "data" / f"{name}.npz", motion=np.ones((20, 5)), **rate)
    write_packed(tmp_path / "data" / "task.npz", fps=np.array(60))
    status, result, _ = run(capsys, "encode", five, tmp_path / "data", "--out", tmp_path / "codes")
    assert status == 1 and files_below(tmp_path / "codes") == ["right.npz", "silent.npz"]
    assert {entry["reason"] for entry in result["failed"]} == {
        "60 fps, but 30 fps is needed; features are never resampled"
    }
    notes = {entry["output"].rpartition("/")[2]: entry["notes"] for entry in result["done"]}
    assert notes["right.npz"] == [] and "30 fps (rvqvae.data.fps) is assumed" in notes["silent.npz"][0]


def test_done_files_are_skipped_and_only_they(tmp_path, upper, capsys):
    data, codes, motion = tmp_path / "data", tmp_path / "codes", tmp_path / "motion"
    write_beat2_folder(data, ("1_a", "2_b", "3_c"), 20)
    encode = ("encode", upper, data, "--out", codes)
    decode = ("decode", upper, codes, "--out", motion)

    for command, folder in ((encode, codes), (decode, motion)):
        assert counts(capsys, *command) == (0, 3, 0, 0)
        assert counts(capsys, *command) == (0, 0, 3, 0)
        (folder / "2_b.npz").write_bytes((folder / "2_b.npz").read_bytes()[:-100])
        (folder / "3_c.npz").unlink()
        assert counts(capsys, *command) == (0, 2, 1, 0)
        assert counts(capsys, *command, "--overwrite") == (0, 3, 0, 0)
        assert counts(capsys, *command, "--levels", 2) == (0, 3, 0, 0)
        assert counts(capsys, *command, "--levels", 2) == (0, 0, 3, 0)
        assert counts(capsys, *command) == (0, 3, 0, 0)
    os.utime(data / "1_a.npz", (time.time() + 5,) * 2)
    assert counts(capsys, *encode) == counts(capsys, *decode) == (0, 0, 3, 0)
    write_beat2(data / "1_a.npz", 20, seed=9)
    os.utime(data / "1_a.npz", (0, 0))
    assert counts(capsys, *encode) == counts(capsys, *decode) == (0, 1, 2, 0)


def test_levels_are_the_first_ones(tmp_path, upper, capsys):
    write_beat2(tmp_path / "1_a.npz", 20)
    for out, levels in (("all", ()), ("two", ("--levels", 2))):
        assert run(capsys, "encode", upper, tmp_path / "1_a.npz", "--out", tmp_path / out, *levels)[0] == 0
    codes, two = (read_codes(tmp_path / out / "1_a.npz").codes for out in ("all", "two"))
    assert two.shape == (5, 2) and (two == codes[:, :2]).all()
    run(capsys, "decode", upper, tmp_path / "all", "--out", tmp_path / "a", "--levels", 2)
    run(capsys, "decode", upper, tmp_path / "two", "--out", tmp_path / "b")
    first, second = (np.load(tmp_path / name / "1_a.npz")["poses"] for name in "ab")
    assert (first == second).all()
    status, result, _ = run(capsys, "decode", upper, tmp_path / "two", "--out", tmp_path / "c", "--levels", 3)
    assert status == 1 and result["failed"][0]["reason"] == "holds 2 levels, --levels asks for 3"


def test_uncovered_parts_come_from_the_source_or_are_at_rest(tmp_path, upper, capsys):
    data, codes = tmp_path / "data", tmp_path / "codes"
    write_beat2(data / "1_a.npz", 20)
    run(capsys, "encode", upper, data, "--out", codes)
    moved = tmp_path / "moved"
    data.rename(moved)
    status, result, _ = run(capsys, "decode", upper, codes, "--out", tmp_path / "rest")
    assert status == 0 and "at rest" in result["done"][0]["notes"][0]
    assert (np.load(tmp_path / "rest" / "1_a.npz")["trans"] == 0).all()
    for place in (moved, moved / "1_a.npz"):
        out = tmp_path / f"out_{place.name}"
        status, result, _ = run(capsys, "decode", upper, codes, "--out", out, "--source", place)
        assert status == 0 and result["done"][0]["notes"] == []
        assert (np.load(out / "1_a.npz")["trans"] == beat2_arrays(20)["trans"]).all()
    write_beat2(moved / "1_a.npz", 30)
    status, result, _ = run(capsys, "decode", upper, codes, "--out", tmp_path / "x", "--source", moved)
    assert status == 1 and "the source has 30 frames at 30 fps, but the codes have 20" in str(result["failed"])


def test_a_source_at_another_rate_is_told_and_comes_back_at_its_own(tmp_path, upper, capsys):
    source = write_beat2(tmp_path / "1_a.npz", 62, mocap_frame_rate=np.array(60, np.int32))
    run(capsys, "encode", upper, source, "--out", tmp_path / "codes")
    command = ["decode", str(upper), str(tmp_path / "codes"), "--out", str(tmp_path / "motion")]
    assert cli.main(command) == 0
    told = "source at 60 fps, written at 30; --fps source keeps the source's: "
    assert told in capsys.readouterr().out
    assert cli.main([*command, "--fps", "source"]) == 0 and "written at" not in capsys.readouterr().out
    back, original = np.load(tmp_path / "motion" / "1_a.npz"), np.load(source)
    assert back["mocap_frame_rate"] == 60 and back["poses"].shape == original["poses"].shape
    np.testing.assert_array_equal(back["trans"], original["trans"])  # not covered: the source's own, every frame
    # The same motion as at 30, with frames in between: 12 joints of the upper body along the sphere.
    assert cli.main([*command[:-1], str(tmp_path / "at30")]) == 0
    at_30 = np.load(tmp_path / "at30" / "1_a.npz")["poses"]
    spine = slice(9, 12)
    np.testing.assert_allclose(back["poses"][::2, spine], at_30[:, spine], atol=1e-5)
    between = Rotation.from_rotvec(back["poses"][1:-1:2, spine])
    half = Rotation.from_rotvec(at_30[:-1, spine]).inv() * Rotation.from_rotvec(at_30[1:, spine])
    expected = Rotation.from_rotvec(at_30[:-1, spine]) * Rotation.from_rotvec(half.as_rotvec() / 2)
    assert np.degrees((between.inv() * expected).magnitude()).max() < 0.01
    np.testing.assert_array_equal(back["poses"][-1, spine], back["poses"][-2, spine])  # past the last code's frame


def test_matrices_come_back_at_their_sources_rate_while_codes_tell_it(tmp_path, upper, capsys):
    source = write_beat2(tmp_path / "1_a.npz", 121, mocap_frame_rate=np.array(120, np.int32))
    codes, motion = tmp_path / "codes", tmp_path / "motion"
    run(capsys, "encode", upper, source, "--out", codes)
    source.unlink()
    decode = ("decode", upper, codes, "--out", motion, "--matrices", "--fps")
    assert run(capsys, *decode, "source")[0] == 0
    assert np.load(motion / "1_a.npy").shape == (121, 78)
    write_beat2(source, 31)  # another clip: without its columns, the written motion is as long as the encoded motion
    assert run(capsys, *decode, "source", "--overwrite")[0] == 0
    assert np.load(motion / "1_a.npy").shape == (121, 78)
    source.unlink()
    assert run(capsys, *decode, "60")[0] == 0 and np.load(motion / "1_a.npy").shape == (61, 78)
    with np.load(codes / "1_a.npz") as arrays:
        kept = {key: arrays[key] for key in arrays.files if not key.startswith("source_f")}
        assert (arrays["source_fps"], arrays["source_frames"]) == (120, 121)
    np.savez(codes / "1_a.npz", **kept)  # as versions before wrote it
    status, result, _ = run(capsys, *decode, "source")
    advice = "has no source file: name it by --source, or a rate by --fps N, or encode it again with --overwrite"
    assert status == 1 and advice in result["failed"][0]["reason"]
    write_beat2(source, 31)
    status, result, _ = run(capsys, *decode, "source", "--overwrite")
    assert status == 0 and "encode it again" in result["done"][0]["notes"][-1]
    source.unlink()
    assert run(capsys, *decode, "60")[0] == 0 and np.load(motion / "1_a.npy").shape == (61, 78)
    with pytest.raises(SystemExit, match="2"):
        cli.main([*map(str, decode), "fast"])
    assert "'fast' is not a number; give a number of frames per second, or source" in capsys.readouterr().err


def test_originals_are_never_written_over(tmp_path, upper, capsys):
    data, codes = tmp_path / "data", tmp_path / "codes"
    write_beat2_folder(data, ("1_a",), 20)
    original = (data / "1_a.npz").read_bytes()
    assert "would overwrite the input" in run(capsys, "encode", upper, data, "--out", data)[2][0]
    run(capsys, "encode", upper, data, "--out", codes)
    assert "was not decoded into this folder" in run(capsys, "decode", upper, codes, "--out", data)[2][0]
    status, result, _ = run(capsys, "decode", upper, codes, "--out", data, "--overwrite")
    assert status == 1 and "is its source" in result["failed"][0]["reason"]
    assert (data / "1_a.npz").read_bytes() == original
    other = tmp_path / "other"
    write_beat2(other / "1_a.npz", 24)
    status, result, _ = run(capsys, "encode", upper, other, "--out", codes)
    assert status == 1 and f"holds the codes of {data / '1_a.npz'}" in result["failed"][0]["reason"]
    (codes / "1_a.npz").write_bytes(original)
    status, result, _ = run(capsys, "encode", upper, data, "--out", codes)
    assert status == 1 and "is not a codes file; --overwrite" in result["failed"][0]["reason"]
    assert run(capsys, "encode", upper, data, "--out", codes, "--overwrite")[0] == 0


def test_a_packed_clip_and_a_file_with_one_output_are_not_both_written(tmp_path, five, capsys):
    (tmp_path / "data" / "task").mkdir(parents=True)
    write_packed(tmp_path / "data" / "task.npz", (40,))
    np.save(tmp_path / "data" / "task" / "clip0.npy", np.ones((20, 5)))
    status, result, _ = run(capsys, "encode", five, tmp_path / "data", "--out", tmp_path / "out", "--overwrite")
    assert status == 1 and len(result["done"]) == 1 and "is already the output of" in result["failed"][0]["reason"]


def test_one_file_named_twice_is_done_once(tmp_path, upper, capsys):
    write_beat2_folder(tmp_path / "data", ("1_a", "2_b"), 20)
    files = (tmp_path / "data", tmp_path / "data" / "1_a.npz", tmp_path / "data" / ".." / "data" / "2_b.npz")
    status, result, _ = run(capsys, "encode", upper, *files, "--out", tmp_path / "codes")
    assert status == 0 and len(result["done"]) == 2


@pytest.mark.real_data
def test_the_whole_real_clip_and_back(tmp_path, real_data, upper, capsys):
    source = next((real_data / "beat2").glob("*.npz"))
    assert run(capsys, "encode", upper, source, "--out", tmp_path / "codes")[0] == 0
    assert run(capsys, "decode", upper, tmp_path / "codes", "--out", tmp_path / "motion")[0] == 0
    there, found = np.load(source), np.load(tmp_path / "motion" / source.name)
    assert found.files == there.files and found["mocap_frame_rate"] == there["mocap_frame_rate"]
    assert found["poses"].shape == there["poses"].shape == (1906, 165)
    assert read_codes(tmp_path / "codes" / source.name).codes.shape == (477, 3)


@pytest.mark.real_data
def test_what_decode_gives_is_as_good_as_evaluate_says(tmp_path, real_data, upper, capsys):
    source = next((real_data / "beat2").glob("*.npz"))
    run(capsys, "encode", upper, source, "--out", tmp_path / "codes")
    _, scores, _ = run(capsys, "evaluate", upper, "--data_path", source, "--split", "all")
    assert (scores["clips"], scores["frames"]) == (1, 1904)
    joints = [SMPLX_JOINTS.index(name) for name in BODY_PART_CHANNELS["upper"]]

    def rotations(file):
        axis_angle = np.load(file)["poses"][:1904].reshape(1904, -1, 3)[:, joints]
        return torch.from_numpy(matrix_to_rotation_6d(axis_angle_to_matrix(axis_angle.astype(np.float64))))

    for row in scores["by_levels"]:
        out = tmp_path / f"motion{row['levels']}"
        assert run(capsys, "decode", upper, tmp_path / "codes", "--out", out, "--levels", row["levels"])[0] == 0
        error = angle_between(rotations(out / source.name), rotations(source)).mean().item()
        # The last two frames are encoded in the one and cut off in the other.
        assert error == pytest.approx(row["angle_error_deg"], rel=2e-3)
