"""The learning rate as a pure function of the step, so that resuming needs nothing but the step."""

import math
from bisect import bisect_right

from ds_rvqvae.profile import ScheduleConfig


def learning_rate(step: int, base: float, schedule: ScheduleConfig, total_iter: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0, of `total_iter`.

    A linear rise over `warm_up_iter` steps, then `base` times `gamma` for each milestone passed (T2M-GPT's schedule),
    or half a cosine wave that would reach nothing at `total_iter` (Loshchilov and Hutter 2017).
    """
    warm_up = schedule.warm_up_iter
    if step < warm_up:
        return base * (step + 1) / (warm_up + 1)
    if schedule.kind == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(total_iter - warm_up, 1)))
    return base * schedule.gamma ** bisect_right(schedule.milestones, step)
