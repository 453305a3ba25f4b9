"""The GPUs that CUDA_VISIBLE_DEVICES names, which a run takes where no flag names others."""

import shlex
from collections.abc import Sequence

from ds_rvqvae.errors import UserError, printable
from ds_rvqvae.gpu.nvml import Gpu
from ds_rvqvae.gpu.snapshot import has_uuid

VARIABLE = "CUDA_VISIBLE_DEVICES"
_INSTEAD = (
    f"unset {VARIABLE}, or name GPUs in it or by --include; with LOCAL_SIZE=8 in the environment eight CPU ranks train"
)


def shown(text: str) -> str:
    """The variable with its value, as a shell takes it."""
    return f"{VARIABLE}={shlex.quote(printable(text))}"


def hides_all(text: str) -> bool:
    """Whether CUDA finds no GPU: as the variable is set to nothing, to -1, or by SLURM where a job has none."""
    return text.strip().lower() in ("", "-1", "nodevfiles", "none", "void")


def entries(text: str) -> list[str]:
    """What the variable names, in its order: numbers, or UUIDs of GPUs or what those begin with.

    CUDA itself takes what stands before the first entry that it does not understand, and nothing where one stands
    twice; both are refused here, as a run on other GPUs than were meant is worse.

    Raises:
        UserError: it names no GPU, or something else than GPUs.
    """
    if hides_all(text):
        slurm = ", as SLURM sets it in a job without GPUs" if text.strip().lower() == "nodevfiles" else ""
        raise UserError(f"{shown(text)}: hides every GPU{slurm}; {_INSTEAD}")
    named = [entry.strip() for entry in text.strip().removesuffix(",").split(",")]
    for entry in named:
        if entry.startswith("MIG-"):
            raise UserError(
                f"{shown(text)}: {printable(entry)} is a MIG slice, of which deepspeed starts no ranks; name GPUs "
                "by number or UUID (a rank gets the first slice of a GPU that is split)"
            )
        if not _is_number(entry) and not (entry.startswith("GPU-") and len(entry) > len("GPU-")):
            raise UserError(
                f"{shown(text)}: {printable(entry) or 'an empty entry'} names no GPU; write numbers or UUIDs "
                "as nvidia-smi -L shows them, separated by commas: 1,2"
            )
    return named


def visible_slots(text: str, gpus: Sequence[Gpu]) -> list[int]:
    """The numbers of the GPUs that the variable names, by the driver's count, in rising order.

    Raises:
        UserError: as `entries`; or a GPU is not there, cannot be told from another, or is named twice.
    """
    slots: list[int] = []
    for entry in entries(text):
        # A number that is too high is left to the check of all slots, which names the GPUs there are.
        found = [int(entry)] if _is_number(entry) else [gpu.index for gpu in gpus if has_uuid(gpu, entry)]
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise UserError(f"{shown(text)}: {entry} is the beginning of the UUIDs of GPUs {numbers}; write more of it")
        if not found:
            uuids = ", ".join(f"{gpu.index} {gpu.uuid}" for gpu in gpus)
            raise UserError(f"{shown(text)}: no GPU has the UUID {printable(entry)}; there are {uuids or 'none'}")
        if found[0] in slots:
            raise UserError(f"{shown(text)}: names GPU {found[0]} twice")
        slots += found
    return sorted(slots)


def numbers_may_differ(text: str, gpus: Sequence[Gpu], order: str | None) -> bool:
    """Whether CUDA may mean other GPUs by the variable's numbers than the driver does.

    Without CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA counts the fastest first, which only matters where GPUs differ.
    """
    differ = len({gpu.name for gpu in gpus if gpu.name}) > 1
    return differ and order != "PCI_BUS_ID" and any(map(_is_number, entries(text)))


def _is_number(entry: str) -> bool:
    return entry.isascii() and entry.isdecimal()
