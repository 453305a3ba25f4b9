"""Readings of NVIDIA cards through NVML, in the driver's order (by PCI bus)."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml

IDLE_MEMORY = 1 << 30
"""Bytes a card may hold and still count as idle: a desktop's compositor and browser hold some hundred MiB."""


class NoDriver(Exception):
    """No NVIDIA driver answers on this machine."""


@dataclass(frozen=True)
class GpuProcess:
    """A compute process on a card."""

    pid: int
    memory_bytes: int | None
    """None where the driver does not tell, as under WSL or without permission."""


@dataclass(frozen=True)
class Gpu:
    """One card. Readings a card does not support, or that are not permitted, are None."""

    index: int
    name: str
    uuid: str
    pci_bus_id: str
    memory_used_bytes: int | None
    """Without what the driver reserves for itself."""
    memory_total_bytes: int | None
    utilisation: int | None
    """Percent of the last sampling interval in which a kernel ran; None under MIG."""
    processes: tuple[GpuProcess, ...] = field(default=())

    @property
    def idle(self) -> bool:
        """Whether no compute process runs and less than `IDLE_MEMORY` is in use; graphics processes do not count."""
        return not self.processes and (self.memory_used_bytes or 0) < IDLE_MEMORY


def list_gpus() -> list[Gpu]:
    """All cards of this machine, in the order of `CUDA_DEVICE_ORDER=PCI_BUS_ID`.

    Raises:
        NoDriver: there is no NVIDIA driver, or it does not answer.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoDriver(str(error)) from None
    try:
        return [_read(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise NoDriver(str(error)) from None
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = _memory(handle)
    rates = _tolerated(pynvml.nvmlDeviceGetUtilizationRates, handle)
    pci = _tolerated(pynvml.nvmlDeviceGetPciInfo, handle)
    return Gpu(
        index=index,
        name=_text(_tolerated(pynvml.nvmlDeviceGetName, handle)),
        uuid=_text(_tolerated(pynvml.nvmlDeviceGetUUID, handle)),
        pci_bus_id=_text(pci.busId if pci else None),
        memory_used_bytes=memory.used if memory else None,
        memory_total_bytes=memory.total if memory else None,
        utilisation=rates.gpu if rates else None,
        processes=_processes(handle),
    )


def _memory(handle: Any) -> Any:
    """Version 2 tells used and reserved memory apart; older drivers have version 1 only."""
    version = getattr(pynvml, "nvmlMemory_v2", None)
    with contextlib.suppress(pynvml.NVMLError):
        if version is not None:
            return pynvml.nvmlDeviceGetMemoryInfo(handle, version=version)
    return _tolerated(pynvml.nvmlDeviceGetMemoryInfo, handle)


def _processes(handle: Any) -> tuple[GpuProcess, ...]:
    """Compute processes of the card, and of its MIG instances where it is cut into some."""
    found = {}
    for device in (handle, *_mig_instances(handle)):
        for process in _tolerated(pynvml.nvmlDeviceGetComputeRunningProcesses, device) or ():
            found[process.pid] = GpuProcess(process.pid, process.usedGpuMemory)
    return tuple(found.values())


def _mig_instances(handle: Any) -> list[Any]:
    mode = _tolerated(pynvml.nvmlDeviceGetMigMode, handle)
    if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return []
    count = _tolerated(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    instances = (_tolerated(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index) for index in range(count))
    return [instance for instance in instances if instance is not None]


def _tolerated(query: Callable[..., Any], *arguments: Any) -> Any:
    """A reading, or None where the card does not have it or it is not permitted."""
    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
