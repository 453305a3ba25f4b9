"""`ds-rvqvae encode` and `decode` of BVH files, with body parts of one's own."""

import numpy as np
import pytest

from ds_rvqvae import BodyTokenizer, MotionTokenizer
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.reader import BvhReader
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import take_channels
from tests.cli.commands import counts, files_below, make_tokenizer, run
from tests.data.formats.bvh_files import Part, world_of_file, write_body, write_bvh_motion
from tests.data.formats.bvh_files import body as body_parts

PARTS = {"arm": ["LeftArm", "LeftHand"], "lower": ["LeftLeg", "translation"]}


@pytest.fixture
def data(tmp_path):
    for seed, name in enumerate(("a/walk", "b/walk")):
        write_bvh_motion(tmp_path / "data" / f"{name}.bvh", frames=42, seed=seed)
    return tmp_path / "data"


def read(file, **settings):
    return BvhReader(file, DataConfig(**settings)).read(file.stem)


@pytest.fixture
def body(tmp_path, data):
    """The folder of a body's tokenizer: all of the figure except its hips."""
    whole = read(data / "a" / "walk.bvh").layout
    parts = {part: make_tokenizer(take_channels(whole, names)[1], part) for part, names in PARTS.items()}
    BodyTokenizer(parts, whole).save_pretrained(tmp_path / "body")
    return tmp_path / "body"


def test_a_bvh_folder_through_a_body_of_own_parts_and_back(tmp_path, data, body, capsys):
    codes, motion = tmp_path / "codes", tmp_path / "motion"
    for command in (("encode", body, data, "--out", codes), ("decode", body, codes, "--out", motion)):
        assert counts(capsys, *command) == (0, 2, 0, 0)
        assert counts(capsys, *command) == (0, 0, 2, 0)
    assert files_below(motion)[1:] == ["a/walk.bvh", "b/walk.bvh"]
    tokenizer = BodyTokenizer.from_pretrained(body)
    source, decoded = read(data / "b" / "walk.bvh"), read(motion / "b" / "walk.bvh")
    expected = tokenizer.decode(tokenizer.encode_clip(source), 42, source.motion)
    assert decoded.layout == tokenizer.layout == source.layout
    np.testing.assert_allclose(decoded.motion[:, :6], source.motion[:, :6], atol=1e-6)
    np.testing.assert_allclose(decoded.motion[:, -3:], expected[:, -3:], atol=1e-6)
    tokenizer.decode_to_file(
        tokenizer.encode_file(data / "b" / "walk.bvh"), tmp_path / "direct.bvh", data / "b/walk.bvh"
    )
    assert (tmp_path / "direct.bvh").read_bytes() == (motion / "b" / "walk.bvh").read_bytes()
    tokenizer.decode_to_file(tokenizer.encode_file(data / "b" / "walk.bvh"), tmp_path / "d.npy", data / "b/walk.bvh")
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), expected)
    with pytest.raises(UserError, match="takes its hierarchy from a source"):
        tokenizer.decode_to_file(tokenizer.encode_clip(source), tmp_path / "none.bvh")


def test_hips_below_a_root_come_back_where_the_tokenizer_puts_them(tmp_path, capsys):
    parts = [Part("Reference", "", (0, 0, 0), 6), *body_parts("Hips", "Reference")]
    file = write_body(tmp_path / "data" / "walk.bvh", parts, frames=48)
    source = read(file)
    tokenizer = make_tokenizer(source.layout)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for command, given in (("encode", file.parent), ("decode", tmp_path / "codes")):
        out = tmp_path / ("codes" if command == "encode" else "motion")
        assert counts(capsys, command, tmp_path / "tokenizer", given, "--out", out) == (0, 1, 0, 0)
    expected = tokenizer.decode(tokenizer.encode(source.motion), 48)
    decoded = tmp_path / "motion" / "walk.bvh"
    np.testing.assert_allclose(read(decoded).motion[:, -3:], expected[:, -3:], atol=1e-6)
    np.testing.assert_allclose(world_of_file(decoded)[0]["Hips"] / 100, expected[:, -3:], atol=1e-6)
    reference = [world_of_file(one)[0]["Reference"] for one in (file, decoded)]
    np.testing.assert_allclose(*reference, atol=1e-6)


def test_without_its_source_a_clip_is_a_matrix(tmp_path, data, body, capsys):
    codes = tmp_path / "codes"
    run(capsys, "encode", body, data, "--out", codes)
    assert run(capsys, "decode", body, codes, "--out", tmp_path / "m", "--matrices")[0] == 0
    data.rename(tmp_path / "moved")
    status, result, _ = run(capsys, "decode", body, codes, "--out", tmp_path / "rest")
    assert status == 0 and "no hierarchy for a BVH file" in result["done"][0]["notes"][0]
    for name in ("a", "b"):
        matrix = np.load(tmp_path / "m" / name / "walk.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "rest" / name / "walk.npy"), matrix)
        np.testing.assert_array_equal(matrix[:, :6], np.tile([1, 0, 0, 0, 1, 0], (42, 1)))
    again = ("decode", body, codes, "--out", tmp_path / "found", "--source", tmp_path / "moved")
    assert counts(capsys, *again) == (0, 2, 0, 0)
    moved = read(tmp_path / "moved" / "b" / "walk.bvh").motion[:, :6]
    np.testing.assert_allclose(read(tmp_path / "found" / "b" / "walk.bvh").motion[:, :6], moved, atol=1e-6)


def test_files_are_read_as_the_training_motion_was(tmp_path, data, capsys):
    """A tokenizer of motion with z up, in inches, encodes and decodes such files without being told."""
    settings = {"up_axis": "z", "metres_per_unit": 0.0254}
    source = data / "a" / "walk.bvh"
    clip = read(source, **settings)
    tokenizer = make_tokenizer(clip.layout)
    tokenizer.details["reading"] = settings
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert run(capsys, "encode", tmp_path / "tokenizer", source, "--out", tmp_path / "codes")[0] == 0
    assert run(capsys, "decode", tmp_path / "tokenizer", tmp_path / "codes", "--out", tmp_path / "motion")[0] == 0
    loaded = MotionTokenizer.from_pretrained(tmp_path / "tokenizer")
    expected = loaded.decode(loaded.encode(clip.motion), 42)
    found = read(tmp_path / "motion" / "walk.bvh", **settings).motion
    np.testing.assert_allclose(found[:, -3:], expected[:, -3:], atol=1e-6)
    tokenizer.details["reading"] = {"up_axis": "w"}
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    status, result, _ = run(capsys, "encode", tmp_path / "tokenizer", source, "--out", tmp_path / "other")
    assert status == 1 and "the tokenizer's config: reading" in result["failed"][0]["reason"]


def test_a_bvh_file_comes_back_at_its_own_frame_rate(tmp_path, capsys):
    source = write_bvh_motion(tmp_path / "walk.bvh", frames=90, fps=120.0)
    tokenizer = make_tokenizer(read(source).layout)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    run(capsys, "encode", tmp_path / "tokenizer", source, "--out", tmp_path / "codes")
    decode = ("decode", tmp_path / "tokenizer", tmp_path / "codes", "--out", tmp_path / "motion")
    status, result, _ = run(capsys, *decode)
    told = "source at 120 fps, written at 30; --fps source keeps the source's"
    assert status == 0 and result["done"][0]["notes"] == [told]
    slow = read(tmp_path / "motion" / "walk.bvh").motion
    status, result, _ = run(capsys, *decode, "--fps", "source")
    assert status == 0 and result["done"][0]["notes"] == []
    lines = (tmp_path / "motion" / "walk.bvh").read_text().splitlines()
    assert "Frames: 90" in lines and "Frame Time: 0.0083333" in lines
    np.testing.assert_allclose(read(tmp_path / "motion" / "walk.bvh").motion, slow, atol=1e-4)
    # The same from Python.
    loaded = MotionTokenizer.from_pretrained(tmp_path / "tokenizer")
    loaded.decode_to_file(loaded.encode_file(source), tmp_path / "direct.bvh", source, fps="source")
    assert (tmp_path / "direct.bvh").read_bytes() == (tmp_path / "motion" / "walk.bvh").read_bytes()
