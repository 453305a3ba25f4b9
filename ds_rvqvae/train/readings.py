"""What each rank takes of its card, or of the host's memory where it has none.

Read at logged steps and round evaluations, never in between. Neither torch's counters nor the driver's wait for the
card, and nothing here raises: what cannot be read is None.
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
    """One rank and its card at a logged step, by the keys of `metrics.jsonl`; None where there is no such reading."""

    memory_gib: float | None = None
    """Highest sum of torch's tensors in the steps since the line, evaluation or save before; on a CPU the process's
    resident memory."""
    memory_allocated_gib: float | None = None
    """Torch's tensors between two steps."""
    memory_reserved_gib: float | None = None
    """What torch's allocator holds: tensors and cache."""
    memory_used_gib: float | None = None
    """Of the card by all processes, without what the driver reserves for itself."""
    card_memory_gib: float | None = None
    """What the card has for programs."""
    utilisation: float | None = None
    """Percent of the driver's last sampling interval in which a kernel ran."""
    power_w: float | None = None
    temperature_c: float | None = None
    energy_wh: float | None = None
    """By the whole card since this start of the run."""
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
"""TensorBoard's groups, with units; those of a card are called as the monitor calls them."""


@dataclass
class Peaks:
    """The most that one rank took since this start of the run; None where there is no such reading."""

    resident_gib: float | None = None
    """The process in the host's memory; only where it computes on a CPU."""
    step_allocated_gib: float | None = None
    """Torch's tensors during training steps."""
    allocated_gib: float | None = None
    """The same, or at the start, in evaluations and while saving, if that was more."""
    reserved_gib: float | None = None
    used_gib: float | None = None
    """Of the card by all processes, at the moments at which it was read."""
    card_memory_gib: float | None = None
    energy_wh: float | None = None
    seconds: float | None = None
    """From the start of the metering, over which the energy was taken."""
    allocation_retries: float | None = None

    @property
    def headroom_gib(self) -> float | None:
        """What was left of the card when most of it was used."""
        if self.used_gib is None or self.card_memory_gib is None:
            return None
        return max(0.0, self.card_memory_gib - self.used_gib)

    @property
    def mean_power_w(self) -> float | None:
        if self.energy_wh is None or not self.seconds:
            return None
        return self.energy_wh * _JOULES_A_WATT_HOUR / self.seconds


class OwnMemory(NamedTuple):
    """Bytes that this process holds where it computes."""

    peak: int | None = None
    """Since the call before; on a CPU now."""
    allocated: int | None = None
    reserved: int | None = None
    peak_reserved: int | None = None
    retries: int | None = None


class Memory(Protocol):
    """Where a rank's tensors lie."""

    total_bytes: int | None

    def take(self) -> OwnMemory:
        """What is held now; peaks begin anew."""


class CudaMemory:
    """A card's memory as torch's allocator counts it, on the host."""

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
    """Meters this rank, from its making until `close`.

    Args:
        device: that it computes on.
        card: the card's UUID or PCI bus id; the device's own where None.
        memory: what counts its tensors; the device's own where None.
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
        """This rank now; peaks since the reading before."""
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
        """From now on, until `leave_steps`, peaks are those of training steps."""
        self.read()
        self._in_steps = True

    def leave_steps(self) -> None:
        """From now on, until `enter_steps`, peaks are those of other work."""
        self.read()
        self._in_steps = False

    def gather_peaks(self) -> list[Peaks]:
        """What every rank took at most until now, by rank; every rank calls it."""
        return [Peaks(*_values(row)) for row in _gather(_numbers(astuple(self.peaks())), self._device)]

    def peaks(self) -> Peaks:
        """What this rank took at most until now."""
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
        # Once a card is lost, what was last seen of it stays.
        peaks.card_memory_gib = _larger(peaks.card_memory_gib, reading.card_memory_gib)
        peaks.energy_wh = _larger(peaks.energy_wh, reading.energy_wh)
        peaks.allocation_retries = _larger(peaks.allocation_retries, reading.allocation_retries)


def _tried(read: Callable[[], _T], otherwise: _T) -> _T:
    """What is read, or `otherwise`: a driver may fail in any way, and this rank's part in a gathering is waited for."""
    try:
        return read()
    except Exception:
        return otherwise


def gather_readings(numbers: Tensor, reading: Reading) -> tuple[list[float], list[Reading]]:
    """The means over the ranks of `numbers [n]`, and all ranks' readings, by one collective that every rank calls."""
    rows = _gather([*numbers.tolist(), *_numbers(reading)], numbers.device)
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)][: len(numbers)]
    return means, [Reading(*_values(row[len(numbers) :])) for row in rows]


def _gather(row: list[float], device: torch.device) -> list[list[float]]:
    mine = torch.tensor(row, dtype=torch.float64, device=device)
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, mine)
    return torch.stack(rows).tolist()


def _numbers(values: Iterable[float | None]) -> list[float]:
    """NaN for None, as tensors have no None."""
    return [math.nan if value is None else float(value) for value in values]


def _values(numbers: Iterable[float]) -> list[float | None]:
    """And back."""
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
    """Of this process by the kernel's own count; None where it keeps none."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _gib(count: int | None) -> float | None:
    return None if count is None else count / GIB


def _larger(first: float | None, second: float | None) -> float | None:
    return max((value for value in (first, second) if value is not None), default=None)
