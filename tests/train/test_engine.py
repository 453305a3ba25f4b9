"""The learning rate by step."""

import itertools

import pytest

from ds_rvqvae.config.training import ScheduleConfig
from ds_rvqvae.train.engine import learning_rate


def test_steps_down_by_gamma_at_each_milestone():
    schedule = ScheduleConfig(milestones=[50_000, 200_000, 400_000], gamma=0.05)
    rates = {0: 2e-4, 49_999: 2e-4, 50_000: 1e-5, 199_999: 1e-5, 200_000: 5e-7, 400_000: 2.5e-8}
    for step, rate in rates.items():
        assert learning_rate(step, 2e-4, schedule, 500_000) == pytest.approx(rate)


def test_warm_up_rises_in_equal_steps_and_ends_at_the_base():
    schedule = ScheduleConfig(milestones=[], warm_up_iter=4)
    assert [learning_rate(step, 1.0, schedule, 10) for step in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_cosine_falls_from_the_base_to_nothing_after_the_warm_up():
    schedule = ScheduleConfig(kind="cosine", warm_up_iter=4, milestones=[2])
    rates = [learning_rate(step, 1.0, schedule, 104) for step in range(104)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[54] == pytest.approx(0.5) and 0 < rates[103] < 0.001
    assert all(first > second for first, second in itertools.pairwise(rates[4:]))
