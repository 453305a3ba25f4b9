"""CUDA's numbers of the cards, which are not the driver's: `cuda:0` is the first that CUDA_VISIBLE_DEVICES names."""

from collections.abc import Mapping, Sequence

from ds_rvqvae.gpu.nvml import Gpu


def cuda_order(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> list[int] | None:
    """The driver's index of `cuda:0`, `cuda:1`, … in a process with that environment; None where it cannot be told.

    As CUDA reads CUDA_VISIBLE_DEVICES: numbers, UUIDs or what a UUID begins with, up to the first entry that names no
    card; nothing where an entry comes twice. Without CUDA_DEVICE_ORDER=PCI_BUS_ID numbers count the fastest card first,
    which only says what they mean where all cards are alike.
    """
    alike = len({gpu.name for gpu in gpus if gpu.name}) <= 1  # a lost card may have no name
    in_order = alike or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [gpu.index for gpu in gpus] if in_order else None
    order: list[int] = []
    for entry in (text.strip() for text in visible.split(",")):
        number = entry.isdecimal()
        if number and not in_order:
            return None
        named = [gpu.index for gpu in gpus if (gpu.index == int(entry) if number else _has_uuid(gpu, entry))]
        if len(named) != 1:
            break
        # Two slices of one card are two devices; CUDA takes but one of them in a process.
        if named[0] in order and not entry.startswith("MIG-"):
            return []
        order += named
    return order


def _has_uuid(gpu: Gpu, text: str) -> bool:
    if text.startswith("MIG-GPU-"):  # drivers before 470 write MIG-GPU-UUID/INSTANCE/INSTANCE
        return bool(gpu.uuid) and text[4:].partition("/")[0] == gpu.uuid
    return text.startswith(("GPU-", "MIG-")) and any(
        device.uuid.startswith(text) for device in (gpu, *gpu.slices) if device.uuid
    )
