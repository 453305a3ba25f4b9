"""BEAT2 as it is published: a language, its parent, several languages, and other files beside them."""

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.formats.smpl.beat2 import CLIP_FOLDER, SPLIT_FILE, Beat2Reader, clip_folders
from ds_rvqvae.data.formats.smpl.poses import SmplReader
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import Clip
from tests.data.motion import write_beat2, write_beat2_folder

ENGLISH, CHINESE = "beat_english_v2.0.0", "beat_chinese_v2.0.0"
SPLITS = {
    ENGLISH: {"2_scott_0_1_1": "train", "2_scott_0_2_2": "test", "4_lawrence_0_1_1": "val"},
    CHINESE: {"12_zhao_2_1_1": "train", "22_luqi_2_1_1": "test"},
}


def write_language(folder, split, has_list=True):
    """Writes a language in its published layout, with other files beside the motion."""
    write_beat2_folder(folder / CLIP_FOLDER, tuple(split))
    for name in ("wave16k/2_scott_0_1_1.wav", "textgrid/2_scott_0_1_1.TextGrid", "weights/mean_vel.npy"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    if has_list:
        rows = [f"{name},{kind}" for name, kind in split.items()]
        (folder / SPLIT_FILE).write_text("\ufeffid,type\r\n" + "\r\n".join(rows) + "\r\n", encoding="utf-8")


@pytest.fixture
def beat2(tmp_path):
    for language, split in SPLITS.items():
        write_language(tmp_path / "BEAT2" / language, split)
    return tmp_path / "BEAT2"


def clips_of(path, **settings) -> dict[str, Clip]:
    reader = open_reader(path, DataConfig(**settings))
    assert isinstance(reader, Beat2Reader)
    found = {}
    for clip in reader.clips():
        assert isinstance(clip, Clip), clip
        found[clip.name] = clip
    return found


@pytest.mark.parametrize("above", [".", "BEAT2", "deep"])
def test_a_folder_of_languages_is_beat2_with_each_ones_splits(beat2, tmp_path, above):
    path, prefix = beat2, ""
    if above != ".":
        path, prefix = tmp_path, "BEAT2/"
    if above == "deep":
        (tmp_path / "data").mkdir()
        beat2.rename(tmp_path / "data" / "BEAT2")
        prefix = "data/BEAT2/"
    clips = clips_of(path)
    assert {name: clip.split for name, clip in clips.items()} == {
        f"{prefix}{language}/{CLIP_FOLDER}/{name}": kind
        for language, split in SPLITS.items()
        for name, kind in split.items()
    }
    assert {(clip.motion.shape, clip.fps) for clip in clips.values()} == {((60, 433), 30)}
    alone = clips_of(path / prefix / ENGLISH)
    assert alone.keys() == SPLITS[ENGLISH].keys()
    for name, clip in alone.items():
        assert np.array_equal(clip.motion, clips[f"{prefix}{ENGLISH}/{CLIP_FOLDER}/{name}"].motion)


def test_the_parent_of_one_language_is_beat2_too(beat2):
    (beat2 / CHINESE).rename(beat2.parent / "elsewhere")
    reader = open_reader(beat2, DataConfig())
    assert reader.clip_names() == [f"{ENGLISH}/{CLIP_FOLDER}/{name}" for name in sorted(SPLITS[ENGLISH])]
    assert [reader.file_of(name) for name in reader.clip_names()[:1]] == [f"{ENGLISH}/{CLIP_FOLDER}/2_scott_0_1_1.npz"]
    assert reader.notes == () and beat2 / ENGLISH / SPLIT_FILE in reader.sources()


def test_a_language_without_a_list_is_said_and_neither_trained_on_nor_scored(beat2):
    (beat2 / CHINESE / SPLIT_FILE).unlink()
    reader = open_reader(beat2, DataConfig())
    assert reader.notes == (
        f"no {SPLIT_FILE} for {CHINESE}: 2 clips count as additional, neither trained on nor scored",
    )
    splits = {name: clip.split for name, clip in clips_of(beat2).items()}
    assert [kind for name, kind in splits.items() if name.startswith(CHINESE)] == ["additional"] * 2
    assert sorted(kind for name, kind in splits.items() if name.startswith(ENGLISH)) == ["test", "train", "val"]


def test_without_any_list_no_clip_has_a_split(beat2):
    for language in SPLITS:
        (beat2 / language / SPLIT_FILE).unlink()
    assert {clip.split for clip in clips_of(beat2).values()} == {None}
    assert open_reader(beat2, DataConfig()).notes == (
        f"no {SPLIT_FILE} for {CHINESE}, {ENGLISH}: 5 clips have no split except the one that rvqvae.data.split makes",
    )
    assert open_reader(beat2, DataConfig(split="hash")).notes == ()
    assert open_reader(beat2 / ENGLISH, DataConfig()).notes[0].startswith(f"no {SPLIT_FILE} for {ENGLISH}: 3 clips")


def test_clips_that_the_list_does_not_name_and_a_split_in_place_of_it_are_said(beat2):
    write_beat2(beat2 / ENGLISH / CLIP_FOLDER / "9_x_0_1_1.npz")
    (note,) = open_reader(beat2, DataConfig()).notes
    assert note == (
        f"clips that {SPLIT_FILE} does not name count as additional, neither trained on nor scored: 1, such as "
        f"{ENGLISH}/{CLIP_FOLDER}/9_x_0_1_1"
    )
    assert open_reader(beat2, DataConfig(split="hash")).notes == (f"{SPLIT_FILE}: not used, rvqvae.data.split is hash",)


def test_a_list_of_a_language_without_clips_is_said(beat2):
    for file in (beat2 / CHINESE / CLIP_FOLDER).iterdir():
        file.unlink()
    reader = open_reader(beat2, DataConfig())
    assert reader.notes == (f"{CHINESE}/{SPLIT_FILE}: not used",) and len(reader.clip_names()) == 3


def test_listed_clips_without_a_file_are_left_out_under_their_language(beat2):
    with (beat2 / CHINESE / SPLIT_FILE).open("a") as lines:
        lines.write("30_x_0_1_1,train\n../2_scott_0_1_1,train\n")
    reader = open_reader(beat2, DataConfig())
    left_out = {entry.file: entry.reason for entry in reader.clips() if not isinstance(entry, Clip)}
    assert left_out == {
        f"{CHINESE}/{CLIP_FOLDER}/30_x_0_1_1.npz": f"{SPLIT_FILE} lists it, but there is no such file",
        f"{CHINESE}/{CLIP_FOLDER}/../2_scott_0_1_1.npz": f"{SPLIT_FILE} lists it, but the name leads out of the folder",
    }


def test_one_list_above_all_languages_holds_for_them(beat2):
    rows = [f"{name},{kind}" for split in SPLITS.values() for name, kind in split.items()]
    for language in SPLITS:
        (beat2 / language / SPLIT_FILE).unlink()
    (beat2 / SPLIT_FILE).write_text("\n".join(["id,type", *rows, "30_x_0_1_1,val"]))
    reader = open_reader(beat2, DataConfig())
    missing = [name for name in reader.clip_names() if CLIP_FOLDER not in name]
    assert missing == ["30_x_0_1_1"] and reader.notes == ()
    found = {clip.name: clip.split for clip in reader.clips() if isinstance(clip, Clip)}
    expected = {name: kind for split in SPLITS.values() for name, kind in split.items()}
    assert {name.rpartition("/")[2]: kind for name, kind in found.items()} == expected


def test_speakers_are_chosen_by_the_number_of_the_clips_own_name(beat2):
    names = [name.rpartition("/")[2] for name in clips_of(beat2, speakers=[2, 22])]
    assert names == ["22_luqi_2_1_1", "2_scott_0_1_1", "2_scott_0_2_2"]
    with pytest.raises(UserError, match=r"99 have no clip in .*; its speakers are 2, 4, 12, 22"):
        open_reader(beat2, DataConfig(speakers=[99]))


def test_folders_of_other_names_are_beat2_where_most_files_have_expressions(tmp_path):
    write_beat2_folder(tmp_path / "2_scott", ("2_scott_0_1_1", "2_scott_0_2_2"))
    write_beat2(tmp_path / "4_lawrence" / "4_lawrence_0_1_1.NPZ.npz").rename(
        tmp_path / "4_lawrence/4_lawrence_0_1_1.NPZ"
    )
    (tmp_path / SPLIT_FILE).write_text("id,type\n2_scott_0_1_1,train\n2_scott_0_2_2,test\n4_lawrence_0_1_1,val\n")
    splits = {name: clip.split for name, clip in clips_of(tmp_path).items()}
    assert splits == {
        "2_scott/2_scott_0_1_1": "train",
        "2_scott/2_scott_0_2_2": "test",
        "4_lawrence/4_lawrence_0_1_1": "val",
    }


def test_a_file_that_differs_in_its_suffixs_case_alone_keeps_it(tmp_path):
    write_beat2(tmp_path / "a.npz", seed=1)
    write_beat2(tmp_path / "b.npz", seed=2).rename(tmp_path / "a.NPZ")
    assert sorted(clips_of(tmp_path)) == ["a", "a.npz"]


def test_motion_beside_the_languages_is_said_and_not_read(beat2):
    for index in range(3):
        write_beat2(beat2 / "AMASS" / "CMU" / f"{index}.npz", expressions=None)
    np.savez(beat2 / CHINESE / "weights" / "mean.npz", mean=np.zeros(3))
    reader = open_reader(beat2, DataConfig())
    assert len(reader.clip_names()) == 5 and reader.notes == (
        "4 npz files beside the folders of BEAT2 clips are not read, such as AMASS/CMU/0.npz; give their folder by "
        "itself, or set rvqvae.data.format to smpl to read all",
    )
    assert reader.why_passed_over(beat2 / "AMASS" / "CMU" / "0.npz") == "not in a folder of clips"
    (beat2 / "AMASS").rename(beat2.parent / "AMASS")
    assert open_reader(beat2, DataConfig()).notes == ()


def test_links_to_languages_are_followed(beat2, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ENGLISH).symlink_to(beat2 / ENGLISH)
    assert len(clips_of(tmp_path / "linked")) == 3


def test_z_up_is_turned(beat2):
    name = f"{ENGLISH}/{CLIP_FOLDER}/2_scott_0_1_1"
    before, after = (open_reader(beat2, DataConfig(up_axis=axis)).take(name).motion for axis in ("y", "z"))
    x, y, z = before[:, 330:333].T
    assert np.array_equal(after[:, 330:333], np.stack([x, z, -y], axis=1))
    assert np.array_equal(after[:, 6:330], before[:, 6:330]) and np.array_equal(after[:, 333:], before[:, 333:])
    assert not np.allclose(after[:, :6], before[:, :6])


def test_versions_before_read_the_parent_as_smplx(beat2):
    reader = open_reader(beat2, DataConfig(reading_version=1))
    assert isinstance(reader, SmplReader)
    assert reader.notes == (
        "read as versions up to 0.2 did: as SMPL-X, SMPL-H or SMPL npz, but it is BEAT2 npz; prepare again with "
        "reading_version 2 to read it so",
    )
    shapes = {clip.motion.shape for clip in reader.clips() if isinstance(clip, Clip)}
    assert shapes == {(60, 333)} and {clip.split for clip in reader.clips() if isinstance(clip, Clip)} == {None}
    language = open_reader(beat2 / ENGLISH, DataConfig(reading_version=1))
    assert isinstance(language, Beat2Reader) and language.notes == ()
    assert language.clip_names() == sorted(SPLITS[ENGLISH])


def test_what_is_no_beat2_has_no_clip_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "empty" / "a.npz", poses=np.zeros((3, 165)))
    assert clip_folders(tmp_path) == []
