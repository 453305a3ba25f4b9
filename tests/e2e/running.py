"""A launcher with its ranks, started as a user does, for tests that disturb it."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.ranks import ROOT, bare_environment
from tests.train.small import SMALL

LAUNCHER = [sys.executable, str(ROOT / "launch" / "train_8x4090.py")]


class Launched:
    """A launcher of the small run in a folder of its own, with its output and every process that it started."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        *flags: str,
        slots: int = 2,
        by: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ):
        self.folder, self._said = folder, folder / f"said-{time.monotonic_ns()}"
        cpu = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(slots), "OMP_NUM_THREADS": "1", **(variables or {})}
        command = [*by, *LAUNCHER, *SMALL, f"--data_path={data}", "--batch_size=4", *flags]
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                command, cwd=folder, env=bare_environment(folder, **cpu), stdout=said, stderr=said
            )
        self.family: dict[int, psutil.Process] = {}

    def said(self) -> str:
        return self._said.read_text()

    def ranks(self) -> list[psutil.Process]:
        """Returns the running ranks, by rank; also notes all processes."""
        self.family |= {process.pid: process for process in psutil.Process(self.process.pid).children(recursive=True)}
        ranks = {}
        for process in self.family.values():
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                line = process.cmdline()
                local = [word.partition("=")[2] for word in line if word.startswith("--local_rank=")]
                # Workers that load data have the command line of their rank.
                if local and "deepspeed.launcher.launch" in process.parent().cmdline():
                    ranks[int(local[0])] = process
        return [ranks[rank] for rank in sorted(ranks)]

    def wait_for(self, condition, seconds: float = 120.0) -> None:
        """Waits until a condition holds while the launcher runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def end(self) -> list[psutil.Process]:
        """Kills the processes that are left and returns them; none after a run that ended as it should."""
        left = [
            process
            for process in self.family.values()
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        ]
        for process in left:
            process.kill()
        self.process.kill()
        self.process.wait()
        return left
