"""The plan of kills: which process, and when. All of it follows from the seed."""

import random
from dataclasses import dataclass

TARGETS = ("rank 0", "rank 1", "launcher", "launch.py")
"""Processes to kill: a rank, our launcher, or deepspeed's process that starts the ranks."""
MOMENTS = ("save", "save", "training", "any")
START_SECONDS = 10.0
TRAINING_SECONDS = 3.0
KILLS_A_RUN = (5, 7)
"""The smallest and largest number of kills per run."""


@dataclass(frozen=True)
class Kill:
    """One kill -9.

    Moments: `save`, within the save after the next `saves_before`, at `fraction` of the time that a save takes;
    `training`, `seconds` after the first step since the start; `any`, `seconds` after the start itself.
    """

    target: str
    moment: str
    seconds: float = 0.0
    saves_before: int = 0
    fraction: float = 0.0


def plan_kills(rounds: int, seed: int) -> list[Kill]:
    """Returns as many kills as rounds: of every four, one for each target, and two during a save."""
    rng = random.Random(seed)
    kills: list[Kill] = []
    while len(kills) < rounds:
        targets, moments = rng.sample(TARGETS, len(TARGETS)), rng.sample(MOMENTS, len(MOMENTS))
        for target, moment in zip(targets, moments, strict=True):
            limit = {"save": 0.0, "training": TRAINING_SECONDS, "any": START_SECONDS}[moment]
            kills.append(Kill(target, moment, rng.uniform(0, limit), rng.randrange(3), rng.random()))
    return kills[:rounds]
