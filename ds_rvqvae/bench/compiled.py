"""Compares the compiled step of a profile with the step that is not compiled: speed, losses and what was compiled."""

import statistics
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from ds_rvqvae.bench.step import DEMO_CLIPS, DEMO_FRAMES, in_turns, make_trainer, with_motion
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.train.trainer import Trainer

COMPARED = 30
"""Steps whose losses are compared."""


class _Pair(NamedTuple):
    """Two trainers with the same first weights and batches, after the same number of steps."""

    uncompiled: Trainer
    compiled: Trainer
    losses: dict[str, list[float]]
    """Their losses in these steps."""
    first_step_s: float
    """Seconds of the compiled trainer's first step."""
    graphs: int
    """Graphs compiled in that step."""

    def close(self) -> None:
        for trainer in (self.uncompiled, self.compiled):
            trainer.close()
        dist.barrier()


def measure_compiled(
    profile: Profile, rounds: int, progress: bool = False, asked: Collection[str] = (), steps: int = COMPARED
) -> dict[str, Any]:
    """Times the compiled and the uncompiled step in turns, and compares their losses over the first `steps` steps.

    Compiled nets draw other random numbers, and round to bf16 at other places, so that other codes are nearest. So
    losses are compared in fp32, without block dropout and input noise; a profile with any of these is compiled twice.

    Args:
        profile: without `rvqvae.data.path`, demo motion is made.
        rounds: each way takes one step per round, after two rounds that do not count.
        asked: paths of the keys that the user has given.

    Returns:
        `step_s` and `uncompiled_step_s`, medians; their `spread_s`; `first_step_s`, with the compiler's time;
        `losses` of both, and `loss_difference`, the largest relative one; `graphs`; `graph_breaks`; `recompilations`,
        graphs compiled after the first step; and the `mode`.

    Raises:
        UserError: motion that cannot be trained on, or no compiler.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        profile = with_motion(profile, folder, DEMO_CLIPS, DEMO_FRAMES)
        exact = profile.with_values(
            {"bf16.enabled": False, "rvqvae.model.dropout": 0.0, "rvqvae.model.input_noise": 0.0}
        )
        pair = _start(exact, folder / "exact", asked, steps)
        losses = pair.losses
        if exact != profile:
            pair.close()
            pair = _start(profile, folder / "timed", asked, 1)
        ways = {"uncompiled_step": pair.uncompiled.step, "step": pair.compiled.step}
        seconds = in_turns(ways, pair.compiled.device, rounds, progress)
        graphs, breaks = _graphs(), sum(counters["graph_break"].values())
        pair.close()
    return {
        **{f"{name}_s": statistics.median(taken) for name, taken in seconds.items()},
        "spread_s": {name: [min(taken), max(taken)] for name, taken in seconds.items()},
        "first_step_s": pair.first_step_s,
        "losses": losses,
        "loss_difference": max(abs(one - other) / abs(one) for one, other in zip(*losses.values(), strict=True)),
        "graphs": graphs,
        "graph_breaks": breaks,
        "recompilations": graphs - pair.graphs,
        "mode": profile.rvqvae.training.compile_mode,
    }


def _start(profile: Profile, folder: Path, asked: Collection[str], steps: int) -> _Pair:
    """Returns trainers of the profile, compiled and not, after `steps` steps each."""
    torch._dynamo.reset()
    counters.clear()
    trainers, losses, first_s, graphs = dict[str, Trainer](), dict[str, list[float]](), 0.0, 0
    for name in ("uncompiled", "compiled"):
        chosen = profile.with_values({"rvqvae.training.compile": name == "compiled"})
        trainers[name] = trainer = make_trainer(chosen, folder / name, asked)
        trainer.initialize_codebooks()
        began = time.perf_counter()
        losses[name] = [float(trainer.step().loss)]
        first_s, graphs = time.perf_counter() - began, _graphs()
        losses[name] += [float(trainer.step().loss) for _ in range(steps - 1)]
    return _Pair(trainers["uncompiled"], trainers["compiled"], losses, first_s, graphs)


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]
