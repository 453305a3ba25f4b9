"""`ds-rvqvae encode` and `decode`: unusable input is named, and no file is left incomplete."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch

from ds_rvqvae import MotionTokenizer, cli, read_codes
from ds_rvqvae.motion.layout import select_columns, smplx_layout
from ds_rvqvae.tokenizer.codes import write_codes
from tests.cli.commands import files_below, make_tokenizer, run
from tests.data.motion import beat2_arrays, write_beat2, write_beat2_folder, write_packed
from tests.ranks import ROOT


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
    assert "no spine1 (rotation_6d in 6 columns), which this tokenizer takes; the motion has" in str(result["failed"])
    _, result, _ = run(capsys, "encode", five, *files, "--out", tmp_path / "b")
    reasons = {failed["file"]: failed["reason"] for failed in result["failed"]}
    assert reasons[str(files[0])] == "78 columns, this tokenizer takes 5"
    assert reasons[str(files[1])] == "433 columns, this tokenizer takes 5"
    assert "no features (feature in 5 columns), which this tokenizer takes; the motion" in reasons[f"{files[2]}: clip0"]


def test_packed_clips_fail_one_by_one(tmp_path, five, capsys):
    motion = np.ones((90, 5), np.float32)
    motion[45] = np.nan
    names = np.array(["good", "nan", "../escape", "a/b", "a/../b", "", "twice", "twice", "also good"])
    write_packed(tmp_path / "task.npz", (10,) * 9, motion=motion, clip_name=names)
    motion[45], motion[15] = 1, np.nan
    write_packed(tmp_path / "task.npz", (10,) * 9, motion=motion, clip_name=names)
    status, result, _ = run(capsys, "encode", five, tmp_path / "task.npz", "--out", tmp_path / "out")
    assert status == 1
    assert files_below(tmp_path / "out") == ["task/a/b.npz", "task/also good.npz", "task/good.npz"]
    assert len(result["failed"]) == 6 and not (tmp_path / "escape.npz").exists()


def test_a_tokenizer_that_gives_no_numbers_fails(tmp_path, five, capsys):
    broken = MotionTokenizer.from_pretrained(five, trainable=True)
    with torch.no_grad():
        broken.model.decoder[0].bias.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    np.save(tmp_path / "a.npy", np.ones((20, 5)))
    run(capsys, "encode", tmp_path / "broken", tmp_path / "a.npy", "--out", tmp_path / "codes")
    status, result, _ = run(capsys, "decode", tmp_path / "broken", tmp_path / "codes", "--out", tmp_path / "motion")
    assert status == 1 and "NaN or infinite values in 20 of 20 frames" in result["failed"][0]["reason"]


def _damage(folder):
    """A hundred files that cannot be encoded, with names that a search finds, and a word of the reason for each."""
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
        if key == "expressions":  # SMPL-X motion without a face is motion
            del changes["missing"]
        for kind, (values, reason) in changes.items():
            name = f"{key}_{kind}.npz"
            write_beat2(folder / name, 20, **{key: values})
            expected[name] = reason
    for index, rate in enumerate((0, -30, np.nan, np.inf, "fast")):
        write_beat2(folder / f"rate{index}.npz", 20, mocap_frame_rate=np.array(rate))
        expected[f"rate{index}.npz"] = "not a frame rate"
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
    expected["pipe.npz"] = "not a regular file"
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
        assert str(data) not in reasons[name] and "Traceback" not in reasons[name]
    said = [line for line in errors if line.startswith("failed: ")]
    assert len(said) == 13 and said[12].endswith("other reasons; --json lists them all")
    usual, count = Counter(reasons.values()).most_common(1)[0]
    assert said[0].endswith(f" and {count - 1} more: {usual}")
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
    assert files_below(tmp_path / "motion") == [".decoded.jsonl", "1_good.npz"]


REFUSALS = {
    "nothing there": (["{good}/nowhere.npz"], "no such file or folder"),
    "nothing in it": (["{empty}"], "no .npz, .npy or .bvh file in it or its subfolders"),
    "no level": (["{good}", "--levels", "0"], "--levels 0: this tokenizer has levels 1 to 3"),
    "too many levels": (["{good}", "--levels", "4"], "levels 1 to 3"),
    "no workers": (["{good}", "--workers", "0"], "not a whole number from 1"),
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


@pytest.mark.processes
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
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
    printed, errors = process.communicate(timeout=60)
    there = list(codes.glob("*.npz"))
    assert 5 <= len(there) < 60 and all(read_codes(file).frames == 400 for file in there)
    if kind != signal.SIGKILL:
        assert process.returncode == 75 and "stopped before all were done" in printed
        assert errors == f"stopped by {kind.name}\n"
        assert len(files_below(codes)) == len(there)
    status, result, _ = run(capsys, "encode", upper, data, "--out", codes)
    assert status == 0 and len(result["skipped"]) == len(there) and len(files_below(codes)) == 60
