"""Environment variables: remove leftovers of other programs and runs, and set those by which ranks find this package
and each other."""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ds_rvqvae.errors import UserError
from ds_rvqvae.process.interfaces import is_loopback, settle_interfaces
from ds_rvqvae.process.slurm import settle_task
from ds_rvqvae.runs.folder import (
    RANK_LAUNCHER,
    RUN_VARIABLE,
    SAID_VARIABLE,
    STORE_CONTENT_VARIABLE,
    STORE_VARIABLE,
)
from ds_rvqvae.runs.heartbeat import HEARTBEAT_VARIABLE

LAUNCHER_VARIABLE = "DS_RVQVAE_LAUNCHER"
"""Environment variable with the process number of our launcher; the run's other variables count only below it."""

# A name that ends in an underscore stands for all names that begin with it.
_OF_A_RUN = (
    *(HEARTBEAT_VARIABLE, RUN_VARIABLE, SAID_VARIABLE),
    *(STORE_VARIABLE, STORE_CONTENT_VARIABLE, LAUNCHER_VARIABLE),
)
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that a launcher sets for every rank."""
_OF_TORCHRUN = ("TORCHELASTIC_", "ROLE_", "GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Variables that torchrun adds: with TORCHELASTIC_USE_AGENT_STORE no rank opens the port that all others wait for."""
_OF_MPI = ("OMPI_COMM_WORLD_",)
"""DeepSpeed's engine compares one of them with LOCAL_RANK."""
_OTHERS = (
    *("CROSS_RANK", "CROSS_SIZE", "TORCH_DISTRIBUTED_USE_TORCHCOMMS"),
    *("PYTHONINSPECT", "PYTHONSTARTUP"),  # an interpreter that turns interactive at the end loses its exit status
)


def without_leftovers(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables for processes that our launcher starts, without those of other ranks or runs."""
    kept = dict(environment)
    _remove(kept, (*_OF_A_RUN, *_OF_A_RANK, *_OF_TORCHRUN, *_OF_MPI, *_OTHERS))
    if not kept.get("DEEPSPEED_TIMEOUT", "10").strip().isdecimal():
        del kept["DEEPSPEED_TIMEOUT"]  # DeepSpeed cannot even be imported with it
    return kept


def for_modules(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns variables with which `python -m` finds this package even if it is not installed, and (from Python 3.11
    on) imports no file of the working folder instead of a module."""
    found = {**environment, "PYTHONSAFEPATH": "1"}
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):  # these are found anyway, and hold other packages too
        found["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [environment.get("PYTHONPATH")])])
    return found


def settle_rank(environment: MutableMapping[str, str]) -> None:
    """Removes from a rank's environment the variables that its launcher did not set, and sets those that are missing:
    the places of ranks that srun started, and the network interfaces.

    Raises:
        UserError: some variables of a rank are set, but not all; or Slurm's do not fit; or no interface does.
    """
    above = _lines_above()
    if environment.get(LAUNCHER_VARIABLE) not in [str(pid) for pid, _ in above]:
        _remove(environment, _OF_A_RUN)
    if "RANK" not in environment:
        meeting = {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if environment.get(name)}
        _remove(environment, (*_OF_A_RANK, *_OF_TORCHRUN))
        settle_task(environment, meeting)
    elif any(RANK_LAUNCHER in line for _, line in above[:1]):
        _remove(environment, _OF_TORCHRUN)
    _remove(environment, _OF_MPI)
    missing = [name for name in _OF_A_RANK if name not in environment]
    if "RANK" in environment and missing:
        raise UserError(
            f"RANK is set in the environment, but not {' and '.join(missing)}; a launcher sets all of them: unset RANK "
            "for a run of one rank"
        )
    if environment.get("WORLD_SIZE", "1") != "1":
        settle_interfaces(environment, on_several_machines(environment))


def on_several_machines(environment: Mapping[str, str]) -> bool:
    """Returns whether the ranks run on several machines, from the variables of a rank."""
    if "CROSS_SIZE" in environment:  # deepspeed's number of hosts
        return environment["CROSS_SIZE"] != "1"
    if "LOCAL_WORLD_SIZE" in environment:  # torchrun's, and set for ranks that srun started
        return environment["LOCAL_WORLD_SIZE"] != environment["WORLD_SIZE"]
    return not is_loopback(environment["MASTER_ADDR"])


def _remove(environment: MutableMapping[str, str], names: Sequence[str]) -> None:
    whole, beginnings = set(names), tuple(name for name in names if name.endswith("_"))
    for name in list(environment):
        if name in whole or name.startswith(beginnings):
            del environment[name]


def processes_above() -> list[psutil.Process]:
    """Returns the parent processes, the nearest first, as far as the system shows them to this user."""
    found: list[psutil.Process] = []
    with suppress(psutil.Error):  # with hidepid=1, processes of other users exist but cannot be read
        process = psutil.Process().parent()
        while process is not None:
            found.append(process)
            process = process.parent()
    return found


def _lines_above() -> list[tuple[int, str]]:
    """Returns number and command line of each parent process, the nearest first."""
    found = []
    for process in processes_above():
        try:
            found.append((process.pid, " ".join(process.cmdline())))
        except psutil.Error:
            continue
    return found
