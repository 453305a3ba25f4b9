"""SnapMoGen's BVH files with its lists: pieces of recordings are clips; the unit, the splits and the columns.

Layout, names and skeleton are those of https://github.com/snap-research/SnapMoGen: `train_rvq.py` (renamed_bvhs,
renamed_feats, data_split_info/train_fnames.txt and train_ids.txt, meta_data/mean.npy, all_caption_clean.json),
`utils/T_Pose.bvh` (24 joints, 30 fps) and `dataset/dataset.py` (`_, start, end = cid.split("#")`, start up to end).
"""

import json

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.pieces import Piece, pieces_of
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.errors import UserError
from tests.cli.commands import make_tokenizer, run
from tests.data.formats.bvh_files import snapmogen_body, world_of_file, write_body
from tests.data.motion import write_lists, write_matrices, write_statistics

UNIT = {"metres_per_unit": 0.01}
FRAMES = 130


@pytest.fixture
def data(tmp_path, monkeypatch):
    """SnapMoGen's folder: three recordings, the first in two pieces, and its mirror image."""
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "SnapMoGen"
    names = ("gp_00171", "gp_00172", "m_gp_00171", "st2_00001")
    for seed, name in enumerate(names):
        write_body(root / "renamed_bvhs" / f"{name}.bvh", snapmogen_body(), frames=FRAMES, seed=seed)
    write_lists(
        root / "data_split_info",
        train_fnames="gp_00171 m_gp_00171",
        train_ids="gp_00171#0#60 gp_00171#64#129 m_gp_00171#0#60",
        val_fnames="gp_00172",
        val_ids="gp_00172#20#100",
        test_fnames="st2_00001",
        test_ids="st2_00001#0#129 gp_00999#0#90",
    )
    write_statistics(root / "meta_data", 296, "mean.npy", "std.npy")
    (root / "all_caption_clean.json").write_text(json.dumps({"gp_00171#0#60": {"manual": ["a person waves"]}}))
    return root


WANTED = {
    "gp_00171#0#60": "train",
    "gp_00171#64#129": "train",
    "m_gp_00171#0#60": "train",
    "gp_00172#20#100": "val",
    "st2_00001#0#129": "test",
}


@pytest.mark.parametrize("at", ["renamed_bvhs", "."])
def test_listed_pieces_are_clips_with_their_frames_splits_and_columns(data, at):
    path, stem = data / at, "" if at != "." else "renamed_bvhs/"
    store = prepare(DataConfig(path=str(path), up_axis="y", **UNIT), workers=1).store
    assert store.fps == 30 and store.layout[-1].stop == 24 * 6 + 3
    assert store.layout[0].name == "ROOT" and store.layout[15].name == "C_pelvis0001_bind_JNT"
    assert {segment.name: segment.split for segment in store.segments} == {
        stem + name: split for name, split in WANTED.items()
    }
    for name in WANTED:
        recording, start, stop = name.split("#")
        places, turns = world_of_file(data / "renamed_bvhs" / f"{recording}.bvh")
        clip, frames = store.clip(stem + name), slice(int(start), int(stop))
        assert len(clip) == int(stop) - int(start)
        np.testing.assert_allclose(clip[:, -3:], places["ROOT"][frames] / 100, atol=1e-5)
        np.testing.assert_allclose(clip[:, :6].reshape(-1, 2, 3), turns["ROOT"][frames, :2], atol=1e-6)
    trained = np.concatenate([store.clip(stem + name) for name, split in WANTED.items() if split == "train"])
    np.testing.assert_allclose(store.mean, trained.mean(axis=0), atol=1e-5)
    assert not store.has_own_statistics  # those in meta_data are of 296 other columns
    report = store.report()
    (note,) = [note for note in report["notes"] if "piece" in note]
    assert note.startswith("the lists name 5 pieces of 4 files: each is a clip of its own, and frames outside of them")
    assert [left.file for left in store.left_out] == ["gp_00999#0#90.bvh"]
    assert "test_ids.txt lists it, but there is no such file" in store.left_out[0].reason
    (count,) = report["file_counts"]
    assert count["read"] == 4


def test_a_folder_with_features_too_says_what_is_read(data):
    write_matrices(data / "renamed_feats", ("gp_00171", "gp_00172", "m_gp_00171", "st2_00001"), 296)
    reader = open_reader(data, DataConfig(format="bvh", **UNIT))
    assert "renamed_bvhs/gp_00171#0#60" in reader.clip_names()
    reader = open_reader(data, DataConfig(**UNIT))
    said = [note for note in reader.notes if "not read" in note and "also holds" in note]
    assert reader.key == "features" and said == [
        "the folder also holds BVH, not read; set rvqvae.data.format to bvh to read that instead"
    ]


def test_the_unit_is_not_guessed(data):
    reader = open_reader(data / "renamed_bvhs", DataConfig())
    with pytest.raises(UserError, match=r"0\.86 m in centimetres.*; set the metres per unit: --metres_per_unit N"):
        reader.check(reader.clip_names())


def test_pieces_with_frames_that_are_not_there_are_left_out(data):
    write_lists(data / "data_split_info", train_ids="gp_00171#0#60 gp_00171#100#131 gp_00171#40#40 gp_00171#50#9")
    store = prepare(DataConfig(path=str(data / "renamed_bvhs"), up_axis="y", **UNIT), workers=1).store
    reasons = {left.file: left.reason for left in store.left_out}
    assert reasons["gp_00171.bvh#100#131"] == "frames 100 to 131 are listed, but gp_00171 has 130"
    assert {"gp_00171.bvh#40#40", "gp_00171.bvh#50#9"} < reasons.keys() and "gp_00171#0#60" in store.clip_names
    # A recording of which no piece is listed is read as a whole, and belongs to no split.
    splits = {segment.name: segment.split for segment in store.segments}
    assert splits["m_gp_00171"] == "additional"


def test_a_piece_is_found_with_more_or_fewer_folders_and_a_files_own_name_is_no_piece(tmp_path):
    files = dict.fromkeys(("a/gp_1", "gp_2", "gp_3#0#5"), tmp_path)
    listed = ("gp_1#0#9", "renamed_bvhs/gp_2#3#7", "gp_3#0#5", "gp_4#0#2", "gp_2#x#2")
    assert pieces_of(listed, files) == [Piece("a/gp_1", 0, 9), Piece("gp_2", 3, 7)]


def test_a_recording_is_encoded_and_decoded_to_bvh(data, tmp_path, capsys):
    config = DataConfig(**UNIT)
    file = data / "renamed_bvhs" / "gp_00172.bvh"
    tokenizer = make_tokenizer(open_reader(file, config).read("gp_00172").layout)
    tokenizer.details["reading"] = UNIT
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert run(capsys, "encode", tmp_path / "tokenizer", file, "--out", tmp_path / "codes")[0] == 0
    assert run(capsys, "decode", tmp_path / "tokenizer", tmp_path / "codes", "--out", tmp_path / "motion")[0] == 0
    source, decoded = (one.read_text().split("MOTION") for one in (file, tmp_path / "motion" / "gp_00172.bvh"))
    assert decoded[0] == source[0] and f"Frames: {FRAMES}\nFrame Time: 0.0333333" in decoded[1]
