"""Which clips a shard takes, and what is written of it."""

from itertools import pairwise

import numpy as np

from ds_rvqvae.data.store.shards import plan_shards


def test_shards_take_about_the_same_bytes_and_every_clip_once():
    weights = np.random.default_rng(0).integers(0, 3 << 20, size=1000).tolist()
    plans = plan_shards([str(index) for index in range(1000)], weights, first=7)
    assert [name for plan in plans for name in plan.names] == [str(index) for index in range(1000)]
    assert [plan.index for plan in plans] == list(range(7, 7 + len(plans)))
    filled = [sum(weights[int(name)] for name in plan.names) for plan in plans]
    assert max(filled) <= 8 << 20 and all(sum(pair) > 8 << 20 for pair in pairwise(filled))
    assert [plan.names for plan in plan_shards(["a", "b"], [1 << 40, 5])] == [["a"], ["b"]]
