"""Decoding files: what is written, what is done already, and which codes are refused."""

import io
import json
import shutil
import struct
import zipfile

import numpy as np
import pytest

from ds_rvqvae import read_codes
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import content_of
from ds_rvqvae.motion.layout import feature_layout, select_columns, smplx_layout
from ds_rvqvae.tokenizer.codes import Codes, write_codes
from ds_rvqvae.tokenizer.decode import decode_files
from ds_rvqvae.tokenizer.encode import encode_files
from tests.cli.commands import files_below, make_tokenizer
from tests.data.formats.bvh_files import write_bvh_motion
from tests.data.motion import beat2_arrays, write_beat2
from tests.replacing import WAYS, replace_by, touch_all


@pytest.fixture
def tokenizer():
    return make_tokenizer(feature_layout(5))


def _codes(tokenizer, frames=21, levels=3, **changes):
    codes = np.random.default_rng(0).integers(0, 32, size=(-(-frames // 4), levels))
    known = {"fps": 30.0, "code_rate": 7.5, "frames": frames, "fingerprint": tokenizer.fingerprint}
    return Codes(codes, **{**known, **changes})


@pytest.fixture
def codes(tokenizer, tmp_path):
    write_codes(tmp_path / "codes" / "a.npz", _codes(tokenizer))
    return tmp_path / "codes"


def _reason(report):
    (left,) = report.failed
    return left.reason


def test_codes_of_columns_without_names_become_a_matrix(tokenizer, codes, tmp_path):
    report = decode_files(tokenizer, [codes], tmp_path / "out")
    assert [clip.notes for clip in report.done] == [()] and report.seconds == pytest.approx(21 / 30)
    motion = np.load(tmp_path / "out" / "a.npy")
    assert motion.dtype == np.float32 and motion.shape == (21, 5)
    np.testing.assert_array_equal(motion, tokenizer.decode(read_codes(codes / "a.npz").codes, 21))


def test_old_codes_of_a_matrix_say_what_brings_its_rate_back(tokenizer, codes, tmp_path):
    report = decode_files(tokenizer, [codes], tmp_path / "out", fps="source")
    advice = "does not say its source's frame rate: give --fps N, or encode it again with --overwrite"
    assert _reason(report) == advice
    np.save(tmp_path / "a.npy", np.zeros((21, 5), np.float32))
    encode_files(tokenizer, [tmp_path / "a.npy"], codes, overwrite=True)
    assert len(decode_files(tokenizer, [codes], tmp_path / "out", fps="source").done) == 1
    assert np.load(tmp_path / "out" / "a.npy").shape == (21, 5)


def test_fewer_levels_are_the_first_ones(tokenizer, codes, tmp_path):
    decode_files(tokenizer, [codes], tmp_path / "out", levels=2)
    expected = tokenizer.decode(read_codes(codes / "a.npz").codes[:, :2], 21)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "a.npy"), expected)
    write_codes(codes / "a.npz", _codes(tokenizer, levels=1))
    report = decode_files(tokenizer, [codes], tmp_path / "out", levels=2)
    assert _reason(report) == "holds 1 levels, --levels asks for 2"


def test_a_folder_notes_what_it_was_decoded_with_and_other_settings_decode_again(tokenizer, codes, tmp_path):
    out = tmp_path / "out"

    def again(**settings):
        report = decode_files(tokenizer, [codes], out, **settings)
        return len(report.done), len(report.skipped)

    assert [again(), again()] == [(1, 0), (0, 1)]
    entry = json.loads((out / ".decoded.jsonl").read_text().splitlines()[-1])
    assert entry["made"]["tokenizer"] == tokenizer.fingerprint and entry["made"]["levels"] is None
    assert entry["made"]["codes"] == content_of(codes / "a.npz") and entry["content"] == content_of(out / "a.npy")
    assert [again(levels=1), again(levels=1), again(), again(overwrite=True)] == [(1, 0), (0, 1), (1, 0), (1, 0)]
    (out / "a.npy").write_bytes((out / "a.npy").read_bytes()[:-8])
    assert [again(), again()] == [(1, 0), (0, 1)]
    assert files_below(out) == [".decoded.jsonl", "a.npy"]


def test_what_was_not_decoded_here_is_not_written_over(tokenizer, codes, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    np.save(out / "a.npy", np.ones(3))
    with pytest.raises(UserError, match=r"a\.npy: exists and was not decoded into this folder; --overwrite replaces"):
        decode_files(tokenizer, [codes], out)
    assert np.load(out / "a.npy").shape == (3,) and files_below(out) == ["a.npy"]
    assert len(decode_files(tokenizer, [codes], out, overwrite=True).done) == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"fingerprint": "0" * 64}, "codes of another tokenizer (000000000000, this one is"),
        ({"levels": 4}, "on 4 levels; this tokenizer has 32 codes on 3 levels"),
        (
            {"fps": 20.0, "code_rate": 5.0},
            "5 codes per second of motion at 20 fps; this tokenizer has 7.5",
        ),
    ],
)
def test_codes_that_do_not_fit_are_named(tokenizer, tmp_path, changes, complaint):
    write_codes(tmp_path / "codes" / "a.npz", _codes(tokenizer, **changes))
    report = decode_files(tokenizer, [tmp_path / "codes"], tmp_path / "out")
    assert complaint in _reason(report) and not (tmp_path / "out" / "a.npy").exists()


def test_a_code_that_the_tokenizer_does_not_have_is_refused_even_of_any_tokenizer(tokenizer, tmp_path):
    own = _codes(tokenizer, fingerprint="0" * 64)
    write_codes(tmp_path / "codes" / "a.npz", own)
    assert len(decode_files(tokenizer, [tmp_path / "codes"], tmp_path / "out", any_tokenizer=True).done) == 1
    own.codes[0, 0] = 32
    write_codes(tmp_path / "codes" / "a.npz", own)
    report = decode_files(tokenizer, [tmp_path / "codes"], tmp_path / "out", any_tokenizer=True)
    assert _reason(report) == "holds codes up to 32 on 3 levels; this tokenizer has 32 codes on 3 levels"


def test_a_body_part_comes_back_beside_what_its_source_has_or_at_rest_or_as_a_matrix(tmp_path):
    upper = make_tokenizer(select_columns(smplx_layout(), "upper")[1], "upper")
    source = write_beat2(tmp_path / "data" / "1_a.npz", 20)
    encode_files(upper, [source], tmp_path / "codes")
    decode_files(upper, [tmp_path / "codes"], tmp_path / "beside")
    np.testing.assert_array_equal(np.load(tmp_path / "beside" / "1_a.npz")["trans"], np.load(source)["trans"])
    decode_files(upper, [tmp_path / "codes"], tmp_path / "matrix", matrices=True)
    codes = read_codes(tmp_path / "codes" / "1_a.npz").codes
    np.testing.assert_array_equal(np.load(tmp_path / "matrix" / "1_a.npy"), upper.decode(codes, 20))
    source.rename(tmp_path / "elsewhere.npz")
    (clip,) = decode_files(upper, [tmp_path / "codes"], tmp_path / "rest").done
    assert not np.load(tmp_path / "rest" / "1_a.npz")["trans"].any() and "are at rest" in clip.notes[0]
    named = decode_files(upper, [tmp_path / "codes"], tmp_path / "named", source=tmp_path / "elsewhere.npz")
    assert named.done[0].notes == () and np.load(tmp_path / "named" / "1_a.npz")["trans"].any()


def test_a_source_that_is_not_there_or_is_one_file_for_several_is_refused(tokenizer, codes, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        decode_files(tokenizer, [codes], tmp_path / "out", source=tmp_path / "nowhere")
    write_codes(codes / "b.npz", _codes(tokenizer))
    with pytest.raises(UserError, match="one file for 2 clips; name a folder"):
        decode_files(tokenizer, [codes], tmp_path / "out", source=codes / "a.npz")


def _ends(report):
    return len(report.done), len(report.skipped), [left.reason for left in report.failed]


@pytest.mark.parametrize("way", WAYS)
def test_codes_that_are_replaced_are_decoded_again_however_that_was_done(tokenizer, codes, tmp_path, way):
    out = tmp_path / "out"
    shutil.copy(codes / "a.npz", codes / "b.npz")
    decode_files(tokenizer, [codes], out)
    other = _codes(tokenizer)
    other.codes[:] = (other.codes + 1) % 32
    write_codes(tmp_path / "other.npz", other)
    # Anything may follow a zip, and this one must keep its size.
    sizes = [(codes / "a.npz").stat().st_size, (tmp_path / "other.npz").stat().st_size]
    (codes / "a.npz").write_bytes(_padded(codes / "a.npz", max(sizes)))
    decode_files(tokenizer, [codes], out)
    replace_by(way, codes / "a.npz", _padded(tmp_path / "other.npz", max(sizes)))
    touch_all(codes)
    assert _ends(decode_files(tokenizer, [codes], out)) == (1, 1, [])
    np.testing.assert_array_equal(np.load(out / "a.npy"), tokenizer.decode(other.codes, 21))


def _padded(file, size):
    """A zip with a comment that gives it this size."""
    content = file.read_bytes()
    return content[:-2] + struct.pack("<H", size - len(content)) + b" " * (size - len(content))


@pytest.mark.parametrize("way", WAYS)
def test_a_source_that_is_replaced_is_taken_however_that_was_done(tmp_path, way):
    upper = make_tokenizer(select_columns(smplx_layout(), "upper")[1], "upper")
    source = write_beat2(tmp_path / "data" / "1_a.npz", 20)
    encode_files(upper, [source], tmp_path / "codes")
    assert _ends(decode_files(upper, [tmp_path / "codes"], tmp_path / "out")) == (1, 0, [])
    trans = np.load(source)["trans"] + 1
    replace_by(way, source, write_beat2(tmp_path / "other.npz", 20, trans=trans).read_bytes())
    report = decode_files(upper, [tmp_path / "codes"], tmp_path / "out")
    assert _ends(report) == (1, 0, [])
    assert "its codes do not match the columns from the source; encode it again" in report.done[0].notes[-1]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "1_a.npz")["trans"], trans)
    assert _ends(decode_files(upper, [tmp_path / "codes"], tmp_path / "out")) == (0, 1, [])
    # Without a source it would hold less.
    source.unlink()
    assert _ends(decode_files(upper, [tmp_path / "codes"], tmp_path / "out")) == (0, 1, [])


def test_what_was_changed_since_it_was_decoded_is_not_written_over(tokenizer, codes, tmp_path):
    out = tmp_path / "out"
    decode_files(tokenizer, [codes], out)
    np.save(out / "a.npy", np.load(out / "a.npy") * 2)
    assert _ends(decode_files(tokenizer, [codes], out))[2] == [
        f"{out / 'a.npy'} was changed after it was decoded; --overwrite replaces it"
    ]
    write_codes(codes / "b.npz", _codes(tokenizer))
    np.save(out / "b.npy", np.ones(3))
    assert _reason(decode_files(tokenizer, [codes / "b.npz"], out)).startswith(f"{out / 'b.npy'}: exists and was not")
    assert _ends(decode_files(tokenizer, [codes], out, overwrite=True)) == (2, 0, [])
    assert _ends(decode_files(tokenizer, [codes], out)) == (0, 2, [])


def test_a_killed_decoding_is_gone_on_from(tokenizer, codes, tmp_path):
    out = tmp_path / "out"
    write_codes(codes / "b.npz", _codes(tokenizer))
    decode_files(tokenizer, [codes], out)
    record = out / ".decoded.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    begun = [line for line in lines if b"content" not in line]
    assert len(begun) == 2 and len(lines) == 4
    record.write_bytes(b"".join(begun) + lines[-1][:30])
    assert _ends(decode_files(tokenizer, [codes], out)) == (2, 0, [])
    record.write_bytes(b"\xff\x00{}\n[]\n{}\n" + record.read_bytes())
    assert _ends(decode_files(tokenizer, [codes], out)) == (0, 2, [])


def test_a_folder_that_an_earlier_version_decoded_into_is_decoded_again_and_that_is_said(tokenizer, codes, tmp_path):
    out = tmp_path / "out"
    decode_files(tokenizer, [codes], out)
    (out / ".decoded.jsonl").unlink()
    (out / ".decoded.json").write_text(json.dumps({"fingerprint": tokenizer.fingerprint, "levels": None}))
    report = decode_files(tokenizer, [codes], out)
    assert _ends(report) == (1, 0, []) and "an older version did not record its inputs" in report.text()
    assert files_below(out) == [".decoded.jsonl", "a.npy"]
    assert _ends(decode_files(tokenizer, [codes], out)) == (0, 1, [])


DAMAGES = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "NULs at its end": lambda whole: whole + bytes(4096),
    "NULs": lambda whole: bytes(len(whole)),
    "random bytes at its end": lambda whole: whole + np.random.default_rng(0).bytes(999),
    **{f"bit {share}": lambda whole, share=share: flipped(whole, share) for share in (0.01, 0.3, 0.5, 0.7, 0.97)},
}


def flipped(whole, share):
    at = int(len(whole) * share)
    return whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]


@pytest.mark.parametrize("kind", ["npy", "npz", "bvh"])
def test_what_was_decoded_and_is_damaged_is_made_again_or_refused(tokenizer, tmp_path, kind):
    codes, out = tmp_path / "codes", tmp_path / "out"
    if kind == "npy":
        write_codes(codes / "a.npz", _codes(tokenizer))
    else:
        source = write_beat2(tmp_path / "a.npz", 21) if kind == "npz" else write_bvh_motion(tmp_path / "a.bvh", 21)
        layout = smplx_layout() if kind == "npz" else open_reader(source, DataConfig()).read("a").layout
        tokenizer = make_tokenizer(layout)
        encode_files(tokenizer, [source], codes)
    assert len(decode_files(tokenizer, [codes], out).done) == 1
    for file in (out / f"a.{kind}", out / ".decoded.jsonl"):
        whole = {name: (out / name).read_bytes() for name in (f"a.{kind}", ".decoded.jsonl")}
        for damage, change in DAMAGES.items():
            for name, content in whole.items():
                (out / name).write_bytes(content)
            file.write_bytes(change(whole[file.name]))
            left = {path: path.read_bytes() for path in out.iterdir()}
            report = decode_files(tokenizer, [codes], out)
            if report.failed:
                assert "--overwrite replaces it" in _reason(report) and str(file.parent / f"a.{kind}") in _reason(
                    report
                )
                assert (out / f"a.{kind}").read_bytes() == left[out / f"a.{kind}"]
                report = decode_files(tokenizer, [codes], out, overwrite=True)
            assert (out / f"a.{kind}").read_bytes() == whole[f"a.{kind}"], damage
            assert file.name == ".decoded.jsonl" or len(report.done) == 1, damage
            assert len(decode_files(tokenizer, [codes], out).skipped) == 1


SECRET = "hunter2"
BVH_TEXT = (
    "HIERARCHY\nROOT Hips\n{\nOFFSET 0 0 0\nCHANNELS 3 Zrotation Xrotation Yrotation\nEnd Site\n{\nOFFSET 0 1 0\n}\n}\n"
    "MOTION\nFrames: 21\nFrame Time: 0.0333\n" + "1 2 3\n" * 21
)


def _secrets():
    """Files with a secret; a reader refuses each at another place."""
    yield "passwd", f"{SECRET}:x:0:0:root:/root:/bin/sh\n".encode()
    words = ["HIERARCHY", "ROOT", "Hips", "{", "OFFSET", "0", "CHANNELS", "3", "Zrotation", "End", "}", "MOTION"]
    for word in [*words, "Frames:", "21", "Time:", "0.0333", "1 2 3"]:
        for new in (SECRET, f"{word} {SECRET}", f"{SECRET}\n{word}"):
            yield f"{word} {new!r}", BVH_TEXT.replace(word, new, 1).encode()
    yield "name", BVH_TEXT.replace("Hips", SECRET).replace("Yrotation", "Xrotation").encode()
    yield "open", BVH_TEXT.replace("Hips", SECRET).replace("}", "").encode()
    yield "nan", BVH_TEXT.replace("Hips", SECRET).replace("1 2 3", "1 x 3").encode()
    arrays = beat2_arrays(21)
    for key in arrays:
        yield f"without {key}", _npz({name: values for name, values in arrays.items() if name != key} | {SECRET: 1})
        yield f"{key} as text", _npz(arrays | {key: np.array(SECRET)})
        yield f"{key} as a field", _npz(arrays | {key: np.zeros(21, [(SECRET, "f4")])})
    whole = _npz(arrays | {SECRET: np.arange(9)})
    for share in np.linspace(0.01, 0.99, 40):
        yield f"bit at {share}", flipped(whole, share)
        yield f"cut at {share}", whole[: int(len(whole) * share)]
    header = f"{{'descr': '<f4', 'fortran_order': False, '{SECRET}': (1,), 'shape': (3,), }}".encode()
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    for name in ("poses.npy", f"{SECRET}.npy"):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(name, npy)
            archive.writestr("x.npy", SECRET)
        yield f"header of {name}", content.getvalue()
    yield "a single array", npy
    objects = io.BytesIO()
    np.savez(objects, **arrays, **{SECRET: np.array([{}])})
    yield "objects", objects.getvalue()


def _npz(arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def test_nothing_of_a_file_that_codes_name_as_their_source_is_quoted(tokenizer, tmp_path):
    whats, sources, codes = {}, tmp_path / "sources", tmp_path / "codes"
    sources.mkdir()
    for number, (what, content) in enumerate(_secrets()):
        for kind in ("bvh", "beat2"):
            name = f"{kind}{number}"
            (sources / name).write_bytes(content)
            whats[str(codes / f"{name}.npz")] = what
            write_codes(codes / f"{name}.npz", _codes(tokenizer, source=str(sources / name), format=kind))
    report = decode_files(tokenizer, [codes], tmp_path / "out")
    assert {left.file for left in report.failed} == whats.keys() and not report.done
    assert SECRET not in json.dumps(report.to_dict()) + report.text()
    for left in report.failed:
        assert left.reason.startswith(f"source {sources}/") and "Error" not in left.reason, whats[left.file]
    named = decode_files(tokenizer, [codes], tmp_path / "out", source=sources)
    assert sum(SECRET in left.reason for left in named.failed) > 50


def test_a_source_that_codes_name_is_no_larger_than_motion_can_be(tokenizer, tmp_path):
    source = tmp_path / "large.bvh"
    with source.open("wb") as content:
        content.truncate(2**40)
    write_codes(tmp_path / "codes" / "a.npz", _codes(tokenizer, source=str(source), format="bvh"))
    report = decode_files(tokenizer, [tmp_path / "codes"], tmp_path / "out")
    assert "large.bvh" in _reason(report) and "more than any motion file" in _reason(report)
