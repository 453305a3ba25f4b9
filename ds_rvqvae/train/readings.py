"""Readings of each rank's GPU, or of its use of the host's memory if it has no GPU.

They are taken at logged steps and around evaluations, never in between. Neither torch's counters nor the driver's wait
for the GPU, and nothing here raises: a value that cannot be read is None.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from ds_rvqvae.gpu.meter import CardMeter, CardReading
from ds_rvqvae.text import GIB

_JOULES_A_WATT_HOUR = 3600
_T = TypeVar("_T")


class Reading(NamedTuple):
    """One rank and its GPU at a logged step, under the keys of `metrics.jsonl`; None if there is no such reading."""

    memory_gib: float | None = None
    """Peak of torch's tensors in the steps since the previous line, evaluation or save; on a CPU the process's resident
    memory."""
    memory_allocated_gib: float | None = None
    """Torch's tensors between two steps."""
    memory_reserved_gib: float | None = None
    """Memory of torch's allocator: tensors and cache."""
    memory_used_gib: float | None = None
    """Memory of the GPU that all processes use, without the driver's own reserve."""
    card_memory_gib: float | None = None
    """Memory of the GPU that programs can use."""
    utilisation: float | None = None
    """Percent of the driver's last sampling interval in which a kernel ran."""
    power_w: float | None = None
    temperature_c: float | None = None
    energy_wh: float | None = None
    """Energy of the entire GPU since this start of the run."""
    allocation_retries: float | None = None
    """How often torch found no room and emptied its cache since this start of the run."""


READING_KEYS = Reading._fields
BOARD_GROUPS = {
    "memory_gib": "Memory_GiB",
    "memory_allocated_gib": "Memory_allocated_GiB",
    "memory_reserved_gib": "Memory_reserved_GiB",
    "allocation_retries": "Memory_allocation_retries",
    "memory_used_gib": "GPU_memory_used_GiB",
    "utilisation": "GPU_utilisation_percent",
    "power_w": "GPU_power_watts",
    "temperature_c": "GPU_temperature_celsius",
    "energy_wh": "GPU_energy_Wh",
}
"""TensorBoard's groups, with units; those of a GPU have the monitor's names."""


@dataclass
class Peaks:
    """The peaks of one rank since this start of the run; None if there is no such reading."""

    resident_gib: float | None = None
    """Resident memory of the process; only if it computes on a CPU."""
    step_allocated_gib: float | None = None
    """Torch's tensors during training steps."""
    allocated_gib: float | None = None
    """The same, including the start, evaluations and saves."""
    reserved_gib: float | None = None
    used_gib: float | None = None
    """Memory of the GPU that all processes use, at the moments of reading."""
    card_memory_gib: float | None = None
    energy_wh: float | None = None
    seconds: float | None = None
    """Time since the start of the metering, over which the energy was used."""
    allocation_retries: float | None = None

    @property
    def headroom_gib(self) -> float | None:
        """Free memory of the GPU at its peak."""
        if self.used_gib is None or self.card_memory_gib is None:
            return None
        return max(0.0, self.card_memory_gib - self.used_gib)

    @property
    def mean_power_w(self) -> float | None:
        if self.energy_wh is None or not self.seconds:
            return None
        return self.energy_wh * _JOULES_A_WATT_HOUR / self.seconds


class OwnMemory(NamedTuple):
    """Bytes that this process holds on the device that it computes on."""

    peak: int | None = None
    """Peak since the previous call; on a CPU the present value."""
    allocated: int | None = None
    reserved: int | None = None
    peak_reserved: int | None = None
    retries: int | None = None


class Memory(Protocol):
    """The memory that holds a rank's tensors."""

    total_bytes: int | None

    def take(self) -> OwnMemory:
        """Returns the present values, and resets the peaks."""


class CudaMemory:
    """A GPU's memory as torch's allocator counts it, on the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.total_bytes: int | None = torch.cuda.get_device_properties(device).total_memory
        self._earlier_retries = torch.cuda.memory_stats(device).get("num_alloc_retries", 0)

    def take(self) -> OwnMemory:
        stats = torch.cuda.memory_stats(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return OwnMemory(
            stats.get("allocated_bytes.all.peak"),
            stats.get("allocated_bytes.all.current"),
            stats.get("reserved_bytes.all.current"),
            stats.get("reserved_bytes.all.peak"),
            stats.get("num_alloc_retries", 0) - self._earlier_retries,
        )


class HostMemory:
    """The resident memory of a process that computes on the CPU.

    Args:
        process: this one by default.
    """

    total_bytes: int | None = None

    def __init__(self, process: psutil.Process | None = None) -> None:
        self._process = process or psutil.Process()

    def take(self) -> OwnMemory:
        with suppress(psutil.Error, OSError):
            return OwnMemory(self._process.memory_info().rss)
        return OwnMemory()


class RankMeter:
    """Meters this rank, from its creation until `close`.

    Args:
        device: the device that the rank computes on.
        card: the GPU's UUID or PCI bus id; that of the device if None.
        memory: the counter of its tensors; that of the device if None.
    """

    def __init__(self, device: torch.device, card: str | None = None, memory: Memory | None = None) -> None:
        self._device = device
        on_card = device.type == "cuda"
        if card is None and on_card:
            card = str(torch.cuda.get_device_properties(device).uuid)
        self._memory = memory or (CudaMemory(device) if on_card else HostMemory())
        self._on_host = isinstance(self._memory, HostMemory)
        self._card = None if card is None else _tried(lambda: CardMeter(card), None)
        self._peaks = Peaks()
        self._in_steps = False
        self._started = time.monotonic()
        self.read()

    def read(self) -> Reading:
        """The reading of this rank now, with peaks since the previous reading."""
        own = _tried(self._memory.take, OwnMemory())
        card = _tried(self._card.read, CardReading()) if self._card else CardReading()
        total = self._memory.total_bytes or card.memory_total_bytes
        energy = None if card.energy_joules is None else card.energy_joules / _JOULES_A_WATT_HOUR
        reading = Reading(
            memory_gib=_gib(own.peak),
            memory_allocated_gib=_gib(own.allocated),
            memory_reserved_gib=_gib(own.reserved),
            memory_used_gib=_gib(card.memory_used_bytes),
            card_memory_gib=_gib(total),
            utilisation=card.utilisation,
            power_w=card.power_watts,
            temperature_c=card.temperature,
            energy_wh=energy,
            allocation_retries=own.retries,
        )
        self._note(reading, _gib(own.peak_reserved))
        return reading

    def enter_steps(self) -> None:
        """Counts peaks, from now until `leave_steps`, as those of training steps."""
        self.read()
        self._in_steps = True

    def leave_steps(self) -> None:
        """Counts peaks, from now until `enter_steps`, as those of other work."""
        self.read()
        self._in_steps = False

    def gather_peaks(self) -> list[Peaks]:
        """The peaks of every rank until now, by rank; every rank calls it."""
        return [Peaks(*_values(row)) for row in _gather(_numbers(astuple(self.peaks())), self._device)]

    def peaks(self) -> Peaks:
        """The peaks of this rank until now."""
        self.read()
        self._peaks.seconds = time.monotonic() - self._started
        if self._on_host:
            self._peaks.resident_gib = _larger(self._peaks.resident_gib, _gib(_peak_resident_bytes()))
        return self._peaks

    def close(self) -> None:
        if self._card is not None:
            self._card.close()

    def _note(self, reading: Reading, reserved_gib: float | None) -> None:
        peaks = self._peaks
        if self._on_host:
            peaks.resident_gib = _larger(peaks.resident_gib, reading.memory_gib)
        else:
            peaks.allocated_gib = _larger(peaks.allocated_gib, reading.memory_gib)
            if self._in_steps:
                peaks.step_allocated_gib = _larger(peaks.step_allocated_gib, reading.memory_gib)
        peaks.reserved_gib = _larger(peaks.reserved_gib, reserved_gib)
        peaks.used_gib = _larger(peaks.used_gib, reading.memory_used_gib)
        # If a GPU is lost, its last readings stay.
        peaks.card_memory_gib = _larger(peaks.card_memory_gib, reading.card_memory_gib)
        peaks.energy_wh = _larger(peaks.energy_wh, reading.energy_wh)
        peaks.allocation_retries = _larger(peaks.allocation_retries, reading.allocation_retries)


def _tried(read: Callable[[], _T], otherwise: _T) -> _T:
    """Returns the result of `read`, or `otherwise` on any failure of a driver: other ranks wait for this rank."""
    try:
        return read()
    except Exception:
        return otherwise


def gather_readings(numbers: Tensor, reading: Reading) -> tuple[list[float], list[Reading]]:
    """Means over the ranks of `numbers [n]`, and all ranks' readings, by one collective; every rank calls it."""
    rows = _gather([*numbers.tolist(), *_numbers(reading)], numbers.device)
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)][: len(numbers)]
    return means, [Reading(*_values(row[len(numbers) :])) for row in rows]


def _gather(row: list[float], device: torch.device) -> list[list[float]]:
    mine = torch.tensor(row, dtype=torch.float64, device=device)
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, mine)
    return torch.stack(rows).tolist()


def _numbers(values: Iterable[float | None]) -> list[float]:
    """The values with NaN for None, because tensors have no None."""
    return [math.nan if value is None else float(value) for value in values]


def _values(numbers: Iterable[float]) -> list[float | None]:
    """The values with None for NaN again."""
    return [None if math.isnan(number) else number for number in numbers]


def metrics_of(readings: Sequence[Reading]) -> dict[str, list[float | None]]:
    """The keys of `metrics.jsonl`, each a list by rank."""
    return {key: [getattr(reading, key) for reading in readings] for key in READING_KEYS}


def board_tags(metrics: dict[str, Any]) -> dict[str, float | None]:
    """TensorBoard's scalars of a line of `metrics.jsonl`, by rank."""
    return {
        f"{group}/rank_{rank}": value
        for key, group in BOARD_GROUPS.items()
        for rank, value in enumerate(metrics.get(key, ()))
    }


def _peak_resident_bytes() -> int | None:
    """Peak resident memory of this process as the kernel counts it; None if it does not."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _gib(count: int | None) -> float | None:
    return None if count is None else count / GIB


def _larger(first: float | None, second: float | None) -> float | None:
    return max((value for value in (first, second) if value is not None), default=None)
