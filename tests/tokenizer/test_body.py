"""A body's tokenizer: the codes of its parts, and the full body joined again."""

import json

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, BodyTokenizer, MotionTokenizer
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.data.formats.smpl.beat2 import CLIP_FOLDER, Beat2Reader
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import Channels, rotation_columns, select_columns, smplx_layout, take_channels
from tests.data.motion import write_packed

WIDTH = 433
STRIDES = {"upper": 2, "lower_trans": 3}
"""down_t: 4 frames per code of the upper body, 8 per code of the lower."""


def make_part(part, down_t=2, fps=30.0, seed=0):
    torch.manual_seed(seed)
    columns, layout = select_columns(smplx_layout(), part)
    config = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=3, down_t=down_t)
    width = len(columns)
    statistics = torch.randn(width), torch.rand(width) + 0.5
    return MotionTokenizer(RVQVAE(width, config), *statistics, layout, fps, {"body_part": part})


@pytest.fixture(scope="module")
def body():
    return BodyTokenizer({part: make_part(part, down_t) for part, down_t in STRIDES.items()})


@pytest.fixture(scope="module")
def motion():
    return np.random.default_rng(0).normal(size=(42, WIDTH)).astype(np.float32)


def columns_of(part):
    return select_columns(smplx_layout(), part)[0]


def covered():
    return np.concatenate([columns_of(part) for part in STRIDES])


def test_every_part_gets_its_columns_and_gives_its_own_number_of_codes(body, motion):
    codes = body.encode(motion)
    assert {part: found.shape for part, found in codes.items()} == {"upper": (11, 3), "lower_trans": (6, 3)}
    assert body.fps == 30.0 and body.code_rates == {"upper": 7.5, "lower_trans": 3.75}
    for part, tokenizer in body.parts.items():
        np.testing.assert_array_equal(codes[part], tokenizer.encode(motion[:, columns_of(part)]))


def test_decoded_parts_go_back_to_their_columns_and_the_rest_comes_from_the_source(body, motion):
    codes = body.encode(motion)
    found = body.decode(codes, source=motion)
    assert isinstance(found, np.ndarray) and found.shape == motion.shape and found.dtype == np.float32
    for part, tokenizer in body.parts.items():
        np.testing.assert_array_equal(found[:, columns_of(part)], tokenizer.decode(codes[part], 42))
    rest = np.setdiff1d(np.arange(WIDTH), covered())
    np.testing.assert_array_equal(found[:, rest], motion[:, rest])


def test_without_a_source_the_rest_is_at_rest_and_as_long_as_all_codes_reach(body, motion):
    found = body.decode(body.encode(motion))
    assert found.shape == (44, WIDTH)  # 11 codes of 4 frames; 6 of 8 would reach 48
    joints = [channels for channels in smplx_layout() if channels.name in ("jaw", "left_thumb3")]
    for joint in joints:
        np.testing.assert_array_equal(found[:, joint.start : joint.stop], np.tile([1, 0, 0, 0, 1, 0], (44, 1)))
    assert not found[:, -100:].any()


def test_a_part_without_codes_is_not_covered_and_fewer_levels_decode(body, motion):
    codes = body.encode(motion)["upper"][:, :1]
    found = body.decode({"upper": codes}, source=motion)
    np.testing.assert_array_equal(found[:, columns_of("lower_trans")], motion[:, columns_of("lower_trans")])
    assert not np.array_equal(found[:, columns_of("upper")], motion[:, columns_of("upper")])


def test_a_padded_batch_of_tensors_equals_its_clips(body, motion):
    batch = torch.from_numpy(np.stack([motion, np.roll(motion, 5, axis=0)]))
    lengths = [42, 17]
    codes = body.encode(batch, lengths)
    found = body.decode(codes, lengths, source=batch)
    assert isinstance(found, torch.Tensor) and found.shape == (2, 42, WIDTH)
    for clip, count, decoded in zip(batch, lengths, found, strict=True):
        alone = body.encode(clip[:count])
        torch.testing.assert_close(decoded[:count], body.decode(alone, source=clip[:count]), atol=1e-5, rtol=0)
        assert not decoded[count:].any()


def test_the_lengths_of_a_batch_are_those_of_its_source(body, motion):
    batch = np.stack([motion, motion])
    assert body.decode(body.encode(batch), source=batch).shape == batch.shape


def test_what_does_not_fit_is_refused(body, motion):
    codes = body.encode(motion)
    with pytest.raises(ValueError, match="433"):
        body.encode(motion[:, :78])
    with pytest.raises(ValueError, match=r"not of one clip.*upper 28, lower_trans 48"):
        body.decode({**codes, "upper": codes["upper"][:7]})
    with pytest.raises(ValueError, match=r"codes of hands; this tokenizer has upper, lower_trans"):
        body.decode({"hands": codes["upper"]})
    with pytest.raises(ValueError, match="no part"):
        body.decode({})
    with pytest.raises(ValueError, match="source is"):
        body.decode(codes, 42, source=motion[:40])
    with pytest.raises(ValueError, match="lengths are from 1 to 44"):
        body.decode(codes, source=np.concatenate([motion, motion]))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "needs at least one part"),
        ({"upper": "upper", "whole": "whole"}, "whole and upper both have spine1"),
        ({"upper": "hands"}, "the tokenizer given for upper was trained on body part hands"),
        ({"../upper": "upper"}, "'../upper' is not the name of a body part"),
    ],
)
def test_parts_that_make_no_body_are_refused(parts, words):
    with pytest.raises(UserError, match=words):
        BodyTokenizer({name: make_part(part) for name, part in parts.items()})


def test_all_parts_take_one_frame_rate():
    with pytest.raises(UserError, match="upper 30, hands 20"):
        BodyTokenizer({"upper": make_part("upper"), "hands": make_part("hands", fps=20.0)})


def test_saved_and_loaded_it_is_the_same(body, motion, tmp_path):
    body.save_pretrained(tmp_path / "body")
    body.save_pretrained(tmp_path / "body")
    assert sorted(path.name for path in (tmp_path / "body").iterdir()) == ["body.json", "lower_trans", "upper"]
    assert [path.name for path in tmp_path.iterdir()] == ["body"]
    loaded = BodyTokenizer.from_pretrained(tmp_path / "body")
    assert list(loaded.parts) == ["upper", "lower_trans"]
    np.testing.assert_array_equal(loaded.decode(loaded.encode(motion)), body.decode(body.encode(motion)))
    bf16 = BodyTokenizer.from_pretrained(tmp_path / "body", dtype=torch.bfloat16)
    assert bf16.parts["upper"].model.encoder[0].weight.dtype == torch.bfloat16


def test_a_folder_of_something_else_is_not_replaced(body, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="not a tokenizer of ours"):
        body.save_pretrained(tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years"


def test_the_fingerprint_is_that_of_all_parts_in_any_order(body, tmp_path):
    turned = BodyTokenizer(dict(reversed(body.parts.items())))
    assert turned.fingerprint == body.fingerprint and len(body.fingerprint) == 64
    others = [{**body.parts, "upper": make_part("upper", seed=1)}, {"upper": body.parts["upper"]}]
    assert len({body.fingerprint, *(BodyTokenizer(parts).fingerprint for parts in others)}) == 3
    body.save_pretrained(tmp_path / "body")
    assert BodyTokenizer.from_pretrained(tmp_path / "body").fingerprint == body.fingerprint


OWN = (
    Channels("Hips", "rotation_6d", 0, 6),
    Channels("Arm", "rotation_6d", 6, 12),
    Channels("root", "position", 12, 15),
)


def own_part(names, part):
    layout = take_channels(OWN, names)[1]
    width = layout[-1].stop
    config = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=3)
    return MotionTokenizer(
        RVQVAE(width, config), torch.zeros(width), torch.ones(width), layout, 30.0, {"body_part": part}
    )


def test_a_body_of_own_parts_has_the_layout_of_its_motion(tmp_path):
    parts = {"limbs": own_part(["Arm"], "limbs"), "way": own_part(["root"], "way")}
    together = BodyTokenizer(parts)
    assert together.layout == (Channels("Arm", "rotation_6d", 0, 6), Channels("root", "position", 6, 9))
    body = BodyTokenizer(parts, OWN)
    motion = np.random.default_rng(0).normal(size=(20, 15)).astype(np.float32)
    codes = body.encode(motion)
    for part, found in together.encode(motion[:, 6:]).items():
        np.testing.assert_array_equal(found, codes[part])
    decoded = body.decode(codes)
    np.testing.assert_array_equal(decoded[:, :6], np.tile([1, 0, 0, 0, 1, 0], (20, 1)))
    np.testing.assert_array_equal(decoded[:, 6:], together.decode(codes))
    body.save_pretrained(tmp_path / "body")
    loaded = BodyTokenizer.from_pretrained(tmp_path / "body")
    assert loaded.layout == OWN and loaded.fingerprint == together.fingerprint
    np.testing.assert_array_equal(loaded.decode(codes), decoded)
    with pytest.raises(UserError, match="limbs takes Arm, which is not in the layout"):
        BodyTokenizer(parts, OWN[:1])


def test_a_folder_of_before_there_were_own_parts_loads(body, motion, tmp_path):
    body.save_pretrained(tmp_path / "body")
    values = json.loads((tmp_path / "body" / "body.json").read_text())
    del values["layout"]
    (tmp_path / "body" / "body.json").write_text(json.dumps(values))
    loaded = BodyTokenizer.from_pretrained(tmp_path / "body")
    assert loaded.layout == smplx_layout()
    np.testing.assert_array_equal(loaded.encode(motion)["upper"], body.encode(motion)["upper"])


def _describe(folder, **changes):
    values = json.loads((folder / "body.json").read_text())
    (folder / "body.json").write_text(json.dumps(values | changes))


DAMAGE = {
    "no body.json": (lambda folder: (folder / "body.json").unlink(), "body.json is missing"),
    "no JSON": (lambda folder: (folder / "body.json").write_text("{"), "body.json: not the file of a body's tokenizer"),
    "a list": (lambda folder: (folder / "body.json").write_text("[]"), "body.json: not the file of a body's tokenizer"),
    "another format": (
        lambda folder: _describe(folder, format_version=9),
        "format_version is 9; this release reads",
    ),
    "a layout that is none": (
        lambda folder: _describe(folder, layout=[1]),
        "body.json: not the file of a body's tokenizer",
    ),
    "a layout of other columns": (
        lambda folder: _describe(folder, layout=[{"name": "tail", "kind": "feature", "columns": [0, 2]}]),
        "which is not in the layout of the body",
    ),
    "no parts": (lambda folder: _describe(folder, parts=[]), r"parts are \[\]"),
    "a way out": (lambda folder: _describe(folder, parts=["../upper"]), r"parts are \[\"../upper\"\]"),
    "parts of parts": (lambda folder: _describe(folder, parts=[["upper"]]), "parts are"),
    "a part that is not there": (lambda folder: _describe(folder, parts=["hands"]), "hands.*config.json is missing"),
    "a damaged part": (lambda folder: (folder / "upper" / "model.safetensors").write_bytes(b"x"), "model.safetensors"),
    "a part under another's name": (
        lambda folder: [(folder / "upper").rename(folder / "hands"), _describe(folder, parts=["hands"])],
        "hands was trained on body part upper",
    ),
}


@pytest.mark.parametrize(("damage", "pattern"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folders_are_refused_in_one_line(body, tmp_path, damage, pattern):
    body.save_pretrained(tmp_path / "body")
    damage(tmp_path / "body")
    with pytest.raises(UserError, match=pattern) as refusal:
        BodyTokenizer.from_pretrained(tmp_path / "body")
    assert "\n" not in str(refusal.value) and str(tmp_path / "body") in str(refusal.value)


def test_the_folder_of_one_part_is_told_apart(body, tmp_path):
    body.parts["upper"].save_pretrained(tmp_path / "upper")
    with pytest.raises(UserError, match="MotionTokenizer loads"):
        BodyTokenizer.from_pretrained(tmp_path / "upper")


@pytest.fixture(scope="module")
def beat2_file(demo_folder):
    return sorted((demo_folder / CLIP_FOLDER).iterdir())[0]


def test_a_file_goes_through_codes_and_back(body, beat2_file, tmp_path):
    codes = body.encode_file(beat2_file)
    body.decode_to_file(codes, tmp_path / "decoded.npz", source=beat2_file)
    before, after = (np.load(file, allow_pickle=False) for file in (beat2_file, tmp_path / "decoded.npz"))
    assert after.files == before.files
    for key in before.files:
        assert (after[key].shape, after[key].dtype) == (before[key].shape, before[key].dtype)
    fingers = slice(3 * 25, None)
    np.testing.assert_array_equal(after["poses"][:, fingers], before["poses"][:, fingers])
    (truth,) = Beat2Reader(beat2_file, DataConfig()).clips()
    (found,) = Beat2Reader(tmp_path / "decoded.npz", DataConfig()).clips()
    decoded = body.decode(codes, source=truth.motion)
    hips = rotation_columns(smplx_layout())[1:3].reshape(-1)
    # Decoded columns are not a rotation matrix before Gram-Schmidt; applying it twice changes nothing.
    body.decode_to_file(codes, tmp_path / "again.npz", source=tmp_path / "decoded.npz")
    np.testing.assert_allclose(np.load(tmp_path / "again.npz")["poses"], after["poses"], atol=1e-6)
    first = decoded[:, hips[:3]] / np.linalg.norm(decoded[:, hips[:3]], axis=1, keepdims=True)
    np.testing.assert_allclose(found.motion[:, hips[:3]], first, atol=1e-5)


def test_without_a_source_a_file_is_at_rest_where_nothing_is_covered(body, beat2_file, tmp_path):
    body.decode_to_file(body.encode_file(beat2_file), tmp_path / "decoded.npz")
    found = np.load(tmp_path / "decoded.npz", allow_pickle=False)
    assert found["poses"].shape == (160, 165) and not found["poses"][:, 3 * 25 :].any()
    assert found["mocap_frame_rate"] == 30


def test_paths_are_refused_in_words_that_name_what_takes_them(body):
    with pytest.raises(TypeError, match=r"is a path.*encode_file\(path\) encodes a file"):
        body.encode("walk.npz")
    with pytest.raises(TypeError, match=r"codes are 'codes.npz'.*read_body_codes\(path\)"):
        body.decode("codes.npz")


def test_a_padded_batch_without_lengths_is_refused(body, motion):
    codes = body.encode(np.stack([motion, motion]), [42, 17])
    for source in (None, np.stack([motion, motion])):
        with pytest.raises(ValueError, match=r"row 5 of clip 1 is -1 on all levels.*give lengths"):
            body.decode(codes, source=source)


def test_files_that_are_no_clip_are_named(body, demo_folder, tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK")
    np.savez(tmp_path / "other.npz", song=np.zeros(3))
    np.save(tmp_path / "matrix.npy", np.zeros((40, 78), np.float32))
    write_packed(tmp_path / "several.npz", (40, 30))
    for name in ("torn.npz", "other.npz", "matrix.npy", "several.npz", "missing.npz"):
        with pytest.raises(UserError, match=name) as refusal:
            body.encode_file(tmp_path / name)
        assert "\n" not in str(refusal.value)
    codes = body.encode_file(sorted((demo_folder / CLIP_FOLDER).iterdir())[0])
    with pytest.raises(UserError, match=r"torn\.npz"):
        body.decode_to_file(codes, tmp_path / "out.npz", source=tmp_path / "torn.npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.real_data
def test_the_real_clip_comes_back_whole(body, real_data):
    (file,) = (real_data / "beat2").glob("*.npz")
    (clip,) = Beat2Reader(file, DataConfig()).clips()
    codes = body.encode_file(file)
    assert {part: len(found) for part, found in codes.items()} == {"upper": 477, "lower_trans": 239}
    assert body.decode(codes, source=clip.motion).shape == (1906, WIDTH)


def test_in_a_second_stage_its_parts_stay_what_they_are(motion, tmp_path):
    body = BodyTokenizer({part: make_part(part, down_t) for part, down_t in STRIDES.items()})
    body.save_pretrained(tmp_path / "body")
    codes, fingerprint = body.encode(motion), body.fingerprint
    expected = body.decode(codes, source=motion)
    stage = torch.nn.ModuleDict({"body": body, "head": torch.nn.Linear(2, 2)})
    assert len([*stage.parameters()]) == 2 and len([*body.parameters()]) > 20 and not [*stage.buffers()]
    stage.half().train().requires_grad_(True).apply(
        lambda module: [parameter.data.zero_() for parameter in module.parameters(recurse=False)]
    )
    stage.load_state_dict(stage.state_dict())
    backwards = np.ascontiguousarray(motion[::-1])[::-1]
    for around in (torch.autocast("cpu", torch.bfloat16), torch.device("meta"), torch.inference_mode()):
        with around:
            found, loaded = body.encode(backwards), BodyTokenizer.from_pretrained(tmp_path / "body")
            decoded = loaded.decode(codes, source=backwards)
        assert all(np.array_equal(found[part], codes[part]) for part in codes)
        np.testing.assert_array_equal(decoded, expected)
    assert body.fingerprint == loaded.fingerprint == fingerprint
    with pytest.raises(TypeError, match="dtype="):
        body.half()
    with pytest.raises(TypeError, match="trainable=True"):
        body.requires_grad_(True)
    trainable = BodyTokenizer.from_pretrained(tmp_path / "body", trainable=True)
    assert all(parameter.requires_grad for parameter in trainable.parameters())
    assert trainable.fingerprint == fingerprint and trainable.bfloat16() is trainable


def test_parts_whose_motion_was_read_by_different_rules_are_refused():
    parts = {part: make_part(part) for part in ("upper", "hands")}
    parts["hands"].details["reading"] = {"reading_version": 1}
    with pytest.raises(UserError, match=r"different rules \(rvqvae.data.reading_version: upper 2, hands 1\)"):
        BodyTokenizer(parts)
