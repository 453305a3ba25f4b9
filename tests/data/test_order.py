"""The order of the data: pure functions of (seed, step) that use every window equally often."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_rvqvae.config.batch_sizes import windows_a_step
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.order import Balanced, BatchOrder, Shuffled
from ds_rvqvae.data.store.splits import balanced, group_of, shares_text
from ds_rvqvae.errors import UserError

SIZES = [64, 96, 128, 160]


def plain(num_windows: int, batch: int, seed: int = 0) -> BatchOrder:
    return BatchOrder({128: Shuffled(num_windows, seed)}, {128: batch}, seed)


def several(seed: int = 0, counts=(50, 31, 20, 7), batches=(24, 16, 12, 9)) -> BatchOrder:
    sequences = {size: Shuffled(count, seed, 1, size) for size, count in zip(SIZES, counts, strict=True)}
    return BatchOrder(sequences, dict(zip(SIZES, batches, strict=True)), seed)


def by_group(counts: dict[str, int], weights: dict[str, float] | None = None):
    """Returns groups of windows with one clip per group."""
    return balanced(list(counts), np.repeat(np.arange(len(counts)), list(counts.values())), weights or {}, "speaker")


@pytest.mark.parametrize(("num_windows", "batch"), [(10, 3), (10, 10), (3, 10), (7, 50), (1, 4)])
def test_every_window_comes_once_an_epoch(num_windows, batch):
    order = plain(num_windows, batch)
    samples = np.concatenate([order.step(step).windows for step in range(num_windows * 2)])
    for epoch in samples.reshape(-1, num_windows):
        assert sorted(epoch.tolist()) == list(range(num_windows))


def test_windows_of_one_length_keep_the_order_they_always_had():
    order = plain(100, 30, seed=5)
    drawn = np.concatenate([np.random.default_rng([5, epoch]).permutation(100) for epoch in range(3)])
    for step in range(10):
        samples = order.step(step)
        assert samples.window_size == 128
        assert np.array_equal(samples.windows, drawn[step * 30 : (step + 1) * 30])
        assert np.array_equal(samples.positions, np.arange(step * 30, (step + 1) * 30))
        assert samples.windows.dtype == samples.positions.dtype == np.int64


@pytest.mark.parametrize("make", [lambda seed: plain(100, 7, seed), several])
def test_the_order_is_a_function_of_seed_and_step(make):
    order = make(5)
    forwards = [order.step(step) for step in range(60)]
    for step in (59, 0, 31):
        again = make(5).step(step)
        assert all(np.array_equal(one, other) for one, other in zip(forwards[step], again, strict=True))
    other = make(6)
    assert not all(np.array_equal(forwards[step].windows, other.step(step).windows) for step in range(4))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 200), st.lists(st.integers(1, 40), min_size=4, max_size=4))
def test_lengths_come_evenly_and_every_window_once_an_epoch_of_its_length(seed, steps, counts):
    order = several(seed, counts)
    samples = [order.step(step) for step in range(steps)]
    for block in range(steps // 4):
        assert sorted(each.window_size for each in samples[block * 4 : block * 4 + 4]) == SIZES
    assert np.array_equal(
        np.concatenate([each.positions for each in samples]), np.arange(sum(len(s.windows) for s in samples))
    )
    for size, count in zip(SIZES, counts, strict=True):
        mine = [each.windows for each in samples if each.window_size == size]
        assert all(len(windows) == order.batches[size] for windows in mine)
        drawn = np.concatenate([*mine, np.empty(0, np.int64)])
        for epoch in range(len(drawn) // count):
            assert sorted(drawn[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))


def test_lengths_are_shuffled():
    order = several()
    blocks = {tuple(order.window_size(step) for step in range(first, first + 4)) for first in range(0, 160, 4)}
    assert len(blocks) > 10


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_ranks_and_micro_batches_cut_a_step_in_order(ranks, accumulation):
    data = DataConfig(window_size=128, window_sizes=SIZES)
    parts = ranks * accumulation
    batches = windows_a_step(data, 126, parts)
    assert batches == {64: 252, 96: 168, 128: 126, 160: 100}
    order = BatchOrder({size: Shuffled(500, 0, 1, size) for size in SIZES}, batches, 0)
    for step in range(8):
        whole = order.step(step)
        cut = [order.part(step, part, parts) for part in range(parts)]
        for name in ("windows", "positions"):
            together = np.concatenate([getattr(samples, name) for samples in cut])
            assert np.array_equal(together, getattr(whole, name))
        sizes = [stop - first for first, stop in (order.bounds(step, part, parts) for part in range(parts))]
        assert sizes == [len(samples.windows) for samples in cut] and max(sizes) - min(sizes) <= 1
        by_rank = [len(order.part(step, rank, ranks).windows) for rank in range(ranks)]
        assert by_rank == np.array(sizes).reshape(ranks, accumulation).sum(axis=1).tolist()


@pytest.mark.parametrize(
    ("name", "speaker", "set_name"),
    [
        ("2_scott_0_1_1", "2", ""),
        ("2_scott_0_1_1#3", "2", ""),
        ("clip0", "clip0", ""),
        ("01/01_01", "01", "01"),
        ("CMU/01/01_01", "01", "CMU"),
        ("CMU/01/01_01#0", "01", "CMU"),
        ("a#b/take", "a#b", "a#b"),
        ("beat_english_v2.0.0/smplxflame_30/2_scott_0_1_1#1", "2", "beat_english_v2.0.0"),
    ],
)
def test_the_group_of_a_clip(name, speaker, set_name):
    assert (group_of(name, "speaker"), group_of(name, "set")) == (speaker, set_name)


def test_versions_before_took_the_folder_of_beat2_clips_for_a_speaker():
    assert group_of("beat_english_v2.0.0/smplxflame_30/2_scott_0_1_1", "speaker", 1) == "smplxflame_30"


def test_shares_of_an_epoch_and_even_use_of_each_groups_windows():
    groups = by_group({"a": 60, "b": 5, "c": 35}, {"c": 2})
    assert groups.shares.tolist() == [0.25, 0.25, 0.5]
    assert shares_text(groups) == "a 25.0% (60.0%), b 25.0% (5.0%), c 50.0% (35.0%)"
    sequence = Balanced(groups, 3)
    for epoch in range(4):
        assert np.bincount(groups.of_window[sequence.epoch(epoch)]).tolist() == [25, 25, 50]
    # At any epoch's end, the windows of a group have been used equally often, or differ by one.
    used = np.bincount(sequence.take(0, 700), minlength=100)
    for group in range(3):
        counts = used[groups.of_window == group]
        assert counts.max() - counts.min() <= 1, counts
    assert not np.array_equal(sequence.epoch(0), sequence.epoch(1))
    assert np.array_equal(Balanced(groups, 3).epoch(5), sequence.epoch(5))
    assert not np.array_equal(Balanced(groups, 4).epoch(5), sequence.epoch(5))


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 30), min_size=1),
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.01, 100)),
    st.integers(0, 2**32),
)
def test_balance_has_its_shares_whatever_they_are(counts, weights, seed):
    groups = by_group(counts, {name: weight for name, weight in weights.items() if name in counts})
    total = sum(counts.values())
    samples = groups.samples(total)
    assert samples.sum() == total and np.abs(samples - groups.shares * total).max() < 1
    sequence = Balanced(groups, seed)
    drawn = Counter(groups.of_window[sequence.take(total, 2 * total)].tolist())
    assert [drawn[group] for group in range(len(groups.names))] == samples.tolist()


def test_weight_0_leaves_a_group_out():
    groups = by_group({"a": 10, "b": 10}, {"a": 0})
    assert set(Balanced(groups, 0).take(0, 50).tolist()) == set(range(10, 20))
    assert groups.reach[9] == 0 and groups.reach[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"scott": 2}, "rvqvae.data.weights: no speaker 'scott' in train; it has 'a', 'b'"),
        ({"a": 0, "b": 0}, "every speaker that has windows has weight 0"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, complaint):
    with pytest.raises(UserError, match=complaint):
        by_group({"a": 3, "b": 4}, weights)


def test_a_group_without_windows_of_a_length_leaves_its_share_to_the_others():
    groups = balanced(["a", "b", "c"], np.array([0, 0, 2, 2]), {"a": 3}, "set")
    assert groups.shares.tolist() == [0.75, 0, 0.25]
    assert np.bincount(groups.of_window[Balanced(groups, 0).epoch(0)]).tolist() == [3, 0, 1]


@pytest.mark.parametrize("count", [0, -1])
def test_no_windows_are_refused(count):
    with pytest.raises(ValueError, match="windows"):
        Shuffled(count, 0)
