"""Mean, standard deviation and range of many frames, whatever their order and pieces."""

import json

import numpy as np

from ds_rvqvae.data.store.statistics import RunningStatistics


def test_running_statistics_keep_their_digits_far_from_zero():
    frames = (1e4 + np.random.default_rng(0).normal(size=(40_000, 3)) * 0.1).astype(np.float32)
    running, parts = RunningStatistics(3), [RunningStatistics(3) for _ in range(7)]
    for part, rows in zip(parts, np.array_split(frames, 7), strict=True):
        part.add(rows)
        running.merge(RunningStatistics.from_json(json.loads(json.dumps(part.to_json()))))
    mean, std = running.mean_and_std()
    exact = frames.astype(np.float64)
    assert np.allclose(mean, exact.mean(axis=0), rtol=1e-7) and np.allclose(std, exact.std(axis=0), rtol=1e-6)
    assert running.count == 40_000
    assert np.array_equal(running.minimum, frames.min(axis=0)) and np.array_equal(running.maximum, frames.max(axis=0))


def test_few_numbers_by_hand_and_what_another_has_seen():
    first, second = RunningStatistics(2), RunningStatistics(2)
    first.add(np.array([[1, 10], [3, 10]], np.float32))
    second.add(np.array([[8, -20]], np.float32))
    second.add(np.zeros((0, 2), np.float32))
    first.merge(second)
    mean, std = first.mean_and_std()
    # For 1, 3, 8: mean 4, squares 9 + 1 + 16; for 10, 10, -20: mean 0, squares 100 + 100 + 400.
    np.testing.assert_allclose(mean, [4, 0], atol=1e-6)
    np.testing.assert_allclose(std, [np.sqrt(26 / 3), np.sqrt(200)], rtol=1e-6)
    assert first.count == 3 and first.minimum.tolist() == [1, -20] and first.maximum.tolist() == [8, 10]


def test_nothing_seen_changes_nothing():
    nothing, something = RunningStatistics.from_json(RunningStatistics(2).to_json()), RunningStatistics(2)
    assert nothing.count == 0 and nothing.mean_and_std()[1].tolist() == [0, 0]
    something.add(np.array([[1, 2], [3, 6]], np.float32))
    before = something.to_json()
    something.merge(nothing)
    assert (
        something.to_json()
        == before
        == {
            "count": 2,
            "mean": [2.0, 4.0],
            "squares": [2.0, 8.0],
            "minimum": [1.0, 2.0],
            "maximum": [3.0, 6.0],
        }
    )
