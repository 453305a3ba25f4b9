"""Mean, standard deviation and range of many frames, whatever the order and the parts."""

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
