"""Readings of NVIDIA cards through NVML, in the driver's order (by PCI bus)."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pynvml

from ds_rvqvae.errors import UserError, printable

IDLE_MEMORY = 1 << 30
"""Bytes a card may hold and still count as idle: a desktop's compositor and browser hold some hundred MiB."""

_REASONS = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": "libnvidia-ml.so.1 is not found: no driver is installed, or not in this container",
    "NVML_ERROR_DRIVER_NOT_LOADED": "its kernel module is not loaded",
    "NVML_ERROR_NO_PERMISSION": "no permission to open /dev/nvidiactl",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "its library and kernel module differ in version, as after an update: reboot",
    "NVML_ERROR_FUNCTION_NOT_FOUND": "libnvidia-ml.so.1 is too old",
}
_GONE = ("GPU_IS_LOST", "RESET_REQUIRED", "UNINITIALIZED", "DRIVER_NOT_LOADED", "GPU_NOT_FOUND")
"""Errors of a whole card, whichever reading was asked for."""
_UNAVAILABLE = (
    "NOT_SUPPORTED",
    "NO_PERMISSION",
    "FUNCTION_NOT_FOUND",
    "INVALID_ARGUMENT",
    "ARGUMENT_VERSION_MISMATCH",
)
"""Errors of a sound card that does not have, or not permit, a reading."""
_SLOWDOWNS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "thermal slowdown in hardware",
    0x80: "power brake",
}
"""NVML's clock event reasons that slow a busy card down."""


class NoDriverError(Exception):
    """No NVIDIA driver answers on this machine."""


@dataclass(frozen=True)
class GpuProcess:
    """A process on a card."""

    pid: int
    memory_bytes: int | None
    """None where the driver does not tell, as under WSL or without permission."""
    graphics: bool = False
    """Whether it only draws, as a desktop does."""
    slice: int | None = None
    """The MIG slice that it runs on."""


@dataclass(frozen=True)
class GpuSlice:
    """A MIG slice of a card."""

    index: int
    name: str
    uuid: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """One card. Readings that a card does not support, or that are not permitted, are None."""

    index: int
    name: str
    uuid: str
    pci_bus_id: str
    memory_used_bytes: int | None
    """Without what the driver reserves for itself, where the driver tells them apart."""
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
    """Since the driver was loaded."""
    pcie_received_bytes_per_s: int | None = None
    pcie_sent_bytes_per_s: int | None = None
    slowdowns: tuple[str, ...] = ()
    """Why the card runs below its clock."""
    slices: tuple[GpuSlice, ...] = ()
    error: str | None = None
    """Why the card as a whole could not be read; all readings are None then."""

    @property
    def idle(self) -> bool:
        """Whether no compute process runs and less than `IDLE_MEMORY` is in use; graphics processes do not count.

        A card of which nothing can be told is not idle.
        """
        if self.error or (self.memory_used_bytes is None and not self.processes_readable):
            return False
        computing = any(not process.graphics for process in self.processes)
        return not computing and (self.memory_used_bytes or 0) < IDLE_MEMORY


def list_gpus() -> list[Gpu]:
    """All cards of this machine, in the order of `CUDA_DEVICE_ORDER=PCI_BUS_ID`, without PCIe throughput.

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
        """The newest CUDA version that the driver serves."""

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def cards(self) -> list["CardReader"]:
        """Raises NoDriverError where the driver does not even count its cards."""
        try:
            return [CardReader(index, self.lists_processes) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            raise NoDriverError(_reason(error)) from None

    @property
    def lists_processes(self) -> bool:
        """False for drivers 535.43 to 535.86, whose lists of processes have a layout of their own."""
        numbers = self.version.split(".")
        return not (numbers[0] == "535" and numbers[1:] and numbers[1].isdecimal() and 43 <= int(numbers[1]) <= 86)


class CardReader:
    """One card of an open `Driver`, read as often as wanted; what does not change is read once."""

    def __init__(self, index: int, lists_processes: bool = True) -> None:
        self.index = index
        self.name = self.uuid = self.pci_bus_id = ""
        self._lists_processes = lists_processes
        self._handle: Any = None

    def read(self, pcie: bool = False) -> Gpu:
        """The card now. Never raises: a lost card has an `error`, and is looked for again at the next reading.

        Args:
            pcie: measures PCIe throughput, for which the driver takes some 40 ms.
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
        # Numbers may shift when a card falls off the bus; its UUID stays.
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
        """Those of the card and of its slices; None where that is not permitted."""
        found: dict[int, GpuProcess] = {}
        readable = False
        for slice, device in devices if self._lists_processes else ():
            # One that both draws and computes is in two lists, and computes. MPS has a list of its clients.
            for graphics, kind in ((True, "Graphics"), (False, "Compute"), (False, "MPSCompute")):
                function = f"nvmlDeviceGet{kind}RunningProcesses"
                listed = ask(f"{function}_v3", device, older=f"{function}_v2")
                readable |= listed is not None
                found |= {
                    entry.pid: GpuProcess(entry.pid, entry.usedGpuMemory, graphics, slice) for entry in listed or ()
                }
        return list(found.values()) if readable else None


def ask(function: str, *arguments: Any, older: str = "") -> Any:
    """What a function of NVML's says, or None where a card does not have that reading or it is not permitted.

    Args:
        older: the function's name in older drivers or bindings.

    Raises:
        pynvml.NVMLError: the card as a whole is gone.
    """
    try:
        return getattr(pynvml, function)(*arguments)
    except AttributeError:
        missing = True
    except UnicodeDecodeError as error:  # the binding takes all text for UTF-8
        return error.object.decode(errors="replace")
    except pynvml.NVMLError as error:
        if _is(error, _GONE):
            raise
        missing = _is(error, ("FUNCTION_NOT_FOUND",))
    return ask(older, *arguments) if missing and older else None


def memory_of(handle: Any) -> Any:
    """Memory of a card or slice: `.used`, `.total`, and `.reserved` where the driver has version 2 of the call.

    Version 1 counts what the driver reserves for itself as used. None where a card does not tell.

    Raises:
        pynvml.NVMLError: any other failure; every sound card answers this.
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
    """Why the driver does not answer, in words."""
    reasons = {getattr(pynvml, name, None): text for name, text in _REASONS.items()}
    return reasons.get(error.value, str(error))
