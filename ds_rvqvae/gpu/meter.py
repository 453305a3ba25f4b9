"""Readings of a GPU during a run, cheap enough for every logged step."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from ds_rvqvae.errors import UserError
from ds_rvqvae.gpu.nvml import Driver, NoDriverError, ask, memory_of, temperature_of, thousandths, utilisation_of


@dataclass(frozen=True)
class CardReading:
    """Readings of a GPU at one moment; None for those that it does not give."""

    memory_used_bytes: int | None = None
    """Memory that all processes use, without the driver's own reserve."""
    memory_total_bytes: int | None = None
    utilisation: int | None = None
    """Percent of the last sampling interval in which a kernel ran."""
    temperature: int | None = None
    """Degrees Celsius."""
    power_watts: float | None = None
    energy_joules: float | None = None
    """Energy since the meter was opened."""


class CardMeter:
    """Reads one GPU, which is found by its permanent id, not by a number.

    It never raises: without a driver, without that GPU, or after the GPU is lost, the readings are None.

    Args:
        identity: a GPU's UUID as NVML (`GPU-…`, `MIG-…`) or torch (`torch.cuda.get_device_properties(i).uuid`) writes
            it, or its PCI bus id (`0000:01:00.0`).
    """

    def __init__(self, identity: str) -> None:
        self._driver: Driver | None = None
        self._handle: Any = None
        self._energy_before: float | None = None
        self._energy_summed: float | None = None
        self._last: tuple[float, float] | None = None
        with suppress(NoDriverError, UserError):
            self._driver = Driver()
            self._handle = find_card(identity)
            self._energy_before = self._energy_counter()

    @property
    def found(self) -> bool:
        return self._handle is not None

    def read(self) -> CardReading:
        """Reads the GPU now: a few calls of the driver, which neither wait for the GPU nor disturb it."""
        if self._handle is None:
            return CardReading()
        try:
            memory = memory_of(self._handle)
            power = thousandths(ask("nvmlDeviceGetPowerUsage", self._handle))
            return CardReading(
                memory.used if memory else None,
                memory.total if memory else None,
                utilisation_of(self._handle),
                temperature_of(self._handle),
                power,
                self._energy(power),
            )
        except pynvml.NVMLError:
            return CardReading()

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()
        self._driver = self._handle = None

    def _energy_counter(self) -> float | None:
        try:
            return thousandths(ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)) if self.found else None
        except pynvml.NVMLError:
            return None

    def _energy(self, power: float | None) -> float | None:
        """Energy since the start, by the GPU's own counter; without one, by the power readings summed over time."""
        if self._energy_before is not None:
            counter = self._energy_counter()
            return None if counter is None else counter - self._energy_before
        if power is None:
            return self._energy_summed
        now = time.monotonic()
        earlier, power_then = self._last or (now, power)
        self._energy_summed = (self._energy_summed or 0.0) + (now - earlier) * (power + power_then) / 2
        self._last = (now, power)
        return self._energy_summed


def find_card(identity: str) -> Any:
    """The handle of the GPU or MIG slice with that UUID or PCI bus id; None if there is none."""
    if ":" in identity:
        names, find = [identity], pynvml.nvmlDeviceGetHandleByPciBusId
    else:
        prefixes = ("",) if identity.startswith(("GPU-", "MIG-")) else ("GPU-", "MIG-")
        names, find = [prefix + identity for prefix in prefixes], pynvml.nvmlDeviceGetHandleByUUID
    for name in names:
        with suppress(pynvml.NVMLError):
            return find(name)
    return None
