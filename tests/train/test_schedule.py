"""The learning rate by step."""

import pytest

from ds_rvqvae.profile import ScheduleConfig
from ds_rvqvae.train.schedule import learning_rate


def test_steps_down_by_gamma_at_each_milestone():
    schedule = ScheduleConfig(milestones=[50_000, 200_000, 400_000], gamma=0.05)
    rates = {0: 2e-4, 49_999: 2e-4, 50_000: 1e-5, 199_999: 1e-5, 200_000: 5e-7, 400_000: 2.5e-8}
    for step, rate in rates.items():
        assert learning_rate(step, 2e-4, schedule) == pytest.approx(rate)


def test_warm_up_rises_in_equal_steps_and_ends_at_the_base():
    schedule = ScheduleConfig(milestones=[], warm_up_iter=4)
    assert [learning_rate(step, 1.0, schedule) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
