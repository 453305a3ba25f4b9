"""Spread over clips: intervals of ratios, paired differences, and where there are none."""

import math

import numpy as np
import pytest

from ds_rvqvae.tokenizer.scores.spread import ClipScore, differences, intervals


def make_clips(values, frames=None, key="l1"):
    frames = [100] * len(values) if frames is None else frames
    pairs = enumerate(zip(values, frames, strict=True))
    return [ClipScore(str(at), 0, count, {key: (value * count, count)}) for at, (value, count) in pairs]


def test_an_interval_of_equal_clips_is_that_of_a_mean():
    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = intervals(make_clips(values))["l1"]
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.02) and high == pytest.approx(
        values.mean() + half, abs=0.02
    )
    assert intervals(make_clips(values))["l1"] == (low, high)  # the same draws


def test_a_long_clip_weighs_more():
    # One clip of 900 frames with an error of 1, and one of 100 with 0: a draw has twice the one, twice the other, or
    # both, which is 0.9.
    clips = make_clips([1.0, 0.0], [900, 100])
    assert intervals(clips)["l1"] == (0.0, 1.0)
    frames = np.repeat([900, 100], 200)
    low, high = intervals(make_clips(frames / 900 // 1, frames))["l1"]
    assert low < 0.9 < high and high - low < 0.06


def test_a_paired_difference_is_surer_than_its_two_scores():
    hard = np.random.default_rng(4).uniform(1, 50, 60)
    first, second = make_clips(hard + 0.5), make_clips(hard)
    apart = [intervals(clips)["l1"] for clips in (first, second)]
    assert apart[0][0] < apart[1][1]  # the intervals overlap
    found = differences(first, second)["l1"]
    assert found["difference"] == pytest.approx(0.5) and found["interval"] == pytest.approx((0.5, 0.5))
    assert found["is_certain"] is True
    assert differences(second, first)["l1"]["difference"] == pytest.approx(-0.5)
    noisy = make_clips(hard + np.random.default_rng(5).normal(0, 1, 60))
    found = differences(noisy, second)["l1"]
    assert found["is_certain"] is False and found["interval"][0] < 0 < found["interval"][1]
    assert differences(first, first)["l1"]["is_certain"] is False


def test_no_interval_where_there_is_none():
    assert intervals(make_clips([1.0])) == {"l1": None}
    assert intervals([]) == {}
    assert intervals(make_clips([1.0, math.nan, 2.0])) == {"l1": None}
    assert make_clips([math.nan])[0].described()["l1"] is None
    one = differences(make_clips([1.0]), make_clips([0.5]))["l1"]
    assert one == {"difference": 0.5, "interval": None, "is_certain": None}
    # Feet that stand in one clip of four only: a draw without that clip has no number.
    clips = make_clips([1.0, 2.0, 3.0, 4.0], [0, 0, 0, 10], "foot_sliding")
    assert intervals(clips) == {"foot_sliding": None}
    assert clips[0].described()["foot_sliding"] is None and clips[3].described()["foot_sliding"] == 4.0


def test_other_clips_are_not_subtracted():
    with pytest.raises(ValueError, match="the same clips"):
        differences(make_clips([1.0, 2.0]), make_clips([1.0, 2.0], [100, 96]))
