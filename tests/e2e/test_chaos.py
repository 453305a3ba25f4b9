"""A run killed three times equals one that never was; `python -m tests.e2e.chaos` is the long form."""

import pytest

from tests.e2e.chaos.driver import Driver
from tests.e2e.chaos.plan import MOMENTS, TARGETS, Kill, plan_kills

pytestmark = pytest.mark.processes


def test_a_run_killed_three_times_ends_like_one_that_never_was(tmp_path):
    driver = Driver(tmp_path, total_iter=30)
    driver.reference()
    kills = [
        Kill("rank 1", "save", saves_before=1, fraction=0.1),
        Kill("launcher", "training", seconds=0.5),
        Kill("launch.py", "save", fraction=0.3),
    ]
    record = driver.hurt_run(1, kills)
    assert record.faults == [] and record.compared_equal
    assert [done.kill for done in record.rounds] == kills
    assert any(done.in_save for done in record.rounds)
    assert "global_step" in record.rounds[0].resumed


def test_the_seed_decides_every_kill():
    kills = plan_kills(60, seed=0)
    assert kills == plan_kills(60, seed=0) != plan_kills(60, seed=1)
    assert {kill.target for kill in kills[:4]} == set(TARGETS)
    assert sorted(kill.moment for kill in kills[:4]) == sorted(MOMENTS)
