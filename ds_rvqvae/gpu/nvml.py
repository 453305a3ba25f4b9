"""Readings of NVIDIA GPUs through NVML, in the driver's order (by PCI bus)."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pynvml

from ds_rvqvae.errors import UserError, printable

IDLE_MEMORY = 1 << 30
"""A GPU with less memory in use, in bytes, counts as idle: a desktop's compositor and browser use some hundred MiB."""

_REASONS = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": "libnvidia-ml.so.1 is not found: no driver is installed, or not in this container",
    "NVML_ERROR_DRIVER_NOT_LOADED": "its kernel module is not loaded",
    "NVML_ERROR_NO_PERMISSION": "no permission to open /dev/nvidiactl",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "its library and kernel module differ in version, as after an update: reboot",
    "NVML_ERROR_FUNCTION_NOT_FOUND": "libnvidia-ml.so.1 is too old",
}
_GONE = ("GPU_IS_LOST", "RESET_REQUIRED", "UNINITIALIZED", "DRIVER_NOT_LOADED", "GPU_NOT_FOUND")
"""Errors of the GPU itself, whichever reading was asked for."""
_UNAVAILABLE = (
    "NOT_SUPPORTED",
    "NO_PERMISSION",
    "FUNCTION_NOT_FOUND",
    "INVALID_ARGUMENT",
    "ARGUMENT_VERSION_MISMATCH",
)
"""Errors of a working GPU that does not have, or does not permit, a reading."""
_SLOWDOWNS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "thermal slowdown in hardware",
    0x80: "power brake",
}
"""NVML's clock event reasons that slow a busy GPU down."""


class NoDriverError(Exception):
    """No NVIDIA driver answers on this machine."""


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU."""

    pid: int
    memory_bytes: int | None
    """None if the driver does not tell, as under WSL or without permission."""
    graphics: bool = False
    """Whether it only draws, like a desktop."""
    slice: int | None = None
    """The MIG slice that it runs on."""


@dataclass(frozen=True)
class GpuSlice:
    """A MIG slice of a GPU."""

    index: int
    name: str
    uuid: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """One GPU. Readings that it does not support, or does not permit, are None."""

    index: int
    name: str
    uuid: str
    pci_bus_id: str
    memory_used_bytes: int | None
    """Without the driver's own reserve, if the driver reports it separately."""
    memory_total_bytes: int | None
    utilisation: int | None
    """Percent of the last sampling interval in which a kernel ran; None under MIG."""
    processes: tuple[GpuProcess, ...] = field(default=())
    processes_readable: bool = True
    memory_reserved_bytes: int | None = None
    temperature: int | None = None
    """Degrees Celsius."""
    fan: int | None = None
    """Percent of the highest speed."""
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    """Energy since the driver was loaded."""
    pcie_received_bytes_per_s: int | None = None
    pcie_sent_bytes_per_s: int | None = None
    slowdowns: tuple[str, ...] = ()
    """Reasons why the GPU runs below its clock."""
    slices: tuple[GpuSlice, ...] = ()
    error: str | None = None
    """Reason why the GPU could not be read at all; all readings are None then."""

    @property
    def idle(self) -> bool:
        """Whether no compute process runs and less than `IDLE_MEMORY` is in use; graphics processes do not count.

        A GPU with neither memory nor processes readable is not idle.
        """
        if self.error or (self.memory_used_bytes is None and not self.processes_readable):
            return False
        computing = any(not process.graphics for process in self.processes)
        return not computing and (self.memory_used_bytes or 0) < IDLE_MEMORY


def list_gpus() -> list[Gpu]:
    """All GPUs of this machine, in the order of `CUDA_DEVICE_ORDER=PCI_BUS_ID`, without PCIe throughput.

    Raises:
        NoDriverError: there is no NVIDIA driver, or it does not answer.
        UserError: another package hides NVIDIA's binding.
    """
    with Driver() as driver:
        return [card.read() for card in driver.cards()]


class Driver:
    """An open connection to the driver, closed at the end of its `with` block or by `close`.

    Raises:
        NoDriverError: there is no NVIDIA driver, or it does not answer.
        UserError: another package hides NVIDIA's binding.
    """

    def __init__(self) -> None:
        if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
            raise UserError(
                f"{pynvml.__file__} is not NVIDIA's binding but hides it: "
                "pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py"
            )
        try:
            pynvml.nvmlInit()
            self.version: str = ask("nvmlSystemGetDriverVersion") or ""
            cuda = ask("nvmlSystemGetCudaDriverVersion_v2")
        except pynvml.NVMLError as error:
            raise NoDriverError(_reason(error)) from None
        self.cuda_version = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""
        """The newest CUDA version that the driver supports."""

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def cards(self) -> list["CardReader"]:
        """One `CardReader` per GPU; raises NoDriverError if the driver does not even count its GPUs."""
        try:
            return [CardReader(index, self.lists_processes) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            raise NoDriverError(_reason(error)) from None

    @property
    def lists_processes(self) -> bool:
        """False for drivers 535.43 to 535.86, whose process lists have a different layout."""
        numbers = self.version.split(".")
        return not (numbers[0] == "535" and numbers[1:] and numbers[1].isdecimal() and 43 <= int(numbers[1]) <= 86)


class CardReader:
    """One GPU of an open `Driver`, which can be read repeatedly; constant values are read once."""

    def __init__(self, index: int, lists_processes: bool = True) -> None:
        self.index = index
        self.name = self.uuid = self.pci_bus_id = ""
        self._lists_processes = lists_processes
        self._handle: Any = None

    def read(self, pcie: bool = False) -> Gpu:
        """Reads the GPU now. Never raises: a lost GPU has an `error`, and the next reading searches for it again.

        Args:
            pcie: whether to measure PCIe throughput, which takes the driver about 40 ms.
        """
        try:
            if self._handle is None:
                self._find()
            return self._readings(pcie)
        except pynvml.NVMLError as error:
            self._handle = None
            return Gpu(
                *(self.index, self.name, self.uuid, self.pci_bus_id, None, None, None),
                processes_readable=False,
                error=str(error),
            )

    def _find(self) -> None:
        # Numbers may change when a GPU falls off the bus; UUIDs do not.
        if self.uuid:
            handle = pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
        else:
            handle = pynvml.nvmlDeviceGetHandleByIndex(self.index)
        self.name = printable(ask("nvmlDeviceGetName", handle) or "")
        self.uuid = ask("nvmlDeviceGetUUID", handle) or ""
        pci = ask("nvmlDeviceGetPciInfo", handle)
        bus_id = pci.busId if pci else b""
        self.pci_bus_id = bus_id.decode() if isinstance(bus_id, bytes) else bus_id
        self._handle = handle

    def _readings(self, pcie: bool) -> Gpu:
        handle = self._handle
        memory = memory_of(handle)
        slices = _mig_slices(handle)
        processes = self._processes([(None, handle), *((index, slice) for index, slice in enumerate(slices))])
        slowdowns = ask(
            "nvmlDeviceGetCurrentClocksEventReasons", handle, older="nvmlDeviceGetCurrentClocksThrottleReasons"
        )
        return Gpu(
            self.index,
            self.name,
            self.uuid,
            self.pci_bus_id,
            memory.used if memory else None,
            memory.total if memory else None,
            utilisation_of(handle),
            tuple(processes or ()),
            processes_readable=processes is not None,
            memory_reserved_bytes=getattr(memory, "reserved", None),
            temperature=temperature_of(handle),
            fan=ask("nvmlDeviceGetFanSpeed", handle),
            power_watts=thousandths(ask("nvmlDeviceGetPowerUsage", handle)),
            power_limit_watts=thousandths(ask("nvmlDeviceGetEnforcedPowerLimit", handle)),
            energy_joules=thousandths(ask("nvmlDeviceGetTotalEnergyConsumption", handle)),
            pcie_received_bytes_per_s=_throughput(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES) if pcie else None,
            pcie_sent_bytes_per_s=_throughput(handle, pynvml.NVML_PCIE_UTIL_TX_BYTES) if pcie else None,
            slowdowns=tuple(text for bit, text in _SLOWDOWNS.items() if (slowdowns or 0) & bit),
            slices=tuple(_read_slice(index, slice) for index, slice in enumerate(slices)),
        )

    def _processes(self, devices: list[tuple[int | None, Any]]) -> list[GpuProcess] | None:
        """Processes of the GPU and of its slices; None if they may not be read."""
        found: dict[int, GpuProcess] = {}
        readable = False
        for slice, device in devices if self._lists_processes else ():
            # A process that both draws and computes is in two lists, and counts as computing. MPS lists its clients.
            for graphics, kind in ((True, "Graphics"), (False, "Compute"), (False, "MPSCompute")):
                function = f"nvmlDeviceGet{kind}RunningProcesses"
                listed = ask(f"{function}_v3", device, older=f"{function}_v2")
                readable |= listed is not None
                found |= {
                    entry.pid: GpuProcess(entry.pid, entry.usedGpuMemory, graphics, slice) for entry in listed or ()
                }
        return list(found.values()) if readable else None


def ask(function: str, *arguments: Any, older: str = "") -> Any:
    """Calls an NVML function; returns its result, or None if the GPU does not have, or not permit, that reading.

    Args:
        older: the function's name in older drivers or bindings.

    Raises:
        pynvml.NVMLError: the GPU itself is gone.
    """
    try:
        return getattr(pynvml, function)(*arguments)
    except AttributeError:
        missing = True
    except UnicodeDecodeError as error:  # the binding decodes all text as UTF-8
        return error.object.decode(errors="replace")
    except pynvml.NVMLError as error:
        if _is(error, _GONE):
            raise
        missing = _is(error, ("FUNCTION_NOT_FOUND",))
    return ask(older, *arguments) if missing and older else None


def memory_of(handle: Any) -> Any:
    """Memory of a GPU or slice: `.used`, `.total`, and `.reserved` if the driver has version 2 of the call.

    Version 1 counts the driver's own reserve as used. None if a GPU does not tell.

    Raises:
        pynvml.NVMLError: any other failure; every working GPU answers this call.
    """
    for version in (getattr(pynvml, "nvmlMemory_v2", None), None):
        try:
            return pynvml.nvmlDeviceGetMemoryInfo(handle, version=version)
        except pynvml.NVMLError as error:
            if not _is(error, _UNAVAILABLE):
                raise
    return None


def utilisation_of(handle: Any) -> int | None:
    rates = ask("nvmlDeviceGetUtilizationRates", handle)
    percent: int | None = rates.gpu if rates else None
    return percent


def temperature_of(handle: Any) -> int | None:
    """Degrees Celsius."""
    sensor = pynvml.NVML_TEMPERATURE_GPU
    degrees: int | None = ask("nvmlDeviceGetTemperatureV", handle, sensor, older="nvmlDeviceGetTemperature")
    return degrees


def thousandths(value: int | None) -> float | None:
    """Milliwatts to watts, millijoules to joules."""
    return None if value is None else value / 1000


def _throughput(handle: Any, counter: int) -> int | None:
    kilobytes = ask("nvmlDeviceGetPcieThroughput", handle, counter)
    return None if kilobytes is None else kilobytes * 1000


def _mig_slices(handle: Any) -> list[Any]:
    mode = ask("nvmlDeviceGetMigMode", handle)
    if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return []
    count = ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    slices = (ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index) for index in range(count))
    return [slice for slice in slices if slice is not None]


def _read_slice(index: int, handle: Any) -> GpuSlice:
    memory = memory_of(handle)
    return GpuSlice(
        index,
        ask("nvmlDeviceGetName", handle) or "",
        ask("nvmlDeviceGetUUID", handle) or "",
        memory.used if memory else None,
        memory.total if memory else None,
    )


def _is(error: pynvml.NVMLError, names: tuple[str, ...]) -> bool:
    return error.value in [getattr(pynvml, f"NVML_ERROR_{name}", None) for name in names]


def _reason(error: pynvml.NVMLError) -> str:
    """The reason, in words, why the driver does not answer."""
    reasons = {getattr(pynvml, name, None): text for name, text in _REASONS.items()}
    return reasons.get(error.value, str(error))
