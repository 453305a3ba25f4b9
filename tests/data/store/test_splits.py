from collections import Counter

import pytest

from ds_rvqvae.data.store.splits import ClipLength, Segment, by_hash, split_added, split_by_hash, split_clips
from ds_rvqvae.motion.clip import original_name


def clips(count: int, frames: int = 100, split: str | None = None) -> list[ClipLength]:
    return [ClipLength(f"{index}_clip", frames, split) for index in range(count)]


def test_by_hash_takes_eighty_ten_ten():
    counts = Counter(split_by_hash([f"clip{index}" for index in range(10_000)]).values())
    assert counts["train"] == pytest.approx(8000, rel=0.03)
    assert counts["val"] == pytest.approx(1000, rel=0.1) and counts["test"] == pytest.approx(1000, rel=0.1)


def test_a_new_clip_moves_no_other_one():
    names = [clip.name for clip in clips(40)]
    before, after = split_by_hash(names), split_by_hash([*names, "new"])
    assert after.items() >= before.items()


@pytest.mark.parametrize("count", range(1, 12))
def test_few_clips_always_train_and_three_hold_one_out(count):
    for variant in range(30):
        splits = list(split_by_hash([f"{variant}/{index}" for index in range(count)]).values())
        assert "train" in splits
        assert "val" in splits or count < 3


def test_by_time_cuts_every_clip():
    assert split_clips([ClipLength("a", 1906, "test"), ClipLength("b", 20, None)], "time") == [
        Segment("a", 0, 1524, "train"),
        Segment("a", 1524, 1715, "val"),
        Segment("a", 1715, 1906, "test"),
        Segment("b", 0, 16, "train"),
        Segment("b", 16, 18, "val"),
        Segment("b", 18, 20, "test"),
    ]


def test_auto_prefers_the_datas_own_split_then_the_hash_then_time():
    own = clips(3, split="val")
    assert {segment.split for segment in split_clips(own, "auto")} == {"val"}
    assert split_clips(clips(3), "auto") == split_clips(own, "hash")
    assert split_clips(clips(1), "auto") == split_clips(clips(1, split="val"), "time")


@pytest.mark.parametrize(
    "alike",
    [
        ("000012", "M000012", "M000012#0", "000012#3"),
        ("gp_00171", "m_gp_00171", "gp_00171#0#276", "m_gp_00171#276#552"),
        ("BABEL/a/12", "Mirror_BABEL/a/12", "mirrored/BABEL/a/12"),
        ("day1/walk", "day1/walk_mirror", "day1/walk_mirrored#1", "day1/Mirrored_walk"),
        ("01/walk_poses", "01/walk_mirror_poses", "01/mirror-walk_poses", "01/walk_poses-Mirror"),
    ],
)
def test_the_mirror_image_and_the_pieces_of_a_take_go_where_it_goes(alike):
    for number in range(300):
        names = [
            name.replace("12", f"{number:04}").replace("171", f"{number}").replace("walk", f"walk{number}")
            for name in alike
        ]
        assert len(set(split_by_hash(names).values())) == 1
    before = [by_hash(f"{number:06}", 1) == by_hash(f"M{number:06}", 1) for number in range(300)]
    assert not all(before)


def test_other_names_do_not_lose_a_letter():
    names = ["Mary", "M12a", "Mm12", "m_", "_mirror", "mirror", "am_x", "M", "12M"]
    assert [original_name(name) for name in names] == names


def test_few_takes_keep_their_pieces_and_mirror_images_together():
    for variant in range(200):
        names = [f"{mark}{variant}{take}#{piece}" for mark in ("", "M") for take in "123" for piece in range(3)]
        splits = split_by_hash(names)
        assert all(
            len({splits[name] for name in names if name[:-2].endswith(f"{variant}{take}")}) == 1 for take in "123"
        )
        assert {"train", "val"} <= set(splits.values())
        two = split_by_hash(names[:2] + names[3:5])
        assert sorted(two.values()) == ["train", "train", "val", "val"]


def test_one_take_in_pieces_is_split_by_time():
    pieces = [ClipLength(name, 100, None) for name in ("5#0", "5#1", "M5#0")]
    assert split_clips(pieces, "auto") == split_clips(pieces, "time")
    assert split_clips(pieces, "auto", 1) == split_clips(pieces, "hash", 1)


def test_version_1_takes_a_mirror_image_for_a_take_of_its_own():
    names = [f"{mark}{number:06}" for mark in ("", "M") for number in range(2000)]
    known = {"000002": "test", "000005": "val", "M000001": "test", "M000014": "val"}  # as version 0.2 had them
    splits = split_by_hash(names, 1)
    assert {name: splits[name] for name in known} == known
    mirrored = sum(splits[f"{number:06}"] != splits[f"M{number:06}"] for number in range(2000))
    assert mirrored > 500
    now = split_by_hash(names)
    assert all(now[f"{number:06}"] == now[f"M{number:06}"] for number in range(2000))
    assert split_clips([ClipLength(name, 20, None) for name in names], "hash", 1) == [
        Segment(name, 0, 20, splits[name]) for name in names
    ]


def test_appended_clips_without_a_split_leave_the_official_one_as_it_is():
    listed = [ClipLength(f"{number:06}", 20, split) for number, split in enumerate(("train", "train", "val", "test"))]
    listed.append(ClipLength("M000000", 20, "additional"))
    names = [*(f"M{number:06}" for number in (1, 2, 3)), "000003#1", "000000#1", "walk", "walk_mirror"]
    splits = {
        part.name: part.split
        for part in split_clips([*listed, *(ClipLength(name, 20, None) for name in names)], "auto")
    }
    assert [splits[clip.name] for clip in listed] == [clip.split for clip in listed]
    assert [splits[name] for name in names[:4]] == ["train", "val", "test", "test"]
    assert splits["000000#1"] == "additional"  # its recording is in train, and its mirror image is not
    assert splits["walk"] == splits["walk_mirror"] == by_hash("walk")
    before = [*listed, ClipLength("x", 20, None)]
    assert split_clips(before, "auto", 1) == split_clips(before, "hash", 1)


def test_clips_that_are_there_keep_their_splits_and_added_ones_go_with_their_take():
    def listed(there, added, mode="auto", version=2):
        before = split_clips(there, mode, version)
        segments = split_added([*there, *added], before, mode, version)
        assert segments[: len(before)] == before
        return [tuple(segment[1:]) for segment in segments[len(before) :]]

    one, cut = [ClipLength("a", 20, None)], [(0, 16, "train"), (16, 18, "val"), (18, 20, "test")]
    others = [ClipLength(name, 20, None) for name in "bcdefghij"]
    assert listed(one, others) == [(0, 20, by_hash(clip.name)) for clip in others]
    assert listed(one, [ClipLength("a_mirror", 20, None)]) == cut == listed(others, one, "time")
    held_out = next(name for name in map(str, range(100)) if by_hash(name) == "test")
    moved = [ClipLength(held_out, 20, None)] * 1 + [ClipLength(f"{held_out}_mirror", 20, None)]
    assert listed(moved, [*others, ClipLength(f"{held_out}#0", 20, None)], "hash")[-1] == (0, 20, "train")
    official = [ClipLength("x", 20, "val"), ClipLength("y", 20, "train")]
    for version in (1, 2):
        assert listed(official, others, version=version) == [(0, 20, by_hash(clip.name, version)) for clip in others]
    assert listed(official, [ClipLength("x#1", 20, None), ClipLength("y_mirror", 20, "test")]) == [
        (0, 20, "val"),
        (0, 20, "test"),
    ]
