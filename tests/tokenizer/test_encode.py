"""Encoding files: what is written, what is done already, and what is not overwritten."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ds_rvqvae import read_codes
from ds_rvqvae.files import content_of
from ds_rvqvae.motion.layout import feature_layout, select_columns, smplx_layout
from ds_rvqvae.tokenizer.codes import write_codes
from ds_rvqvae.tokenizer.encode import encode_files
from tests.cli.commands import files_below, make_tokenizer
from tests.data.motion import write_beat2, write_matrices, write_packed
from tests.replacing import WAYS, npy_bytes, replace_by, touch_all
from tests.tokenizer.test_decode import DAMAGES, flipped


@pytest.fixture
def tokenizer():
    return make_tokenizer(feature_layout(5))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "a.npy", np.random.default_rng(0).normal(size=(21, 5)).astype(np.float32))
    return folder


def _ends(report):
    return len(report.done), len(report.skipped), [left.reason for left in report.failed]


def test_codes_are_the_tokenizers_with_what_they_are_codes_of(tokenizer, data, tmp_path):
    report = encode_files(tokenizer, [data], tmp_path / "out")
    assert _ends(report) == (1, 0, []) and report.seconds == pytest.approx(21 / 30)
    codes = read_codes(tmp_path / "out" / "a.npz")
    np.testing.assert_array_equal(codes.codes, tokenizer.encode(np.load(data / "a.npy")))
    assert (codes.frames, codes.fps, codes.code_rate, codes.levels) == (21, 30.0, 7.5, 3)
    assert (codes.fingerprint, codes.source) == (tokenizer.fingerprint, str(data / "a.npy"))


def test_a_packed_file_becomes_a_folder_and_clips_fail_one_by_one(tokenizer, tmp_path):
    names = np.array(["walk/1", "../escape", "jump"])
    file = write_packed(tmp_path / "task.npz", (20, 20, 20), clip_name=names)
    report = encode_files(tokenizer, [file], tmp_path / "out")
    assert files_below(tmp_path / "out") == ["task/jump.npz", "task/walk/1.npz"]
    (left,) = report.failed
    assert left.file == f"{file}: ../escape" and left.reason == "the clip's name cannot be a file's name"


def test_done_is_what_is_whole_of_this_tokenizer_of_these_levels_and_of_this_content(tokenizer, data, tmp_path):
    out = tmp_path / "out"

    def again(used=tokenizer, **settings):
        report = encode_files(used, [data], out, **settings)
        return len(report.done), len(report.skipped)

    assert [again(), again()] == [(1, 0), (0, 1)]
    assert [again(levels=2), again(levels=2), again(levels=3), again()] == [(1, 0), (0, 1), (1, 0), (0, 1)]
    other = make_tokenizer(feature_layout(5), seed=1)
    assert [again(other), again(other)] == [(1, 0), (0, 1)]
    assert [again(other, overwrite=True), again()] == [(1, 0), (1, 0)]
    later = (out / "a.npz").stat().st_mtime + 5
    os.utime(data / "a.npy", (later, later))
    assert again() == (0, 1)
    np.save(data / "a.npy", np.load(data / "a.npy") * 2)
    os.utime(data / "a.npy", (0, 0))
    assert [again(), again()] == [(1, 0), (0, 1)]
    (out / "a.npz").write_bytes((out / "a.npz").read_bytes()[:-50])
    assert [again(), again()] == [(1, 0), (0, 1)]


def test_what_holds_something_else_is_left_alone(tokenizer, data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    np.savez(out / "a.npz", mine=np.ones(3))
    before = (out / "a.npz").read_bytes()
    assert _ends(encode_files(tokenizer, [data], out)) == (
        0,
        0,
        [f"{out / 'a.npz'} exists and is not a codes file; --overwrite replaces it"],
    )
    assert (out / "a.npz").read_bytes() == before
    assert _ends(encode_files(tokenizer, [data], out, overwrite=True)) == (1, 0, [])
    # Codes of another file, as long as that one is there.
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "a.npy", np.ones((8, 5), np.float32))
    assert "holds the codes of" in _ends(encode_files(tokenizer, [other], out))[2][0]
    (data / "a.npy").unlink()
    assert _ends(encode_files(tokenizer, [other], out)) == (1, 0, [])
    assert read_codes(out / "a.npz").source == str(other / "a.npy")


def test_codes_that_do_not_say_of_what_content_they_are_are_made_again_and_that_is_said(tokenizer, data, tmp_path):
    encode_files(tokenizer, [data], tmp_path / "out")
    codes = read_codes(tmp_path / "out" / "a.npz")
    assert codes.source_content == content_of(data / "a.npy")
    write_codes(tmp_path / "out" / "a.npz", replace(codes, source_content="", reading=""))
    report = encode_files(tokenizer, [data], tmp_path / "out")
    assert _ends(report) == (1, 0, []) and "an older version did not record the content" in report.text()
    assert _ends(encode_files(tokenizer, [data], tmp_path / "out")) == (0, 1, [])


def test_files_that_are_read_in_another_way_are_encoded_again(tmp_path):
    file = write_beat2(tmp_path / "data" / "1_a.npz", 40, expressions=None)
    tokenizer = make_tokenizer(select_columns(smplx_layout(), "upper")[1], "upper")
    assert _ends(encode_files(tokenizer, [file], tmp_path / "out"))[:2] == (1, 0)
    tokenizer.details["reading"] = {"up_axis": "z"}
    assert _ends(encode_files(tokenizer, [file], tmp_path / "out"))[:2] == (1, 0)
    assert _ends(encode_files(tokenizer, [file], tmp_path / "out"))[:2] == (0, 1)


@pytest.mark.parametrize("way", WAYS)
def test_motion_that_is_replaced_is_encoded_again_however_that_was_done(tokenizer, data, tmp_path, way):
    np.save(data / "b.npy", np.zeros((21, 5), np.float32))
    encode_files(tokenizer, [data], tmp_path / "out")
    replace_by(way, data / "a.npy", npy_bytes(np.load(data / "a.npy") + 1))
    touch_all(data)
    assert _ends(encode_files(tokenizer, [data], tmp_path / "out")) == (1, 1, [])
    expected = tokenizer.encode(np.load(data / "a.npy"))
    np.testing.assert_array_equal(read_codes(tmp_path / "out" / "a.npz").codes, expected)


def test_codes_that_are_damaged_are_made_again_and_none_is_skipped(tokenizer, tmp_path):
    damages = [*DAMAGES.values(), *(partial(flipped, share=share) for share in np.linspace(0, 0.999, 90))]
    data, out = write_matrices(tmp_path / "data", tuple(map(str, range(len(damages)))), 5), tmp_path / "out"
    assert _ends(encode_files(tokenizer, [data], out)) == (len(damages), 0, [])
    whole = {file: file.read_bytes() for file in out.iterdir()}
    for number, change in enumerate(damages):
        file = out / f"{number}.npz"
        file.write_bytes(change(whole[file]))
    report = encode_files(tokenizer, [data], out)
    assert not report.skipped and len(report.done) > 80
    # A file that may be somebody else's is not overwritten.
    assert all("--overwrite replaces" in left.reason for left in report.failed)
    for clip in report.done:
        assert Path(clip.output).read_bytes() == whole[Path(clip.output)]
    failed = len(report.failed)
    report = encode_files(tokenizer, [data], out, overwrite=True)
    assert {file: file.read_bytes() for file in out.iterdir()} == whole and failed < 20
    assert _ends(encode_files(tokenizer, [data], out)) == (0, len(damages), [])


def test_codes_that_somebody_changed_are_not_written_over(tokenizer, data, tmp_path):
    encode_files(tokenizer, [data], tmp_path / "out")
    own = read_codes(tmp_path / "out" / "a.npz")
    own.codes[0, 1] ^= 1
    write_codes(tmp_path / "out" / "a.npz", own)
    assert _ends(encode_files(tokenizer, [data], tmp_path / "out")) == (0, 1, [])
    with np.load(tmp_path / "out" / "a.npz") as arrays:
        np.savez(tmp_path / "out" / "a.npz", **arrays)
    report = encode_files(tokenizer, [data], tmp_path / "out")
    assert "a.npz was changed after it was encoded; --overwrite replaces it" in report.failed[0].reason
    assert read_codes(tmp_path / "out" / "a.npz").codes[0, 1] == own.codes[0, 1]
