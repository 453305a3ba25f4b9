"""The summary of a run: its table by rank, and the plan next to the measured peaks."""

import re

import pytest

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.plan import make_plan
from ds_rvqvae.text import GIB
from ds_rvqvae.train.readings import Peaks
from ds_rvqvae.train.summary import plan_of, summary_dict, summary_text

BUSY = Peaks(
    step_allocated_gib=2, allocated_gib=3, reserved_gib=3.5, used_gib=20.5, card_memory_gib=24, energy_wh=360,
    seconds=3600, allocation_retries=0,
)  # fmt: skip
IDLE = Peaks(
    step_allocated_gib=1, allocated_gib=1, reserved_gib=1.5, used_gib=4, card_memory_gib=24, energy_wh=180,
    seconds=3600, allocation_retries=0,
)  # fmt: skip


def cells(text):
    return [re.split(r"  +", line.strip()) for line in text.splitlines()[1:]]


def test_ranks_on_cpus_have_a_line_each_of_what_they_held():
    text = summary_text([Peaks(resident_gib=0.5, seconds=60), Peaks(resident_gib=1.25, seconds=61.4)], None)
    assert text.splitlines()[0] == "memory of each rank over 1 min 1 s:"
    assert cells(text) == [["peak resident"], ["rank 0", "0.50 GiB"], ["rank 1", "1.25 GiB"]]


def test_energy_and_power_are_summed_over_the_ranks_and_memory_is_not():
    text = summary_text([BUSY, IDLE], None)
    assert text.splitlines()[0] == "memory and energy of each rank over 1 h:"
    heading, *ranks, together = cells(text)
    assert heading == ["peak of tensors", "reserved", "GPU used", "of", "headroom", "energy", "mean power"]
    assert ranks[0] == ["rank 0", "3.00 GiB", "3.50 GiB", "20.50 GiB", "24.00 GiB", "3.50 GiB", "360.0 Wh", "360 W"]
    assert ranks[1] == ["rank 1", "1.00 GiB", "1.50 GiB", "4.00 GiB", "24.00 GiB", "20.00 GiB", "180.0 Wh", "180 W"]
    assert together == ["together", "540.0 Wh", "540 W"]
    assert len(set(map(len, text.splitlines()[1:]))) == 1


def test_one_rank_needs_no_sum_and_retries_are_shown_where_there_are_some():
    assert "together" not in summary_text([BUSY], None) and "retries" not in summary_text([BUSY], None)
    heading, rank = cells(summary_text([Peaks(resident_gib=1, allocation_retries=2)], None))
    assert (heading, rank) == (["peak resident", "retries"], ["rank 0", "1.00 GiB", "2"])


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (59.6, "1 min"), (3661, "1 h 1 min 1 s"), (7200, "2 h")])
def test_how_long_it_took_is_said_in_hours_minutes_and_seconds(seconds, words):
    assert f" over {words}:" in summary_text([Peaks(resident_gib=1, seconds=seconds)], None)


def test_the_plan_is_that_of_the_ranks_cards():
    profile = load_profile("baseline")
    plan, expected = plan_of(profile, 78, [BUSY, IDLE]), make_plan(profile, 78, 2, CARDS["4090"])
    assert (plan.gpus, plan.card.memory_bytes) == (2, 24 * GIB)
    assert (plan.allocated_bytes, plan.total_bytes) == (expected.allocated_bytes, expected.total_bytes)
    assert plan_of(profile, 78, [Peaks(resident_gib=1)]) is None


def test_plan_and_truth_are_beside_each_other():
    plan = plan_of(load_profile("baseline"), 78, [BUSY, IDLE])
    planned, total = (f"{count / GIB:.2f} GiB" for count in (plan.allocated_bytes, plan.total_bytes))
    assert summary_text([BUSY, IDLE], plan).splitlines()[-2:] == [
        f"  tensors: planned {planned} per GPU, peak in steps 2.00 GiB, "
        "at the start, in evaluations or saving 3.00 GiB",
        f"  GPU: planned {total}, used 20.50 GiB by all its processes",
    ]
    assert summary_text([IDLE], plan).splitlines()[-2].endswith("peak in steps 1.00 GiB")
    written = summary_dict([BUSY, IDLE], plan, 4, 9)
    assert (written["first_step"], written["last_step"]) == (4, 9)
    assert written["planned"]["total_gib"] * GIB == plan.total_bytes
    assert [(rank["headroom_gib"], rank["mean_power_w"]) for rank in written["ranks"]] == [(3.5, 360), (20, 180)]
