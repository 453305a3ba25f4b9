"""Ranks that Slurm's srun has started: their places, from the variables that it sets for each task."""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from ds_rvqvae.errors import UserError
from ds_rvqvae.host import hides_all_gpus
from ds_rvqvae.process.interfaces import is_loopback

_PORTS = range(20_000, 32_768)
"""Ports for rank 0, below those that systems give to outgoing connections."""
_STEPS_PER_JOB = 8
"""Ports between those of a job and of the next one, for steps of a job at the same time."""
TASK = "srun python -m ds_rvqvae.train"


@dataclass(frozen=True)
class Task:
    """A task of a step of srun.

    Attributes:
        rank: its number in the step.
        local_rank: its number on its node.
        ranks: tasks of the step.
        ranks_here: tasks of the step on this node.
        nodes: nodes of the step.
        first_node: the name of the node of task 0.
        port: the port at which task 0 waits for the others.
    """

    rank: int
    local_rank: int
    ranks: int
    ranks_here: int
    nodes: int
    first_node: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str], is_own: bool = True) -> "Task | None":
        """Reads a task's variables; None if srun did not start the process, or started a shell to work in.

        The script of a job is no task of srun, but it has some of a task's variables.

        Args:
            is_own: whether they are those of this process. Another one is taken for a task.

        Raises:
            UserError: a variable is missing or has another form.
        """
        if "SLURM_STEP_NUM_TASKS" not in environment or (is_own and _is_shell(environment)):
            return None
        node = _number(environment, "SLURM_NODEID")
        job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
        nodelist = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        return cls(
            rank=_number(environment, "SLURM_PROCID"),
            local_rank=_number(environment, "SLURM_LOCALID"),
            ranks=_number(environment, "SLURM_STEP_NUM_TASKS"),
            ranks_here=_counts(environment, "SLURM_STEP_TASKS_PER_NODE", node),
            nodes=_number(environment, "SLURM_STEP_NUM_NODES"),
            first_node=first_node(nodelist),
            port=_PORTS[(job * _STEPS_PER_JOB + step) % len(_PORTS)],
        )

    def variables(self) -> dict[str, str]:
        """Returns the variables that torch and DeepSpeed read."""
        places = {"RANK": self.rank, "LOCAL_RANK": self.local_rank, "WORLD_SIZE": self.ranks}
        here = {"LOCAL_WORLD_SIZE": self.ranks_here, "MASTER_PORT": self.port}
        first = "127.0.0.1" if self.nodes == 1 else self.first_node
        return {**{name: str(value) for name, value in (places | here).items()}, "MASTER_ADDR": first}


def settle_task(environment: MutableMapping[str, str], meeting: Mapping[str, str]) -> None:
    """Sets a rank's variables from those of srun, unless a launcher has set RANK.

    Args:
        meeting: MASTER_ADDR and MASTER_PORT, as far as the job sets them; they count more.

    Raises:
        UserError: the tasks do not fit the nodes.
    """
    task = None if "RANK" in environment else Task.of(environment)
    if task is None or task.ranks == 1:
        return
    if environment.get("DS_ACCELERATOR") != "cpu":
        _check_gpus(task, environment)
    address = meeting.get("MASTER_ADDR", "")
    if task.nodes > 1 and is_loopback(address):
        raise UserError(f"MASTER_ADDR={address}: {task.nodes} nodes cannot meet there; unset it")
    environment.update({**task.variables(), **meeting})


def check_srun_not_forgotten(environment: Mapping[str, str]) -> None:
    """Raises UserError if this process trains alone in a job of several tasks."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if "SLURM_JOB_ID" not in environment or tasks in ("", "1"):
        return
    if "RANK" not in environment and Task.of(environment) is None:
        raise UserError(
            f"SLURM_NTASKS={tasks}: the job has {tasks} tasks, but this process is none of them; start them by "
            f"`{TASK}`, or one rank by srun --ntasks=1"
        )


def check_one_launcher_per_node(environment: Mapping[str, str], joins_others: bool) -> None:
    """Raises UserError if srun has started several launchers, of which each would start all ranks.

    Args:
        joins_others: whether the launcher starts only the ranks of its own node, as with `--no_ssh`.
    """
    task = None if "RANK" in environment else Task.of(environment)
    if task is None or task.ranks == (task.nodes if joins_others else 1):
        return
    raise UserError(
        f"srun has started {task.ranks} launchers, each of which starts ranks itself; use `{TASK}` for one task per "
        "GPU, or srun --ntasks=1"
    )


def first_node(nodelist: str) -> str:
    """Returns the first host of a list as Slurm writes it: `node[01-03,07],gpu5` begins with node01."""
    first = re.match(r"(?:[^,\[\]]|\[[^\[\]]+\])+", nodelist)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodelist}: names no node")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _is_shell(environment: Mapping[str, str]) -> bool:
    """Returns whether this process belongs to a shell of `srun --pty` or salloc. Tasks that srun starts from such a
    shell have its variables, but no terminal."""
    return "SLURM_PTY_PORT" in environment and os.isatty(0)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise UserError(
            f"{name}={text}: srun sets this to a number for each of its tasks; start ranks by `{TASK}`, or unset "
            "SLURM_STEP_NUM_TASKS"
        )
    return int(text)


def _counts(environment: Mapping[str, str], name: str, node: int) -> int:
    """Returns the entry of a node in a variable such as `8(x2),4`."""
    counts: list[int] = []
    for entry in environment.get(name, "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry)
        counts += [int(found[1])] * int(found[2] or 1) if found else []
    if node >= len(counts):
        raise UserError(f"{name}={environment.get(name, '')}: has no number of tasks for node {node}")
    return counts[node]


def _check_gpus(task: Task, environment: Mapping[str, str]) -> None:
    """Raises UserError if the tasks of this node have fewer GPUs than there are tasks, as far as Slurm says."""
    on_node, visible = environment.get("SLURM_GPUS_ON_NODE", ""), environment.get("CUDA_VISIBLE_DEVICES")
    if on_node.isdecimal() and int(on_node) < task.ranks_here:
        raise UserError(
            f"{task.ranks_here} tasks on this node, which has {on_node} GPUs for the job (SLURM_GPUS_ON_NODE): ask for "
            f"--gres=gpu:{task.ranks_here} or fewer --ntasks-per-node"
        )
    if visible is None or hides_all_gpus(visible):  # the rank itself says that it finds no GPU
        return
    if len(visible.split(",")) < task.ranks_here:
        raise UserError(
            f"{task.ranks_here} tasks on this node, but a task sees only CUDA_VISIBLE_DEVICES={visible}: each must see "
            "the GPUs of all; ask for --gres=gpu:N in place of --gpus-per-task, or add --gpu-bind=none"
        )
