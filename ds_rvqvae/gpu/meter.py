"""A card's readings during a run, cheap enough to take at every logged step."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from ds_rvqvae.errors import UserError
from ds_rvqvae.gpu.nvml import Driver, NoDriverError, ask, memory_of, temperature_of, thousandths, utilisation_of


@dataclass(frozen=True)
class CardReading:
    """What a card said; None where it does not say."""

    memory_used_bytes: int | None = None
    """By all processes, without what the driver reserves."""
    memory_total_bytes: int | None = None
    utilisation: int | None = None
    """Percent of the last sampling interval in which a kernel ran."""
    temperature: int | None = None
    """Degrees Celsius."""
    power_watts: float | None = None
    energy_joules: float | None = None
    """Since the meter was opened."""


class CardMeter:
    """Readings of one card, which is found by what names it for good, not by a number.

    It never raises: without a driver, without that card, or once the card is lost, the readings are None.

    Args:
        identity: a card's UUID as NVML (`GPU-…`, `MIG-…`) or torch (`torch.cuda.get_device_properties(i).uuid`) writes
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
        """The card now: a few calls of the driver, which neither wait for the card nor disturb it."""
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
        """By the card's own counter; where it has none, the power read summed over time."""
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
    """The handle of the card or MIG slice of that UUID or PCI bus id, None where there is none."""
    if ":" in identity:
        names, find = [identity], pynvml.nvmlDeviceGetHandleByPciBusId
    else:
        prefixes = ("",) if identity.startswith(("GPU-", "MIG-")) else ("GPU-", "MIG-")
        names, find = [prefix + identity for prefix in prefixes], pynvml.nvmlDeviceGetHandleByUUID
    for name in names:
        with suppress(pynvml.NVMLError):
            return find(name)
    return None
