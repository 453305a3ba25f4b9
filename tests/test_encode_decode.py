"""`ds-rvqvae encode` and `ds-rvqvae decode`, on good files and on a hundred that are not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer, cli
from ds_rvqvae.data.layout import feature_layout, select_columns, smplx_layout
from ds_rvqvae.data.motion_files import open_motion_file
from ds_rvqvae.profile import DataConfig, ModelConfig
from ds_rvqvae.tokenizer.code_files import read_codes, write_codes
from tests.data.motion import beat2_arrays, write_beat2, write_beat2_folder, write_packed
from tests.ranks import ROOT

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=32, num_quantizers=3)


def make_tokenizer(layout, body_part=None, seed=0):
    torch.manual_seed(seed)
    width = layout[-1].stop
    tokenizer = MotionTokenizer(
        RVQVAE(width, CONFIG), torch.zeros(width), torch.ones(width), layout, 30.0, {"body_part": body_part}
    )
    tokenizer.model.quantizer.codebooks.normal_()
    return tokenizer


@pytest.fixture(scope="module")
def upper(tmp_path_factory):
    """The folder of a tokenizer of the upper body; not to be written to."""
    folder = tmp_path_factory.mktemp("tokenizers") / "upper"
    make_tokenizer(select_columns(smplx_layout(), "upper")[1], "upper").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """The folder of a tokenizer of matrices with five columns; not to be written to."""
    folder = tmp_path_factory.mktemp("tokenizers") / "five"
    make_tokenizer(feature_layout(5)).save_pretrained(folder)
    return folder


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def run(capsys, *arguments):
    """Exit status, the JSON result, and the lines on stderr."""
    status = cli.main([*map(str, arguments), "--json"])
    printed = capsys.readouterr()
    return status, json.loads(printed.out) if printed.out else None, printed.err.splitlines()


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


def test_done_files_are_skipped_and_only_they(tmp_path, upper, capsys):
    data, codes, motion = tmp_path / "data", tmp_path / "codes", tmp_path / "motion"
    write_beat2_folder(data, ("1_a", "2_b", "3_c"), 20)
    encode = ("encode", upper, data, "--out", codes)
    decode = ("decode", upper, codes, "--out", motion)

    def counts(*arguments):
        status, result, _ = run(capsys, *arguments)
        return status, len(result["done"]), len(result["skipped"]), len(result["failed"])

    for command, folder in ((encode, codes), (decode, motion)):
        assert counts(*command) == (0, 3, 0, 0)
        assert counts(*command) == (0, 0, 3, 0)
        (folder / "2_b.npz").write_bytes((folder / "2_b.npz").read_bytes()[:-100])
        (folder / "3_c.npz").unlink()
        assert counts(*command) == (0, 2, 1, 0)
        assert counts(*command, "--overwrite") == (0, 3, 0, 0)
        assert counts(*command, "--levels", 2) == (0, 3, 0, 0)
        assert counts(*command, "--levels", 2) == (0, 0, 3, 0)
        assert counts(*command) == (0, 3, 0, 0)
    os.utime(data / "1_a.npz", (time.time() + 5,) * 2)
    assert counts(*encode) == (0, 1, 2, 0)
    assert counts(*decode) == (0, 1, 2, 0)


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
    assert status == 1 and "the source has 30 frames at 30 frames a second, the codes 20" in str(result["failed"])


def test_a_source_at_another_rate_is_told(tmp_path, upper, capsys):
    write_beat2(tmp_path / "1_a.npz", 61, mocap_frame_rate=np.array(60, np.int32))
    run(capsys, "encode", upper, tmp_path / "1_a.npz", "--out", tmp_path / "codes")
    assert cli.main(["decode", str(upper), str(tmp_path / "codes"), "--out", str(tmp_path / "motion")]) == 0
    assert "source at 60 frames a second, written at 30: " in capsys.readouterr().out
    assert np.load(tmp_path / "motion" / "1_a.npz")["poses"].shape == (31, 165)


def test_originals_are_never_written_over(tmp_path, upper, capsys):
    data, codes = tmp_path / "data", tmp_path / "codes"
    write_beat2_folder(data, ("1_a",), 20)
    original = (data / "1_a.npz").read_bytes()
    assert "would be written over" in run(capsys, "encode", upper, data, "--out", data)[2][0]
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
    assert status == 1 and "holds no codes; --overwrite" in result["failed"][0]["reason"]
    assert run(capsys, "encode", upper, data, "--out", codes, "--overwrite")[0] == 0


def test_codes_of_another_tokenizer_fail(tmp_path, upper, capsys):
    other = tmp_path / "other"
    make_tokenizer(select_columns(smplx_layout(), "upper")[1], "upper", seed=1).save_pretrained(other)
    write_beat2(tmp_path / "1_a.npz", 20)
    run(capsys, "encode", upper, tmp_path / "1_a.npz", "--out", tmp_path / "codes")
    decode = ("decode", other, tmp_path / "codes", "--out", tmp_path / "motion")
    status, result, _ = run(capsys, *decode)
    assert status == 1 and "codes of another tokenizer" in result["failed"][0]["reason"]
    assert run(capsys, *decode, "--any_tokenizer")[0] == 0
    codes = read_codes(tmp_path / "codes" / "1_a.npz")
    codes.codes[2, 1] = 32
    write_codes(tmp_path / "codes" / "1_a.npz", codes)
    status, result, _ = run(capsys, *decode, "--any_tokenizer")
    assert status == 1 and "codes up to 32 on 3 levels; this tokenizer has 32 codes on 3" in str(result["failed"])


def test_motion_of_another_layout_is_told_apart(tmp_path, upper, five, capsys):
    np.save(tmp_path / "m.npy", np.ones((20, 78)))
    write_beat2(tmp_path / "1_a.npz", 20)
    layout = json.dumps([{"name": "Hips", "kind": "feature", "columns": [0, 5]}])
    write_packed(tmp_path / "task.npz", (40,), layout=np.array(layout))
    files = [tmp_path / name for name in ("m.npy", "1_a.npz", "task.npz")]
    _, result, _ = run(capsys, "encode", upper, files[0], "--out", tmp_path / "a")
    assert "of features (feature), this tokenizer takes spine1" in str(result["failed"])
    _, result, _ = run(capsys, "encode", five, *files, "--out", tmp_path / "b")
    reasons = {failed["file"]: failed["reason"] for failed in result["failed"]}
    assert reasons[str(files[0])] == "78 columns, this tokenizer takes 5"
    assert reasons[str(files[1])] == "433 columns, this tokenizer takes 5"
    assert "of Hips (feature), this tokenizer takes features" in reasons[f"{files[2]}: clip0"]


def test_packed_clips_fail_one_by_one(tmp_path, five, capsys):
    motion = np.ones((90, 5), np.float32)
    motion[45] = np.nan
    names = np.array(["good", "nan", "../escape", "a/b", ".hidden", "", "twice", "twice", "also good"])
    write_packed(tmp_path / "task.npz", (10,) * 9, motion=motion, clip_name=names)
    motion[45], motion[15] = 1, np.nan
    write_packed(tmp_path / "task.npz", (10,) * 9, motion=motion, clip_name=names)
    status, result, _ = run(capsys, "encode", five, tmp_path / "task.npz", "--out", tmp_path / "out")
    assert status == 1 and files_below(tmp_path / "out") == ["task/also good.npz", "task/good.npz"]
    assert len(result["failed"]) == 7 and not (tmp_path / "escape.npz").exists()


def test_a_packed_clip_and_a_file_with_one_output_are_not_both_written(tmp_path, five, capsys):
    (tmp_path / "data" / "task").mkdir(parents=True)
    write_packed(tmp_path / "data" / "task.npz", (40,))
    np.save(tmp_path / "data" / "task" / "clip0.npy", np.ones((20, 5)))
    status, result, _ = run(capsys, "encode", five, tmp_path / "data", "--out", tmp_path / "out", "--overwrite")
    assert status == 1 and len(result["done"]) == 1 and "is already that of" in result["failed"][0]["reason"]


def test_a_tokenizer_that_gives_no_numbers_fails(tmp_path, five, capsys):
    broken = MotionTokenizer.from_pretrained(five)
    with torch.no_grad():
        broken.model.decoder[0].bias.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    np.save(tmp_path / "a.npy", np.ones((20, 5)))
    run(capsys, "encode", tmp_path / "broken", tmp_path / "a.npy", "--out", tmp_path / "codes")
    status, result, _ = run(capsys, "decode", tmp_path / "broken", tmp_path / "codes", "--out", tmp_path / "motion")
    assert status == 1 and "NaN or infinite values in 20 of 20 frames" in result["failed"][0]["reason"]


def _damage(folder):
    """A hundred files that cannot be encoded, under names that a search takes, with a word of each one's reason."""
    folder.mkdir()
    good = write_beat2(folder / "whole", 20).with_name("whole.npz").read_bytes()
    (folder / "whole.npz").unlink()
    rng = np.random.default_rng(0)
    expected = {}

    def bad(name, content, reason):
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        expected[name] = reason

    for index in range(12):
        bad(f"random{index}.npz", rng.bytes(int(10 ** (index / 2.5))), "")
        bad(f"noise{index}.npy", rng.bytes(int(10 ** (index / 2.5))), "")
        bad(f"cut{index}.npz", good[: len(good) * index // 12], "" if index else "cut short")
        place = len(good) * (index + 1) // 14
        bad(f"flipped{index}.npz", good[:place] + bytes(32) + good[place + 32 :], "")
    bad("nothing.npy", b"", "")
    bad("text.npz", b"id,type\n1_a,train\n", "")
    bad("page.npz", b"<!DOCTYPE html>", "")
    bad("photo.npz", b"\xff\xd8\xff\xe0\x00\x10JFIF" + rng.bytes(500), "")
    bad("tape.npz", b"\x1f\x8b\x08" + rng.bytes(100), "")
    bad("pickle.npy", b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94K\x01a.", "pickled")
    arrays = beat2_arrays(20)
    for key in ("poses", "trans", "expressions"):
        changes = {
            "missing": (None, f"no key {key}" if key != "poses" else "no key poses"),
            "narrow": (arrays[key][:, 1:], "shape"),
            "flat": (arrays[key].reshape(-1), "shape"),
            "deep": (arrays[key][None], "shape"),
            "empty": (arrays[key][:0], "empty"),
            "short": (arrays[key][:-1], "frames"),
            "nan": (np.where(np.arange(20)[:, None] == 7, np.nan, arrays[key]), "NaN or infinite values in 1 of 20"),
            "infinite": (np.where(np.arange(20)[:, None] > 9, np.inf, arrays[key]), "in 10 of 20 frames: 10-19"),
            "complex": (arrays[key] * 1j, "complex"),
            "text": (arrays[key].astype(str), "<U"),
            "objects": (arrays[key].astype(object), "never loaded"),
        }
        for kind, (values, reason) in changes.items():
            name = f"{key}_{kind}.npz"
            write_beat2(folder / name, 20, **{key: values})
            expected[name] = reason
    for index, rate in enumerate((0, -30, np.nan, np.inf, "30")):
        write_beat2(folder / f"rate{index}.npz", 20, mocap_frame_rate=np.array(rate))
        expected[f"rate{index}.npz"] = "frames a second"
    for name, values in {
        "wide.npy": np.ones((9, 79)),
        "row.npy": np.ones(9),
        "cube.npy": np.ones((2, 3, 4)),
        "words.npy": np.array([["a"]]),
        "none.npy": np.ones((0, 78)),
        "nans.npy": np.full((9, 5), np.nan),
    }.items():
        np.save(folder / name, values)
        expected[name] = "NaN" if name == "nans.npy" else "column" if name == "wide.npy" else "matrix"
    np.save(folder / "dicts.npy", np.array([{}], object))
    expected["dicts.npy"] = "never loaded"
    with zipfile.ZipFile(folder / "zip.npz", "w") as archive:
        archive.writestr("poses", "not an array")
    expected["zip.npz"] = ""
    with (folder / "single.npz").open("wb") as content:
        np.save(content, np.ones((20, 165)))
    expected["single.npz"] = "a single array"
    (folder / "folder.npz").mkdir()
    expected["folder.npz"] = "a folder"
    (folder / "loop.npz").symlink_to("loop.npz")
    expected["loop.npz"] = "symbolic links"
    (folder / "dangling.npy").symlink_to("nowhere.npy")
    expected["dangling.npy"] = "No such file"
    os.mkfifo(folder / "pipe.npz")
    expected["pipe.npz"] = "no regular file"
    (folder / "below").symlink_to(folder)
    if os.geteuid() != 0:  # root reads everything
        write_beat2(folder / "locked.npz", 20).chmod(0)
        expected["locked.npz"] = "Permission denied"
    return expected


def test_a_hundred_bad_files_among_good_ones(tmp_path, upper, capsys):
    data = tmp_path / "data"
    bad = _damage(data)
    good = [f"{index}_good.npz" for index in range(5)]
    write_beat2_folder(data, tuple(name.removesuffix(".npz") for name in good), 20)
    for ignored in ("notes.txt", "1_a.wav", "1_a.TextGrid", ".hidden.npz", "photo.jpg"):
        (data / ignored).write_bytes(b"not for us")
    assert len(bad) >= 100
    out = tmp_path / "out"
    status, result, errors = run(capsys, "encode", upper, data, "--out", out, "--workers", 3)
    assert status == 1
    reasons = {failed["file"].removeprefix(f"{data}/"): failed["reason"] for failed in result["failed"]}
    assert reasons.keys() == bad.keys()
    for name, word in bad.items():
        assert reasons[name] and word in reasons[name] and "\n" not in reasons[name], (name, reasons[name])
        assert f"failed: {data / name}: {reasons[name]}" in errors
        assert str(data) not in reasons[name] and "Traceback" not in reasons[name]
    assert sorted(done["file"] for done in result["done"]) == [str(data / name) for name in good]
    assert files_below(out) == good
    assert all(read_codes(out / name).frames == 20 for name in good)
    assert run(capsys, "encode", upper, data, "--out", out)[1]["skipped"] == sorted(
        ({"file": str(data / name), "output": str(out / name)} for name in good), key=lambda done: done["file"]
    )
    assert cli.main(["encode", str(upper), str(data), "--out", str(out)]) == 1
    assert f"0 done, 5 skipped, {len(bad)} failed" in capsys.readouterr().out


def test_bad_codes_files_among_good_ones(tmp_path, upper, capsys):
    data, codes = tmp_path / "data", tmp_path / "codes"
    bad = _damage(codes)
    write_beat2_folder(data, ("1_good",), 20)
    run(capsys, "encode", upper, data, "--out", tmp_path / "fresh")
    shutil.copy(tmp_path / "fresh" / "1_good.npz", codes)
    bad = [name for name in bad if name.endswith(".npz")]
    status, result, _ = run(capsys, "decode", upper, codes, "--out", tmp_path / "motion")
    assert status == 1 and len(result["done"]) == 1
    assert sorted(failed["file"] for failed in result["failed"]) == sorted(str(codes / name) for name in bad)
    assert files_below(tmp_path / "motion") == [".decoded.json", "1_good.npz"]


REFUSALS = {
    "nothing there": (["{good}/nowhere.npz"], "no such file or folder"),
    "nothing in it": (["{empty}"], "no .npz or .npy file in it or below"),
    "no level": (["{good}", "--levels", "0"], "--levels 0: this tokenizer has levels 1 to 3"),
    "too many levels": (["{good}", "--levels", "4"], "levels 1 to 3"),
    "no workers": (["{good}", "--workers", "0"], "a number from 1 to 256"),
    "misspelt": (["{good}", "--overwite"], "did you mean --overwrite"),
    "two of a name": (["{good}", "{same}"], "would both be written to"),
    "out is a file": (["{good}", "--out", "{good}/1_a.npz"], "--out"),
    "out below a file": (["{good}", "--out", "{good}/1_a.npz/x"], "--out"),
}


@pytest.mark.parametrize(("arguments", "pattern"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_are_one_line_and_nothing_is_written(tmp_path, upper, arguments, pattern, capsys):
    places = {name: tmp_path / name for name in ("good", "same", "empty")}
    places["empty"].mkdir()
    write_beat2(places["good"] / "1_a.npz", 20)
    write_beat2(places["same"] / "1_a.npz", 24)
    before = files_below(tmp_path)
    arguments = ["encode", str(upper), "--out", str(tmp_path / "out"), *(text.format(**places) for text in arguments)]
    try:
        status = cli.main(arguments)
    except SystemExit as refusal:
        status = refusal.code
    printed = capsys.readouterr()
    assert status == 2 and printed.out == ""
    assert len(printed.err.splitlines()) == 1 and pattern in printed.err
    assert files_below(tmp_path) == before


def test_refusals_of_decode(tmp_path, upper, capsys):
    write_beat2_folder(tmp_path / "data", ("1_a", "2_b"), 20)
    run(capsys, "encode", upper, tmp_path / "data", "--out", tmp_path / "codes")
    decode = ("decode", upper, tmp_path / "codes", "--out", tmp_path / "motion")
    assert "one file for 2 clips" in run(capsys, *decode, "--source", tmp_path / "data" / "1_a.npz")[2][0]
    assert "no such file or folder" in run(capsys, *decode, "--source", tmp_path / "nowhere")[2][0]
    assert run(capsys, "decode", tmp_path, tmp_path / "codes", "--out", tmp_path / "motion")[0] == 2


def test_one_file_named_twice_is_done_once(tmp_path, upper, capsys):
    write_beat2_folder(tmp_path / "data", ("1_a", "2_b"), 20)
    files = (tmp_path / "data", tmp_path / "data" / "1_a.npz", tmp_path / "data" / ".." / "data" / "2_b.npz")
    status, result, _ = run(capsys, "encode", upper, *files, "--out", tmp_path / "codes")
    assert status == 0 and len(result["done"]) == 2


@pytest.mark.processes
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_it_leaves_whole_files_and_goes_on(tmp_path, upper, kind, capsys):
    data, codes = tmp_path / "data", tmp_path / "codes"
    write_beat2_folder(data, ("000",), 400)
    for index in range(1, 60):
        os.link(data / "000.npz", data / f"{index:03}.npz")
    command = [sys.executable, "-m", "ds_rvqvae.cli", "encode", str(upper), str(data), "--out", str(codes)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(codes.glob("*.npz"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(kind)
    printed, _ = process.communicate(timeout=60)
    there = list(codes.glob("*.npz"))
    assert 5 <= len(there) < 60 and all(read_codes(file).frames == 400 for file in there)
    if kind == signal.SIGINT:
        assert process.returncode == 75 and "stopped before the rest" in printed
        assert len(files_below(codes)) == len(there)
    status, result, _ = run(capsys, "encode", upper, data, "--out", codes)
    assert status == 0 and len(result["skipped"]) == len(there) and len(files_below(codes)) == 60


@pytest.mark.real_data
def test_the_whole_real_clip_and_back(tmp_path, real_data, upper, capsys):
    source = next((real_data / "beat2").glob("*.npz"))
    assert run(capsys, "encode", upper, source, "--out", tmp_path / "codes")[0] == 0
    assert run(capsys, "decode", upper, tmp_path / "codes", "--out", tmp_path / "motion")[0] == 0
    there, found = np.load(source), np.load(tmp_path / "motion" / source.name)
    assert found.files == there.files and found["mocap_frame_rate"] == there["mocap_frame_rate"]
    assert found["poses"].shape == there["poses"].shape == (1906, 165)
    assert read_codes(tmp_path / "codes" / source.name).codes.shape == (477, 3)
