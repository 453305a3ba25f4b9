"""Slurm, played on this machine: jobs whose nodes are groups of processes, for tests of what srun starts.

A job runs a batch script. In it, `srun` starts the tasks with the variables that Slurm sets, each in a session of its
own; its status is the largest of theirs, 128 and the signal's number for one that a signal ended. `scontrol requeue`
is noted.
"""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.ranks import bare_environment

NODES, TASKS_PER_NODE = 2, 2
_CLIENT = f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__)}" "$(basename "$0")" "$@"\n'


class Job:
    """A job in a folder of its own, started by `sbatch SCRIPT FLAGS`; a requeued one is started again by `start`."""

    def __init__(self, folder: Path, script: Path, *flags: str, number: int = 4711, **variables: str) -> None:
        self.folder, self.command = folder, ["bash", str(script), *flags]
        (folder / "bin").mkdir()
        for name in ("srun", "scontrol"):
            client = folder / "bin" / name
            client.write_text(_CLIENT)
            client.chmod(client.stat().st_mode | stat.S_IXUSR)
        self.environment = bare_environment(folder, **variables)
        self.environment |= {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PLAYED_SLURM": str(folder),
            "SLURM_JOB_ID": str(number),
            "SLURM_JOB_NAME": "job",
            "SLURM_JOB_NODELIST": "127.0.0.[1-2]",
            "SLURM_NNODES": str(NODES),
            "SLURM_NTASKS_PER_NODE": str(TASKS_PER_NODE),
            "SLURM_NTASKS": str(NODES * TASKS_PER_NODE),
            "SLURM_CPUS_PER_TASK": "1",
            # The script itself gets these too.
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0",
            "SLURM_TASK_PID": "1",
        }
        self.start()

    def start(self) -> None:
        with (self.folder / "job.log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def said(self) -> str:
        return (self.folder / "job.log").read_text()

    def signal(self, number: int) -> None:
        """Signals every task, but not the script, as `sbatch --signal` does."""
        for task in self.tasks():
            os.kill(task, number)

    def tasks(self) -> list[int]:
        file = self.folder / "tasks"
        return [int(line) for line in file.read_text().split()] if file.is_file() else []

    def requeued(self) -> list[str]:
        file = self.folder / "requeued"
        return file.read_text().split() if file.is_file() else []

    def wait_for(self, condition, seconds: float = 180.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def end(self) -> None:
        """Kills what is left."""
        for task in self.tasks():
            try:
                os.killpg(task, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.kill()
        self.process.wait()


def variables_of_task(number: int, job: Mapping[str, str], step: int = 0) -> dict[str, str]:
    """The variables that srun sets for a task of the two nodes."""
    node, local = divmod(number, TASKS_PER_NODE)
    of_task = {"SLURM_PROCID": number, "SLURM_LOCALID": local, "SLURM_NODEID": node, "SLURM_STEP_ID": step}
    return {
        **{name: str(value) for name, value in of_task.items()},
        "SLURM_STEPID": str(step),
        "SLURM_STEP_NUM_TASKS": str(NODES * TASKS_PER_NODE),
        "SLURM_STEP_NUM_NODES": str(NODES),
        "SLURM_STEP_TASKS_PER_NODE": f"{TASKS_PER_NODE}(x{NODES})",
        "SLURM_STEP_NODELIST": job.get("SLURM_JOB_NODELIST", ""),
        "SLURM_SRUN_COMM_HOST": "127.0.0.1",
    }


def _srun(words: Sequence[str]) -> int:
    """Starts the tasks, and returns the largest status."""
    command = list(words)
    while command and command[0].startswith("--"):
        del command[0]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **variables_of_task(number, os.environ)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for number in range(NODES * TASKS_PER_NODE)
    ]
    Path(os.environ["PLAYED_SLURM"], "tasks").write_text("\n".join(str(task.pid) for task in started))
    statuses = [task.wait() for task in started]
    return max(status if status >= 0 else 128 - status for status in statuses)


def _scontrol(words: Sequence[str]) -> int:
    assert words[0] == "requeue", words
    with Path(os.environ["PLAYED_SLURM"], "requeued").open("a") as file:
        file.write(f"{words[1]}\n")
    return 0


if __name__ == "__main__":
    sys.exit({"srun": _srun, "scontrol": _scontrol}[sys.argv[1]](sys.argv[2:]))
