import os
import sys
from pathlib import Path

import pytest

from ds_rvqvae.data.formats.split_lists import SplitLists, find_lists
from ds_rvqvae.errors import UserError


def write_lists(folder: Path, **names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in names.items():
        (folder / f"{split}.txt").write_bytes(text.encode())
    return folder


def test_without_lists_no_clip_has_a_split(tmp_path):
    lists = SplitLists(tmp_path, tmp_path / "nowhere")
    assert lists.files == [] and lists.split_of("a") is None and lists.names() == set()


@pytest.mark.parametrize(
    "line",
    ["01/01_01", "01/01_01.bvh", "bvh/01/01_01.BVH", "./01/01_01.npz", "/srv/cmu/bvh/01/01_01", "01_01", "01\\01_01"],
)
def test_a_name_may_have_a_suffix_and_more_or_fewer_folders(tmp_path, line):
    lists = SplitLists(write_lists(tmp_path, train="other\n", test=f"\n  {line}\r\n"))
    assert lists.split_of("01/01_01") == "test" and lists.split_of("01/01_02") == "additional"


def test_a_list_may_be_written_on_windows(tmp_path):
    lists = SplitLists(write_lists(tmp_path, train="\ufeffa.npy\r\n\r\nb\r\n", val=""))
    assert lists.names() == {"a", "b"} and lists.split_of("a") == "train"


def test_each_list_is_taken_from_the_first_folder_that_has_it(tmp_path):
    folder = write_lists(tmp_path / "bvh", train="a")
    lists = SplitLists(folder, write_lists(tmp_path, train="b", val="bvh/c"))
    assert lists.files == [folder / "train.txt", tmp_path / "val.txt"]
    assert [lists.split_of(name) for name in "abc"] == ["train", "additional", "val"]


def test_clips_beside_a_lone_list_for_training_are_held_out(tmp_path):
    lists = SplitLists(write_lists(tmp_path, train="a"))
    assert [lists.split_of(name) for name in "ab"] == ["train", "val"]


def test_two_answers_are_a_split_that_no_clip_may_have(tmp_path):
    lists = SplitLists(write_lists(tmp_path, train="a\na.npy\nb", test="x/a\na", val="c"))
    assert [lists.split_of(name) for name in "abc"] == ["train and test", "train", "val"]


def test_the_nearest_name_counts(tmp_path):
    folder = write_lists(tmp_path / "studio_a", train="studio_a/take\nb/c/d", test="studio_b/take\nd\nc/d")
    lists = SplitLists(folder)
    assert lists.split_of("take") == "train"
    assert lists.split_of("b/c/d") == "train" and lists.split_of("c/d") == "test" and lists.split_of("e/c/d") == "test"
    assert SplitLists(folder.rename(tmp_path / "renamed")).split_of("take") == "train and test"


def test_a_name_that_leads_out_matches_nothing(tmp_path):
    lists = SplitLists(write_lists(tmp_path, train="../secret\nb\nd/../e\ngone", val="x"))
    assert lists.split_of("secret") == "additional" and lists.split_of("e") == "additional"
    assert lists.missing(["secret", "b", "e", "a/x"]) == ["../secret", "d/../e", "gone"]
    assert lists.why_missing("../secret") == "train.txt lists it, but the name leads out of the folder"
    assert lists.why_missing("gone") == "train.txt lists it, but there is no such file"


def test_what_is_no_list_is_refused_in_one_line(tmp_path):
    write_lists(tmp_path)
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"train\.txt: cannot be read as a list of clips.*UTF-8") as refusal:
        SplitLists(tmp_path)
    assert "\n" not in str(refusal.value)
    with (tmp_path / "train.txt").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(UserError, match="larger than 256 MiB"):
        SplitLists(tmp_path)


def test_fifty_thousand_names_are_looked_up_not_searched(tmp_path):
    names = [f"set/{index % 7}/take/{index // 3}" for index in range(50_000)]
    clips = [name.removeprefix("set/") for name in names]
    few, many = (
        SplitLists(write_lists(tmp_path, train="\n".join(names[:count]), val="/" * 2_000 + "a/" * 1_000))
        for count in (100, 50_000)
    )
    assert {many.split_of(name) for name in clips} == {"train"} and len(many.missing(clips)) == 1
    # The clips that are listed last, and some that no list has.
    steps = [
        lines_run(lambda lists=lists, last=last: [lists.split_of(name) for name in [*last, *(f"{n}/x" for n in last)]])
        for lists, last in ((few, clips[:100]), (many, clips[-100:]))
    ]
    assert steps[0] == steps[1] > 100


def lines_run(function):
    """Counts the lines of Python that a call runs."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.real_data
def test_the_lists_of_cmu(real_data, tmp_path):
    lists = SplitLists(tmp_path / "bvh", real_data / "cmu")
    assert [lists.split_of(name) for name in ("01/01_01", "06/06_01", "03/03_01")] == ["train", "test", "val"]
    assert len(lists.names()) == 98 and len(lists.missing(["06/06_01"])) == 97


def found(folder, *clips, beside=None, **settings):
    return find_lists([folder], beside, clips, **settings)


@pytest.mark.parametrize("place", ["", "split", "splits", "SPLIT", "data_split_info", "data_split_info1", "split/v1/a"])
def test_lists_are_found_where_data_sets_put_them(tmp_path, place):
    write_lists(tmp_path / place, train="a", val="b")
    lists = found(tmp_path, "a", "b", "c")
    assert [lists.lists.split_of(name) for name in "abc"] == ["train", "val", "additional"]
    said = "clips that train.txt, val.txt do not name count as additional, neither trained on nor scored: 1, such as c"
    assert lists.notes == (said,)
    assert lists.lists.files == [tmp_path / place / "train.txt", tmp_path / place / "val.txt"]
    around = find_lists([tmp_path / "clips"], tmp_path, "abc")
    assert around.lists.split_of("b") == "val"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("train_fnames", "val_fnames", "test_fnames"), ("train_fnames", "val_fnames", "test_fnames")),
        (("Train", "VALID", "Testing"), ("Train", "VALID", "Testing")),
        (("train", "training", "dev", "validation"), ("train", "validation")),
        (("train_ids", "train_fnames", "train", "test_ids"), ("train", "test_ids")),
    ],
)
def test_lists_have_the_names_that_data_sets_give_them(tmp_path, names, wanted):
    write_lists(tmp_path, **dict.fromkeys(names, "a"))
    assert [file.stem for file in found(tmp_path, "a").lists.files] == list(wanted)


def test_a_missing_clip_names_the_list_that_has_it(tmp_path):
    lists = found(write_lists(tmp_path, train_fnames="a\ngone"), "a").lists
    assert lists.missing(["a"]) == ["gone"]
    assert lists.why_missing("gone") == "train_fnames.txt lists it, but there is no such file"


def test_pieces_go_with_the_take_that_is_listed(tmp_path):
    write_lists(tmp_path, train="gp_1\nx", test="gp_2")
    lists = found(tmp_path, "gp_1#0#276", "gp_2#276#552", "x").lists
    assert [lists.split_of(name) for name in ("gp_1#0#276", "gp_2#276#552", "gp_2#0")] == ["train", "test", "test"]
    assert lists.missing(["gp_1#0#276", "gp_2#276#552", "x"]) == []
    assert lists.split_of("gp_3#0") == "additional"


def test_the_mirror_image_of_a_clip_that_trains_is_not_held_out(tmp_path):
    lists = found(write_lists(tmp_path, train="000001"), "000001", "M000001", "000002").lists
    assert [lists.split_of(name) for name in ("000001", "M000001", "000002")] == ["train", "additional", "val"]


def test_unions_of_lists_and_what_is_no_list_are_passed_over(tmp_path):
    write_lists(tmp_path, train="a", val="b", train_val="a\nb", all="a\nb", latest="a", contest="a")
    write_lists(tmp_path / "texts", a="a", test_walk="a man walks")
    write_lists(tmp_path / ".hidden", test="a")
    (tmp_path / "notes_test.md").write_text("a\n")
    (tmp_path / "broken_test.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "gone_test.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe_test.txt")
    assert found(tmp_path, "a", "b").notes == ()


def test_clips_that_no_list_names_are_said_with_what_they_count_as(tmp_path):
    write_lists(tmp_path, train="a")
    assert found(tmp_path, "a", "Mx", "c").notes == ("clips that train.txt do not name count as val: 2, such as Mx",)
    write_lists(tmp_path, test="b")
    (note,) = found(tmp_path, "a", "a#1", "b", "c", "d").notes
    assert note.endswith("do not name count as additional, neither trained on nor scored: 2, such as c")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train_test_split.csv", "id,type\na,test\n"),
        ("splits.json", '{"train": ["x/a.npz"], "val": ["b"]}'),
        ("meta/my_split.txt", "test\ta\ntrain\tb\n"),
        ("../train_val.txt", "a\n"),
    ],
)
def test_a_table_of_splits_is_said_where_no_list_is_taken(tmp_path, name, text):
    folder = tmp_path / "data"
    (folder / "meta").mkdir(parents=True)
    (folder / name).write_text(text)
    said = f"{name}: names clips like the list of a split, but is not used"
    assert find_lists([folder], tmp_path, ["a", "b"]).notes == (said,)
    assert find_lists([folder], tmp_path, ["c", "d"]).notes == ()
    write_lists(folder, train="a\nb")
    assert find_lists([folder], tmp_path, ["a", "b"]).notes == ()


@pytest.mark.parametrize("name", ["old/test.txt", "test_old.txt", "test.txt.bak", "subset-train.lst", "a/b/TEST.csv"])
def test_lists_elsewhere_are_said(tmp_path, name):
    write_lists(tmp_path, train="a", val="b")
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("b,1\nc,2\n" if name.endswith("csv") else "b.npy\nc\n")
    note, _ = found(tmp_path, "a", "b", "c").notes
    assert note == f"{name}: names clips like the list of a split, but is not used"


def test_many_lists_elsewhere_are_one_note(tmp_path):
    write_lists(tmp_path / "old", **{f"train_{number}": "a" for number in range(9)})
    (note,) = found(tmp_path, "a").notes
    assert note.startswith("old/train_0.txt, old/train_1.txt, old/train_2.txt and 6 more: names clips")


def test_a_damaged_list_is_refused_in_the_data_and_passed_over_beside_it(tmp_path):
    folder = write_lists(tmp_path / "data")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    assert find_lists([folder], tmp_path, ["a"]).lists.files == []
    (folder / "split").mkdir()
    (folder / "split" / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"split/train\.txt: cannot be read as a list of clips"):
        find_lists([folder], tmp_path, ["a"])


def test_folders_called_after_splits_are_said(tmp_path):
    clips = ("train_stream/seq1", "val_stream/seq1", "other/a")
    note = "the folders train_stream, val_stream are not used as splits: list their clips in train.txt, val.txt, …"
    assert found(tmp_path, *clips).notes == (note,)
    assert found(tmp_path, "train/a", "trains/b", "contest/c").notes == ()
    assert "folders" not in " ".join(found(write_lists(tmp_path, train="train_stream/seq1"), *clips).notes)


def test_version_1_looks_among_the_clips_and_beside_them(tmp_path):
    write_lists(tmp_path / "split", train="a", val="b")
    before = found(tmp_path, "a", "b", reading_version=1)
    assert before.lists.files == [] and before.lists.split_of("a") is None
    assert before.notes[0].startswith("read as versions up to 0.2 did: other clips are held out than by today's rules")
    write_lists(tmp_path, train="a", val="b")
    assert found(tmp_path, "a", "b", reading_version=1).notes == ()
    assert len(found(write_lists(tmp_path / "none"), "a", "M000001", reading_version=1).notes) == 1
    assert found(tmp_path / "none", "a", "b#1", reading_version=1).notes == ()
