"""Read the GPUs that CUDA_VISIBLE_DEVICES names; a run uses them if no flag names others."""

from collections.abc import Sequence

from ds_rvqvae.errors import UserError, printable
from ds_rvqvae.gpu.nvml import Gpu
from ds_rvqvae.gpu.snapshot import has_uuid
from ds_rvqvae.host import VISIBLE, hides_all_gpus, shown_visible

_INSTEAD = (
    f"unset {VISIBLE}, or name GPUs in it or with --include; LOCAL_SIZE=8 in the environment trains on eight CPU ranks"
)


def entries(text: str) -> list[str]:
    """Returns the entries of the variable, in its order: numbers, UUIDs of GPUs, or beginnings of UUIDs.

    CUDA itself uses the entries before the first one that it does not understand, and none if one appears twice. Here
    both are errors, because a run on the wrong GPUs is worse.

    Raises:
        UserError: it names no GPU, or something that is not a GPU.
    """
    if hides_all_gpus(text):
        slurm = ", as SLURM sets it in a job without GPUs" if text.strip().lower() == "nodevfiles" else ""
        raise UserError(f"{shown_visible(text)}: hides every GPU{slurm}; {_INSTEAD}")
    named = [entry.strip() for entry in text.strip().removesuffix(",").split(",")]
    for entry in named:
        if entry.startswith("MIG-"):
            raise UserError(
                f"{shown_visible(text)}: {printable(entry)} is a MIG slice, on which deepspeed cannot start ranks; "
                "name GPUs by number or UUID (a rank gets the first slice of a GPU that is split)"
            )
        if not _is_number(entry) and not (entry.startswith("GPU-") and len(entry) > len("GPU-")):
            raise UserError(
                f"{shown_visible(text)}: {printable(entry) or 'an empty entry'} is not a GPU; write numbers or UUIDs "
                "as nvidia-smi -L shows them, separated by commas: 1,2"
            )
    return named


def visible_slots(text: str, gpus: Sequence[Gpu]) -> list[int]:
    """Returns the numbers of the GPUs that the variable names, as the driver counts them, in ascending order.

    Raises:
        UserError: as `entries` raises; or a GPU does not exist, matches several, or is named twice.
    """
    slots: list[int] = []
    for entry in entries(text):
        # The check of all slots finds a number that is too high, and names the existing GPUs.
        found = [int(entry)] if _is_number(entry) else [gpu.index for gpu in gpus if has_uuid(gpu, entry)]
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise UserError(f"{shown_visible(text)}: {entry} matches the UUIDs of GPUs {numbers}; write more of it")
        if not found:
            uuids = ", ".join(f"{gpu.index} {gpu.uuid}" for gpu in gpus)
            raise UserError(
                f"{shown_visible(text)}: no GPU has the UUID {printable(entry)}; there are {uuids or 'none'}"
            )
        if found[0] in slots:
            raise UserError(f"{shown_visible(text)}: names GPU {found[0]} twice")
        slots += found
    return sorted(slots)


def numbers_may_differ(text: str, gpus: Sequence[Gpu], order: str | None) -> bool:
    """Returns whether the variable's numbers may mean other GPUs to CUDA than to the driver.

    Without CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA counts the fastest first, which only matters if GPUs differ.
    """
    differ = len({gpu.name for gpu in gpus if gpu.name}) > 1
    return differ and order != "PCI_BUS_ID" and any(map(_is_number, entries(text)))


def _is_number(entry: str) -> bool:
    return entry.isascii() and entry.isdecimal()
