"""Environment variables: remove leftovers of other programs and runs, and set those by which ranks find this package,
their device and each other."""

import os
import re
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_text
from ds_rvqvae.gpu.nvml import Driver, NoDriverError, list_gpus
from ds_rvqvae.gpu.snapshot import cuda_order
from ds_rvqvae.host import VISIBLE, hides_all_gpus, shown_visible
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
ENVIRONMENT_FILE_VARIABLE = "DS_ENV_FILE"
"""Variable with the name of deepspeed's environment file, if it is not `.deepspeed_env`."""

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


def lines_for_other_hosts(environment: Mapping[str, str], added: Mapping[str, str], flags: Mapping[str, str]) -> str:
    """Returns the lines of an environment file for ranks that deepspeed starts over ssh: it passes on few variables of
    this process, and those of the file. The user's own files, `.deepspeed_env` at home and in this folder, are kept.

    Args:
        added: variables that count less than the user's.
        flags: variables that flags set, which count more.

    Raises:
        UserError: a line of the user's files is not of the form NAME=value.
    """
    lines = [f"{name}={value}" for name, value in added.items() if name not in flags]
    for folder in (Path.home(), Path()):
        file = folder / environment.get(ENVIRONMENT_FILE_VARIABLE, ".deepspeed_env")
        text = read_text(file) if file.is_file() else ""
        for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
            if not line or line.startswith("#"):
                continue  # deepspeed itself would end with a traceback
            if not re.fullmatch(r"\w+\s*=.*", line):
                raise UserError(f"{file}:{number}: write one variable per line, as NAME=value")
            lines.append(line)
    lines += [f"{name}={value}" for name, value in flags.items()]
    return "".join(f"{line}\n" for line in lines)


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


def is_first_of_host(environment: Mapping[str, str]) -> bool:
    """Returns whether a rank is the first of its host, before or after its variables are settled."""
    return environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", "0")) == "0"


def on_several_machines(environment: Mapping[str, str]) -> bool:
    """Returns whether the ranks run on several machines, from the variables of a rank."""
    if "CROSS_SIZE" in environment:  # deepspeed's number of hosts
        return environment["CROSS_SIZE"] != "1"
    if "LOCAL_WORLD_SIZE" in environment:  # torchrun's, and set for ranks that srun started
        return environment["LOCAL_WORLD_SIZE"] != environment["WORLD_SIZE"]
    return not is_loopback(environment["MASTER_ADDR"])


def settle_device(environment: MutableMapping[str, str]) -> str | None:
    """Sets in a rank's environment which device DeepSpeed takes, before DeepSpeed is imported. By itself it would
    train on the CPU wherever torch finds no GPU.

    A run is meant for GPUs if DS_ACCELERATOR is `cuda`, which our launcher sets for ranks on GPUs. If it is not set, a
    run is meant for GPUs if torch finds one, the NVIDIA driver lists one that CUDA_VISIBLE_DEVICES does not hide, or
    that variable names one. deepspeed's launcher sets that variable for CPU ranks too, so there it does not count.

    Returns:
        a message for the user: that the run trains on the CPU although DS_ACCELERATOR does not ask for that, or what
        torch warned of when it found the GPUs, for example that it was not built for them.

    Raises:
        UserError: the run is meant for GPUs, but torch cannot use one here for each rank; or CUDA_VISIBLE_DEVICES has a
            UUID of no GPU or of a MIG slice.
    """
    asked = environment.get("DS_ACCELERATOR")
    if asked not in (None, "cuda"):
        return None
    _number_visible(environment)
    found = _find_gpus(environment)
    if found.reason is None:
        environment["DS_ACCELERATOR"] = "cuda"
        return found.warning
    driver, meant = _driver_and_gpus(environment)
    meant = "DS_ACCELERATOR=cuda" if asked else meant
    if meant:
        raise UserError(
            f"{meant}, so this run is meant for GPUs, but {found.reason} ({driver}); {found.remedy}, or set "
            "DS_ACCELERATOR=cpu to train on the CPU"
        )
    environment["DS_ACCELERATOR"] = "cpu"
    return f"training on the CPU: {found.reason} ({driver}); DS_ACCELERATOR=cpu in the environment asks for the CPU"


def _number_visible(environment: MutableMapping[str, str]) -> None:
    """Replaces UUIDs in CUDA_VISIBLE_DEVICES by the GPUs' numbers: DeepSpeed's CUDA accelerator reads only numbers."""
    text = environment.get(VISIBLE, "")
    named = [entry.strip() for entry in text.split(",")]
    if not any(entry.startswith(("GPU-", "MIG-")) for entry in named):
        return
    shown = shown_visible(text)
    if any(entry.startswith("MIG-") for entry in named):
        raise UserError(
            f"{shown}: names a MIG slice, on which DeepSpeed cannot train; name GPUs by number or UUID (a rank gets "
            "the first slice of a GPU that is split)"
        )
    try:
        order = cuda_order(list_gpus(), environment)
    except NoDriverError as error:
        raise UserError(f"{shown}: no NVIDIA driver answers that knows UUIDs: {error}") from None
    if order is None or len(order) != len(named):
        raise UserError(
            f"{shown}: each entry must name one GPU, each another one; nvidia-smi -L shows numbers and UUIDs (where "
            "GPUs differ, numbers need CUDA_DEVICE_ORDER=PCI_BUS_ID)"
        )
    environment.update({VISIBLE: ",".join(map(str, order)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})


class _Found(NamedTuple):
    """The GPUs of this host, as torch finds them."""

    reason: str | None = None
    """Why torch cannot use one for each rank of this host; None if it can."""
    remedy: str = "install a build of torch for this driver (ds-rvqvae monitor shows what the driver supports)"
    warning: str | None = None
    """Torch's warning about GPUs that it can use, in one line."""


def _find_gpus(environment: Mapping[str, str]) -> _Found:
    import torch

    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return _Found(f"torch {torch.__version__} is built without CUDA")
    try:
        with warnings.catch_warnings(record=True) as caught:  # if it fails, one of them would repeat the error
            warnings.simplefilter("always")
            torch.cuda.init()  # type: ignore[no-untyped-call]
            count = torch.cuda.device_count()
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _Found(f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds none: {first.rstrip('.')}")
    ranks = 1
    if "RANK" in environment:
        ranks = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or 1)
    if count < ranks:
        reason = f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds {count} for {ranks} ranks"
        return _Found(reason, "start no more ranks than that on this host, or make more GPUs visible")
    return _Found(warning="; ".join(" ".join(str(one.message).split()) for one in caught) or None)


def _driver_and_gpus(environment: Mapping[str, str]) -> tuple[str, str]:
    """Returns what the NVIDIA driver is, and why a run is meant for GPUs; the latter is empty if it is not."""
    visible = environment.get(VISIBLE)
    if visible is not None and hides_all_gpus(visible):
        return f"{shown_visible(visible)} hides all GPUs", ""
    named = ""
    if visible is not None and not any(RANK_LAUNCHER in line for _, line in _lines_above()[:1]):
        named = f"{shown_visible(visible)} names GPUs"
    try:
        with Driver() as driver:
            count = len(driver.cards())
            text = f"NVIDIA driver {driver.version}, CUDA up to {driver.cuda_version or 'unknown'}"
    except (NoDriverError, UserError) as error:
        return f"no NVIDIA driver answers: {error}", named
    return text, named or (f"the NVIDIA driver lists {count} GPUs" if count else "")


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
