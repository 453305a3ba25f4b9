"""Killed and repeated commands end as undisturbed ones; `python -m tests.e2e.chaos` is the long form."""

import random

import pytest

from tests.e2e.chaos.commands import Commands
from tests.e2e.chaos.compare import newest_with_stops
from tests.e2e.chaos.driver import Driver
from tests.e2e.chaos.plan import MOMENTS, TARGETS, Kill, plan_kills

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = Driver(tmp_path_factory.mktemp("chaos"), total_iter=30)
    driver.reference()
    return driver


def test_a_run_killed_three_times_ends_like_one_that_never_was(driver):
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


def test_commands_that_are_killed_leave_what_is_whole_and_end_like_those_that_never_were(driver, tmp_path):
    commands = Commands(tmp_path / "commands", driver.work / "runs" / "reference")
    accounts = [commands.hurt(task, 2, random.Random(0)) for task in commands.tasks()]
    assert {account.name: account.faults for account in accounts} == {account.name: [] for account in accounts}
    assert all(account.kills == 2 and account.completed for account in accounts)


def test_the_seed_decides_every_kill():
    kills = plan_kills(60, seed=0)
    assert kills == plan_kills(60, seed=0) != plan_kills(60, seed=1)
    assert {kill.target for kill in kills[:4]} == set(TARGETS)
    assert sorted(kill.moment for kill in kills[:4]) == sorted(MOMENTS)


def test_a_checkpoint_that_a_stop_saved_may_take_the_place_of_an_older_one():
    expected = [54, 57, 60]
    right = ([54, 57, 60], [55, 57, 60], [57, 59, 60])
    wrong = ([51, 57, 60], [54, 55, 60], [54, 57], [54, 57, 60, 63])
    assert all(newest_with_stops(kept, expected) == kept for kept in right)
    assert not any(newest_with_stops(kept, expected) == kept for kept in wrong)
