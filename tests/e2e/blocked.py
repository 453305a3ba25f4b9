"""Makes ranks of a real run wait inside gloo for one that sleeps or runs out of memory.

`variables` gives a launcher's environment variables for this; its ranks import this module at their start.
"""

import os
import sys
import threading
import time
from pathlib import Path

from tests.ranks import ROOT

SITE = "import os\nif 'LOCAL_RANK' in os.environ:\n    from tests.e2e.blocked import play\n    play()\n"
_FOLDER, _PLAN = "TESTS_BLOCKED_FOLDER", "TESTS_BLOCKED_PLAN"


def variables(folder: Path, what: str, victim: int, step: int) -> dict[str, str]:
    """Returns environment variables for a launcher whose rank `victim` does `what` in place of a step.

    Args:
        folder: for files that tell how far the ranks are.
        what: `sleep`: the others wait in that step's all-reduce. `memory`: the others wait for messages of one another,
            as ranks that wait for a GPU do not notice a lost connection, and then the rank runs out of memory.
        step: the last finished step before that.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join((str(folder), str(ROOT)))
    return {_FOLDER: str(folder), _PLAN: f"{what} {victim} {step}", "PYTHONPATH": path}


def waiting(folder: Path) -> int:
    """Returns how many ranks have come to that step, the victim included."""
    return len(list(folder.glob("waiting-*")))


def play() -> None:
    """Changes the trainer of this rank as soon as it is imported."""
    threading.Thread(target=_patch, daemon=True).start()


def _patch() -> None:
    while (Trainer := getattr(sys.modules.get("ds_rvqvae.train.trainer"), "Trainer", None)) is None:  # noqa: N806
        time.sleep(0.01)
    folder = Path(os.environ[_FOLDER])
    what, victim, at = os.environ[_PLAN].split()
    step = Trainer.step

    def played(trainer):
        if trainer.steps_done != int(at):
            return step(trainer)
        (folder / f"waiting-{trainer.rank}").touch()
        if trainer.rank != int(victim):
            if what == "memory":
                _wait_in_ring([rank for rank in range(trainer.world_size) if rank != int(victim)], trainer.rank)
            return step(trainer)
        while what == "sleep" or waiting(folder) < trainer.world_size:
            time.sleep(0.1)
        time.sleep(1.0)  # until the others wait
        from tests.train.limited import limited_memory

        (folder / "event").write_text(str(time.time()))
        with limited_memory(0):
            return step(trainer)

    Trainer.step = played


def _wait_in_ring(ranks: list[int], own: int) -> None:
    import torch
    import torch.distributed as dist

    dist.recv(torch.zeros(1), src=ranks[(ranks.index(own) + 1) % len(ranks)])
