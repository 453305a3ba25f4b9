"""`ds-rvqvae encode` and `decode` with the tokenizers of several body parts."""

import dataclasses
import json

import numpy as np
import pytest

from ds_rvqvae import BodyTokenizer, read_body_codes, read_codes
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.writing import open_motion_file
from ds_rvqvae.motion.layout import Channels, layout_to_json
from ds_rvqvae.tokenizer.codes import write_codes
from tests.cli.commands import counts, files_below, run
from tests.data.motion import write_beat2, write_beat2_folder, write_packed


def test_a_body_goes_through_codes_and_back(tmp_path, body, capsys):
    data, codes, motion = tmp_path / "BEAT2", tmp_path / "codes", tmp_path / "motion"
    write_beat2_folder(data / "smplxflame_30", ("1_a", "2_b"), 61)
    encode = ("encode", body, data, "--out", codes)
    decode = ("decode", body, codes, "--out", motion)
    for command in (encode, decode):
        assert counts(capsys, *command) == (0, 2, 0, 0)
        assert counts(capsys, *command) == (0, 0, 2, 0)
        assert counts(capsys, *command, "--levels", 1) == (0, 2, 0, 0)
        assert counts(capsys, *command) == (0, 2, 0, 0)
    source = data / "smplxflame_30" / "2_b.npz"
    tokenizer = BodyTokenizer.from_pretrained(body)
    found = read_body_codes(codes / "smplxflame_30" / "2_b.npz")
    for part, expected in tokenizer.encode_file(source).items():
        np.testing.assert_array_equal(found[part].codes, expected)
        assert (found[part].fps, found[part].code_rate) == (30.0, tokenizer.code_rates[part])
        assert found[part].fingerprint == tokenizer.parts[part].fingerprint
        assert (found[part].source, found[part].format, found[part].frames) == (str(source), "beat2", 61)
    assert (found["upper"].codes.shape, found["lower_trans"].codes.shape) == ((16, 3), (8, 2))
    tokenizer.decode_to_file({part: own.codes for part, own in found.items()}, tmp_path / "direct.npz", source=source)
    decoded = motion / "smplxflame_30" / "2_b.npz"
    assert decoded.read_bytes() == (tmp_path / "direct.npz").read_bytes()
    there, back = np.load(source), np.load(decoded)
    assert back.files == there.files
    assert all(back[key].shape == there[key].shape and back[key].dtype == there[key].dtype for key in there.files)
    assert (back["poses"][:, 75:] == there["poses"][:, 75:]).all() and (back["trans"] != there["trans"]).any()


def test_a_part_of_a_body_gives_the_codes_and_motion_that_it_gives_by_itself(tmp_path, body, upper, capsys):
    write_beat2(tmp_path / "1_a.npz", 50)
    for name, tokenizer in (("body", body), ("upper", upper)):
        run(capsys, "encode", tokenizer, tmp_path / "1_a.npz", "--out", tmp_path / name / "codes")
        run(capsys, "decode", tokenizer, tmp_path / name / "codes", "--out", tmp_path / name / "motion")
    alone = read_codes(tmp_path / "upper" / "codes" / "1_a.npz")
    np.testing.assert_array_equal(read_body_codes(tmp_path / "body" / "codes" / "1_a.npz")["upper"].codes, alone.codes)
    both = [np.load(tmp_path / name / "motion" / "1_a.npz")["poses"].reshape(50, 55, 3) for name in ("body", "upper")]
    joints = [3, 6, 9, *range(12, 22)]
    np.testing.assert_array_equal(both[0][:, joints], both[1][:, joints])


def test_codes_of_some_parts_say_as_much_as_they_cover(tmp_path, body, capsys):
    write_beat2(tmp_path / "1_a.npz", 20)
    run(capsys, "encode", body, tmp_path / "1_a.npz", "--out", tmp_path / "codes")
    codes = read_body_codes(tmp_path / "codes" / "1_a.npz")
    write_codes(tmp_path / "upper" / "1_a.npz", {"upper": codes["upper"]})
    assert run(capsys, "decode", body, tmp_path / "upper", "--out", tmp_path / "motion")[0] == 0
    found, there = (np.load(folder / "1_a.npz") for folder in (tmp_path / "motion", tmp_path))
    assert (found["trans"] == there["trans"]).all() and (found["poses"][:, :9] == there["poses"][:, :9]).all()
    assert (found["poses"][:, 9:12] != there["poses"][:, 9:12]).any()


def test_a_body_takes_its_columns_by_name_wherever_they_stand(tmp_path, body, capsys):
    data, motion = tmp_path / "data", tmp_path / "motion"
    write_beat2(data / "1_a.npz", 20)
    clip = open_motion_file(data / "1_a.npz", DataConfig()).read("1_a")
    # The same channels in another order, and one of no part.
    channels = [Channels("tail", "feature", 0, 2), *reversed(clip.layout)]
    columns = np.concatenate([np.arange(own.start, own.stop) for own in channels[1:]])
    starts = np.cumsum([0, *(own.width for own in channels)]).tolist()
    layout = [
        Channels(own.name, own.kind, start, start + own.width) for own, start in zip(channels, starts, strict=False)
    ]
    turned = np.concatenate([np.zeros((20, 2), np.float32), clip.motion[:, columns]], axis=1)
    write_packed(data / "task.npz", (20,), motion=turned, layout=np.array(json.dumps(layout_to_json(layout))))
    np.save(data / "m.npy", clip.motion)
    np.save(data / "five.npy", np.ones((20, 5)))
    status, result, _ = run(capsys, "encode", body, data, "--out", tmp_path / "codes")
    assert status == 1 and files_below(tmp_path / "codes") == ["1_a.npz", "m.npz", "task/clip0.npz"]
    assert [failed["reason"] for failed in result["failed"]] == ["5 columns, this tokenizer takes 433"]
    found = [read_body_codes(tmp_path / "codes" / name) for name in ("1_a.npz", "m.npz", "task/clip0.npz")]
    assert [codes["upper"].format for codes in found] == ["beat2", "features", "packed"]
    for codes in found[1:]:
        for part in ("upper", "lower_trans"):
            np.testing.assert_array_equal(codes[part].codes, found[0][part].codes)
    # Motion that is not from a BEAT2 file comes back as all columns of the body.
    status, result, _ = run(capsys, "decode", body, tmp_path / "codes", "--out", motion)
    assert status == 0 and files_below(motion)[1:] == ["1_a.npz", "m.npy", "task/clip0.npy"]
    assert [clip["notes"] for clip in result["done"]].count(["columns of no part that has codes are at rest"]) == 2
    matrix = np.load(motion / "m.npy")
    decoded = BodyTokenizer.from_pretrained(body).decode({part: own.codes for part, own in found[1].items()}, 20)
    np.testing.assert_array_equal(matrix, decoded)


def test_codes_that_are_not_of_this_body_fail(tmp_path, body, upper, capsys):
    write_beat2(tmp_path / "1_a.npz", 20)
    codes = tmp_path / "codes"
    run(capsys, "encode", body, tmp_path / "1_a.npz", "--out", codes)
    run(capsys, "encode", upper, tmp_path / "1_a.npz", "--out", tmp_path / "single")
    parts = read_body_codes(codes / "1_a.npz")
    upper_codes, lower_codes = parts["upper"], parts["lower_trans"]
    (tmp_path / "single" / "1_a.npz").rename(codes / "single.npz")
    big = dataclasses.replace(lower_codes, codes=lower_codes.codes + 32)
    foreign = dataclasses.replace(lower_codes, fingerprint="00" * 32)
    write_codes(codes / "face.npz", {**parts, "face": upper_codes})
    write_codes(codes / "big.npz", {**parts, "lower_trans": big})
    write_codes(codes / "foreign.npz", {**parts, "lower_trans": foreign})
    write_codes(codes / "swapped.npz", {"lower_trans": upper_codes})
    expected = {
        "single.npz": "codes of a single tokenizer, and this is a body's tokenizer (upper, lower_trans)",
        "face.npz": "codes of a body's tokenizer (upper, lower_trans, face), and this is a body's tokenizer (upper, ",
        "big.npz": "lower_trans: codes up to ",
        "foreign.npz": "lower_trans: codes of another tokenizer (000000000000, this one is ",
        "swapped.npz": "lower_trans: codes of another tokenizer",
    }
    status, result, _ = run(capsys, "decode", body, codes, "--out", tmp_path / "motion")
    assert status == 1 and files_below(tmp_path / "motion") == [".decoded.jsonl", "1_a.npz"]
    reasons = {failed["file"].removeprefix(f"{codes}/"): failed["reason"] for failed in result["failed"]}
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reasons[name].startswith(reason)
    decode = ("decode", body, codes / "foreign.npz", "--out", tmp_path / "any", "--any_tokenizer")
    assert run(capsys, *decode)[0] == 0
    status, result, _ = run(capsys, "decode", upper, codes / "1_a.npz", "--out", tmp_path / "other")
    reason = "codes of a body's tokenizer (upper, lower_trans), and this is a single tokenizer"
    assert status == 1 and result["failed"][0]["reason"].startswith(reason)


def test_refusals_of_a_body(tmp_path, body, capsys):
    write_beat2(tmp_path / "1_a.npz", 20)
    rest = (tmp_path / "1_a.npz", "--out", tmp_path / "codes")
    refusals = {
        "--levels 3: lower_trans has levels 1 to 2": ("encode", body, *rest, "--levels", 3),
        "has no such part": ("encode", body / "face", *rest),
    }
    for words, arguments in refusals.items():
        status, _, errors = run(capsys, *arguments)
        assert status == 2 and len(errors) == 1 and words in errors[0]
    assert not (tmp_path / "codes").exists()


@pytest.mark.real_data
def test_the_whole_real_clip_through_a_body(tmp_path, real_data, body, capsys):
    source = next((real_data / "beat2").glob("*.npz"))
    assert run(capsys, "encode", body, source, "--out", tmp_path / "codes")[0] == 0
    assert run(capsys, "decode", body, tmp_path / "codes", "--out", tmp_path / "motion")[0] == 0
    codes = read_body_codes(tmp_path / "codes" / source.name)
    assert {part: own.codes.shape for part, own in codes.items()} == {"upper": (477, 3), "lower_trans": (239, 2)}
    decoded = {part: own.codes for part, own in codes.items()}
    BodyTokenizer.from_pretrained(body).decode_to_file(decoded, tmp_path / "direct.npz", source=source)
    assert (tmp_path / "motion" / source.name).read_bytes() == (tmp_path / "direct.npz").read_bytes()
