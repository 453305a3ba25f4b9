"""Published data sets of feature matrices: columns, frame rate, splits and statistics of the store."""

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.errors import UserError
from tests.data.formats.published import PUBLISHED
from tests.data.motion import write_lists, write_matrices, write_statistics

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))


def store_of(path, **settings):
    return prepare(DataConfig(path=str(path), **settings), workers=1).store


def but_unlisted(notes):
    """Returns all notes except the one on the clip that no list names."""
    return [note for note in notes if not note.startswith("clips that ")]


def notes_of(path, **settings):
    return but_unlisted(open_reader(path, DataConfig(path=str(path), **settings)).notes)


def splits_of(store):
    return {segment.name: segment.split for segment in store.segments}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("at", ["data", "clips"])
def test_a_published_folder_keeps_its_columns_rate_splits_and_statistics(tmp_path, name, at):
    form = PUBLISHED[name]
    folder = form.write(tmp_path / "data")
    path, stem = (folder, form.stem) if at == "data" else (folder / form.clips, "")
    store = store_of(path, fps=25.0)
    assert store.layout[-1].stop == form.width and store.fps == form.fps
    wanted = {stem + clip: split for split, clip in form.by_split.items()}
    assert splits_of(store) == {**wanted, stem + form.names[3]: "additional"}
    assert np.array_equal(store.mean, np.arange(form.width)) and np.array_equal(store.std, store.mean + 1)
    for clip in form.names:
        assert np.array_equal(store.clip(stem + clip), np.load(folder / form.clips / f"{clip}.npy"))
    (note,) = but_unlisted(store.report()["notes"])
    assert f"{form.fps:g} fps is " in note and "rvqvae.data.fps 25 is not used" in note
    reader = open_reader(path, DataConfig(fps=form.fps))
    lists = ", ".join(form.listed.format(split) for split in ("train", "val", "test"))
    said = f"clips that {lists} do not name count as additional, neither trained on nor scored: 1, such as "
    assert reader.notes == (f"{said}{stem}{form.names[3]}",) and (reader.key == form.key or at == "clips")
    assert len(reader.sources()) == 4 + 3 + 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_list_moved_aside_is_warned_of(tmp_path, name):
    form = PUBLISHED[name]
    folder = form.write(tmp_path / "data")
    list_file = folder / form.lists / form.listed.format("test")
    (folder / "aside").mkdir()
    list_file.rename(folder / "aside" / list_file.name)
    store = store_of(folder, fps=form.fps)
    assert splits_of(store)[form.stem + form.names[2]] == "additional"
    assert but_unlisted(store.report()["notes"]) == [
        f"aside/{list_file.name}: names clips like the list of a split, but is not used"
    ]


@pytest.mark.parametrize("name", ["HumanML3D", "KIT", "HumanML3D-272", "MotionMillion"])
def test_a_published_folder_without_lists_says_that_a_hash_holds_out(tmp_path, name):
    form = PUBLISHED[name]
    folder = form.write(tmp_path / "data")
    for file in (folder / form.lists).glob("*.txt"):
        file.unlink()
    assert notes_of(folder, fps=form.fps) == [
        "there is no list of the official splits: clips are held out by a hash of their names"
    ]
    assert notes_of(folder, fps=form.fps, split="time") == []


def test_lists_that_a_setting_takes_the_place_of_are_said(tmp_path):
    folder = PUBLISHED["HumanML3D"].write(tmp_path / "data")
    for split in ("hash", "time"):
        said = f"train.txt, val.txt, test.txt: not used, rvqvae.data.split is {split}"
        assert notes_of(folder, fps=20.0, split=split) == [said]


def test_several_versions_of_lists_have_to_be_chosen_from(tmp_path):
    form = PUBLISHED["MotionMillion"]
    folder = form.write(tmp_path / "data")
    train, val, test, other = form.names
    write_lists(folder / "split" / "version1" / "t2m_60_300", train=f"{other} {val}", val=train, test=test)
    with pytest.raises(UserError) as refusal:
        store_of(folder)
    assert "split/version1/t2m_60_300, split/version1/tokenizer_96" in str(refusal.value)
    assert "--split_version NAME (rvqvae.data.split_version)" in str(refusal.value)
    for version in ("t2m_60_300", "version1/t2m_60_300", "split/version1/t2m_60_300/"):
        store = store_of(folder, split_version=version)
        assert splits_of(store) == {other: "train", val: "train", train: "val", test: "test"}
        assert not store.report()["notes"]
    assert splits_of(store_of(folder, split_version="tokenizer_96"))[train] == "train"
    with pytest.raises(
        UserError, match=r"split_version: version2 names none of .*; these are split/version1/t2m_60_300"
    ):
        store_of(folder, split_version="version2")


def test_versions_that_say_the_same_need_no_choice(tmp_path):
    form = PUBLISHED["SnapMoGen"]
    folder = form.write(tmp_path / "data")
    again = {f"{split}_fnames": name for split, name in form.by_split.items()}
    write_lists(folder / "data_split_info1", **again)
    assert splits_of(store_of(folder))["renamed_feats/gp_00172"] == "val"
    write_lists(folder / "data_split_info1", train_fnames=form.names[3])
    with pytest.raises(UserError, match="several folders of split lists: data_split_info, data_split_info1; --split"):
        store_of(folder)


def test_a_version_that_is_asked_for_where_there_are_no_folders_of_lists_is_said(tmp_path):
    folder = PUBLISHED["HumanML3D"].write(tmp_path / "data")
    assert notes_of(folder, fps=20.0, split_version="version1") == [
        "rvqvae.data.split_version version1 is not used: there is no folder of split lists"
    ]


def test_lists_beside_the_data_go_before_those_in_a_folder_which_is_said(tmp_path):
    form = PUBLISHED["HumanML3D"]
    folder = form.write(tmp_path / "data")
    write_lists(folder / "split", **form.by_split)
    assert notes_of(folder, fps=20.0) == []  # they say the same
    write_lists(folder / "split", test=form.names[0])
    (note,) = notes_of(folder, fps=20.0)
    assert note.startswith("split/train.txt, split/val.txt, split/test.txt: not used, train.txt, val.txt, test.txt")
    assert splits_of(store_of(folder))[form.names[0]] == "train"
    store = store_of(folder, split_version="split")
    assert splits_of(store)[form.names[2]] == "additional"


def test_lists_that_name_none_of_the_clips_are_not_used_and_said(tmp_path):
    data = write_matrices(tmp_path / "data", ("a", "b", "c"), 9)
    write_lists(data, train="x y", test="z")
    write_lists(tmp_path, train="u v")  # belong to other data beside these
    reader = open_reader(data, DataConfig(source_fps=30))
    assert reader.notes == ("train.txt, test.txt: not used, names none of the clips",)
    assert reader.clip_names() == ["a", "b", "c"] and {reader.take(name).split for name in "abc"} == {None}


def test_statistics_that_differ_or_stand_alone_are_said(tmp_path):
    form = PUBLISHED["HumanML3D-272"]
    folder = form.write(tmp_path / "data")
    write_statistics(folder / "meta", 272, "mean.npy", "STD.npy")
    assert notes_of(folder) == []  # the same numbers
    np.save(folder / "meta" / "mean.npy", np.zeros(272, np.float32))
    (folder / "mean_std" / "Std.npy").rename(folder / "Std.npy")
    assert notes_of(folder) == [
        "Std.npy: not used, because mean and std must be in one folder together",
        "mean_std/Mean.npy: not used, because mean and std must be in one folder together",
    ]
    assert not store_of(folder).mean.any()
    np.save(folder / "Mean.npy", np.ones(272, np.float32))
    (first, second) = notes_of(folder)
    assert first.startswith("mean_std/Mean.npy: not used")
    assert (
        second
        == "meta/mean.npy and meta/STD.npy: not used, mean and std are those of Mean.npy and Std.npy, which differ"
    )
    assert store_of(folder).mean.tolist() == [1] * 272


def test_statistics_of_another_width_give_way_to_those_that_fit(tmp_path):
    folder = PUBLISHED["HumanML3D-272"].write(tmp_path / "data")
    write_statistics(folder, 263)
    (note,) = notes_of(folder)
    assert note.startswith(
        "Mean.npy and Std.npy: not used, mean and std are those of mean_std/Mean.npy and mean_std/Std"
    )
    assert len(store_of(folder).mean) == 272
    (folder / "mean_std" / "Mean.npy").unlink()
    with pytest.raises(UserError, match=r"Mean.npy and Std.npy have 263 and 263 columns, but the motion has 272$"):
        store_of(folder)


def test_files_of_statistics_are_no_clips_and_a_clip_of_such_a_name_is_one(tmp_path):
    data = write_matrices(tmp_path / "data", ("a", "days/mean", "days/b"), 9)
    write_statistics(data / "days", 9)
    (data / "days" / "Std.npy").rename(data / "days" / "STD.NPY")
    np.save(data / "std.npy", np.ones((1, 9)))
    assert open_reader(data, DataConfig()).clip_names() == ["a", "days/b", "days/mean"]


def test_what_lies_beside_the_folder_of_clips_is_not_read(tmp_path):
    form = PUBLISHED["HumanML3D-272"]
    folder = form.write(tmp_path / "data")
    write_matrices(folder / "t2m_latents", form.names, 16)
    assert open_reader(folder, DataConfig()).clip_names() == sorted(form.names)


def test_motion_data_of_other_columns_is_a_plain_folder_with_its_lists(tmp_path):
    form = PUBLISHED["HumanML3D-272"]._replace(width=263)
    folder = form.write(tmp_path / "data")
    reader = open_reader(folder, DataConfig(fps=20.0))
    assert reader.key == "features" and reader.fps == 20 and not but_unlisted(reader.notes)
    assert reader.take("motion_data/000001").split == "val" and reader.statistics() is not None


@pytest.mark.parametrize("name", PUBLISHED)
def test_version_1_reads_as_before_and_says_what_differs(tmp_path, name):
    form = PUBLISHED[name]
    folder = form.write(tmp_path / "data")
    store = store_of(folder, fps=25.0, reading_version=1)
    assert store.fps == 25 and store.layout[-1].stop == form.width
    # The old reading: a plain folder, with lists and statistics only beside the data.
    beside = form.lists == "."
    stem = "" if beside else f"{form.clips}/"
    assert store.clip_names == [stem + name for name in sorted(form.names)]
    assert np.array_equal(store.mean, np.arange(form.width)) == beside
    notes = list(store.report()["notes"])
    keys = [open_reader(folder, DataConfig(reading_version=version)).key for version in (1, 2)]
    another = keys[0] != keys[1]  # and a note says so
    assert len(notes) == (1 if beside else 3) + another and all(
        "read as versions up to 0.2 did" in note for note in notes
    )
    assert f"at 25 fps (rvqvae.data.fps), but the files have {form.fps:g} fps" in " ".join(notes)
