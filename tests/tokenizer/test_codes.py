"""The codes npz: what is written is read, and damage is named."""

import dataclasses
import tracemalloc
import zipfile

import numpy as np
import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.codes import Codes, read_body_codes, read_codes, write_codes
from tests.data.formats.damaged import header, npy, npy_of, npz

CODES = Codes(
    np.random.default_rng(0).integers(0, 1024, (13, 6)), 30.0, 7.5, 50, "ab" * 32, "/data/1_größe.npz", "beat2"
)

LOWER = dataclasses.replace(CODES, codes=CODES.codes[:7, :4] % 16, code_rate=3.75, fingerprint="cd" * 32)
BODY = {"upper": CODES, "lower_trans": LOWER}


def written(tmp_path, codes=CODES, /, **changes):
    """A codes file with some keys changed, or dropped by None."""
    write_codes(tmp_path / "whole.npz", codes)
    arrays = {**np.load(tmp_path / "whole.npz"), **changes}
    np.savez(tmp_path / "clip.npz", **{key: values for key, values in arrays.items() if values is not None})
    return tmp_path / "clip.npz"


def test_codes_are_read_as_they_were_written(tmp_path):
    write_codes(tmp_path / "deep" / "clip.npz", CODES)
    found = read_codes(tmp_path / "deep" / "clip.npz")
    np.testing.assert_array_equal(found.codes, CODES.codes)
    assert found.codes.dtype == np.int64 and found.levels == 6 and found.seconds == pytest.approx(50 / 30)
    for field in dataclasses.fields(Codes)[1:]:
        assert getattr(found, field.name) == getattr(CODES, field.name), field.name
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["clip.npz"]


def test_the_file_has_the_documented_keys_without_pickles(tmp_path):
    write_codes(tmp_path / "clip.npz", CODES)
    with np.load(tmp_path / "clip.npz", allow_pickle=False) as found:
        keys = ["codes", "fps", "code_rate", "frames", "fingerprint", "source", "format", "version"]
        assert found.files == keys and found["codes"].dtype == np.int32 and found["codes"].shape == (13, 6)
        assert all(found[key].shape == () for key in keys[1:])


def test_dropped_levels_are_kept_but_not_the_first(tmp_path):
    codes = CODES.codes.copy()
    codes[3:, 2:] = -1
    write_codes(tmp_path / "clip.npz", dataclasses.replace(CODES, codes=codes))
    np.testing.assert_array_equal(read_codes(tmp_path / "clip.npz").codes, codes)
    with pytest.raises(ValueError, match="count from 0"):
        write_codes(tmp_path / "other.npz", dataclasses.replace(CODES, codes=np.full((13, 6), -1)))
    assert not (tmp_path / "other.npz").exists()


BAD = {
    "no codes": ({"codes": None}, "no key codes"),
    "no fingerprint": ({"fingerprint": None}, "no key fingerprint"),
    "floats": ({"codes": np.zeros((13, 6))}, "float64"),
    "flat": ({"codes": np.zeros(13, int)}, r"\[13\]"),
    "no levels": ({"codes": np.zeros((13, 0), int)}, r"\[13, 0\]"),
    "negative": ({"codes": np.full((13, 6), -2)}, "count from 0"),
    "huge": ({"codes": np.full((13, 6), 2**40)}, "count from 0"),
    "huge and unsigned": ({"codes": np.full((13, 6), 2**63, np.uint64)}, "count from 0"),
    "too few": ({"codes": np.zeros((12, 6), int)}, "12 codes of 4 frames each do not make 50 frames"),
    "half a frame": ({"frames": np.array(49.5)}, "49.5 frames"),
    "no rate": ({"code_rate": np.array(0.0)}, "code_rate is 0.0"),
    "NaN": ({"fps": np.array(np.nan)}, "fps is nan"),
    "infinite": ({"fps": np.array(np.inf)}, "fps is inf"),
    "two rates": ({"fps": np.array([30.0, 30.0])}, "fps"),
    "objects": ({"codes": np.array([[{}]], object)}, "never loaded"),
    "text as bytes": ({"source": np.array(b"x")}, "source holds"),
    "another format": ({"format": np.array("audio")}, "'audio', not one of beat2"),
    "another version": ({"version": np.array(2)}, "version 2; this release reads version 1"),
}


@pytest.mark.parametrize(("changes", "pattern"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_in_one_line(tmp_path, changes, pattern):
    with pytest.raises(UserError, match=pattern) as refusal:
        read_codes(written(tmp_path, **changes))
    assert str(refusal.value).startswith(str(tmp_path / "clip.npz")) and "\n" not in str(refusal.value)


def test_every_cut_of_a_file_is_refused(tmp_path):
    write_codes(tmp_path / "clip.npz", CODES)
    whole = (tmp_path / "clip.npz").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.npz: "):
            read_codes(tmp_path / "cut.npz")


def test_codes_of_a_body_are_read_as_they_were_written(tmp_path):
    write_codes(tmp_path / "clip.npz", BODY)
    found = read_body_codes(tmp_path / "clip.npz")
    assert list(found) == ["upper", "lower_trans"]
    for part, codes in BODY.items():
        np.testing.assert_array_equal(found[part].codes, codes.codes)
        for field in dataclasses.fields(Codes)[1:]:
            assert getattr(found[part], field.name) == getattr(codes, field.name), field.name
    with np.load(tmp_path / "clip.npz", allow_pickle=False) as arrays:
        keys = ["codes_upper", "codes_lower_trans", "fps", "code_rate_upper", "code_rate_lower_trans", "frames"]
        assert arrays.files == [*keys, "fingerprint_upper", "fingerprint_lower_trans", "source", "format", "version"]
        assert arrays["codes_upper"].dtype == arrays["codes_lower_trans"].dtype == np.int32


def test_each_reader_names_the_other_where_the_file_is_the_others(tmp_path):
    write_codes(tmp_path / "body.npz", BODY)
    write_codes(tmp_path / "one.npz", CODES)
    with pytest.raises(
        UserError, match=r"body\.npz: holds codes of a body's parts \(upper, lower_trans\); .*read_body_codes"
    ):
        read_codes(tmp_path / "body.npz")
    with pytest.raises(UserError, match=r"one\.npz: holds codes of a single tokenizer.*with read_codes"):
        read_body_codes(tmp_path / "one.npz")


BAD_BODIES = {
    "no codes of a part": ({"codes_upper": None}, "no key codes_upper"),
    "no fingerprint": ({"fingerprint_lower_trans": None}, "no key fingerprint_lower_trans"),
    "nothing of any part": (
        {f"{name}_{part}": None for name in ("codes", "code_rate", "fingerprint") for part in BODY},
        "no key codes",
    ),
    "half a part": ({"codes_arms": np.zeros((13, 6), int)}, "no key code_rate_arms"),
    "no part's name": ({"codes_../arms": np.zeros((13, 6), int)}, r"'\.\./arms' cannot be the name of a body part"),
    "floats": ({"codes_lower_trans": np.zeros((7, 4))}, "codes_lower_trans are float64"),
    "negative": ({"codes_lower_trans": np.full((7, 4), -2)}, "codes_lower_trans are -2 to -2"),
    "too few": ({"codes_lower_trans": np.zeros((6, 4), int)}, "6 codes_lower_trans of 8 frames each do not make 50"),
    "a rate of another part": ({"code_rate_lower_trans": np.array(7.5)}, "7 codes_lower_trans of 4 frames"),
    "no motion": ({"format": np.array("audio")}, "'audio', not one of beat2"),
    "objects": ({"codes_upper": np.array([[{}]], object)}, "never loaded"),
}


@pytest.mark.parametrize(("changes", "pattern"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_bad_files_of_a_body_are_refused_in_one_line(tmp_path, changes, pattern):
    with pytest.raises(UserError, match=pattern) as refusal:
        read_body_codes(written(tmp_path, BODY, **changes))
    assert str(refusal.value).startswith(str(tmp_path / "clip.npz")) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("codes", "pattern"),
    [
        ({}, r"named \[\]: these are not names"),
        ({"a/b": CODES}, r"named \['a/b'\]"),
        ({"": CODES, "upper": CODES}, r"named \['', 'upper'\]"),
        ({"upper": CODES, "lower": dataclasses.replace(CODES, frames=49)}, "frames is 50 and, for lower, 49"),
        ({"upper": dataclasses.replace(CODES, format="audio")}, "'audio', not one of beat2"),
    ],
)
def test_what_would_not_be_read_is_not_written(tmp_path, codes, pattern):
    with pytest.raises(ValueError, match=pattern):
        write_codes(tmp_path / "clip.npz", codes)
    assert not list(tmp_path.iterdir())


def test_files_made_to_do_harm_are_refused_before_memory_is_taken(tmp_path):
    with np.load(written(tmp_path)) as found:
        arrays = {key: npy(values) for key, values in found.items()}
    zeros = npy(np.zeros((2**20 * 17, 1), "<i4"))  # deflate makes 70 kilobytes of it
    hostile = {
        "a size": npy_of(header("(1000000000000, 6)", "'<i4'"), bytes(312)),
        "a size of text": npy_of(header("()", "'<U250000000000'"), bytes(312)),
        "nested": npy_of(b"(" * 9000 + b")" * 9000, bytes(312), length=9999),
        "signs": npy_of(header("(" + "-" * 9000 + "1,)"), bytes(312)),
        "zeros": zeros,
        "text": npy(np.array("a" * 300_000)),
    }
    tracemalloc.start()
    for key in arrays:
        for what, content in hostile.items():
            if what == "zeros" and key not in ("codes", "source"):
                continue
            (tmp_path / "clip.npz").write_bytes(npz({**arrays, key: content}, zipfile.ZIP_DEFLATED))
            tracemalloc.reset_peak()
            with pytest.raises(UserError, match=r"^[^\n]*clip\.npz: [^\n]+$"):
                read_codes(tmp_path / "clip.npz")
            assert tracemalloc.get_traced_memory()[1] < len(zeros) + 4 * 2**20, (key, what)
    tracemalloc.stop()
    with pytest.raises(UserError, match="not a file's path"):
        read_codes(written(tmp_path, source=np.array("/etc\0/passwd")))
