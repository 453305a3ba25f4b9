"""The learning rate as a pure function of the step, so that resuming needs nothing but the step."""

from bisect import bisect_right

from ds_rvqvae.profile import ScheduleConfig


def learning_rate(step: int, base: float, schedule: ScheduleConfig) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    A linear rise over `warm_up_iter` steps, then `base` times `gamma` for each milestone passed (T2M-GPT's schedule).
    """
    if step < schedule.warm_up_iter:
        return base * (step + 1) / (schedule.warm_up_iter + 1)
    return base * schedule.gamma ** bisect_right(schedule.milestones, step)
