from collections import Counter

import pytest

from ds_rvqvae.data.store.splits import ClipLength, Segment, split_by_hash, split_clips


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
