"""The figures of a check, each with its bound and whether it holds."""

import math
from dataclasses import dataclass
from typing import Any


class CheckError(Exception):
    """A check could not come to its figures; the message says why, in one line."""


@dataclass(frozen=True)
class Claim:
    """One figure of a check."""

    name: str
    value: Any
    """As it is written into the JSON report."""
    text: str
    """The figure with its unit."""
    expected: str = ""
    """The bound in words; empty for a figure that has none."""
    holds: bool = True
    gpu_only: bool = False
    """Whether the bound says nothing about CPU ranks, so that a rehearsal does not apply it."""

    def counts(self, rehearsal: bool) -> bool:
        """Returns whether the bound is applied."""
        return bool(self.expected) and not (rehearsal and self.gpu_only)

    def fails(self, rehearsal: bool) -> bool:
        return self.counts(rehearsal) and not self.holds

    def words(self, rehearsal: bool) -> str:
        """Returns the figure and its bound as text."""
        bound = f" (expected {self.expected}{'' if self.counts(rehearsal) else ' on a GPU'})" if self.expected else ""
        return f"{self.name}: {self.text}{bound}"


def figure(name: str, value: Any, unit: str = "") -> Claim:
    """A figure without a bound."""
    return Claim(name, value, _text(value, unit))


def at_most(name: str, value: float | None, bound: float, unit: str = "", gpu_only: bool = False) -> Claim:
    holds = value is not None and math.isfinite(value) and value <= bound
    return Claim(name, value, _text(value, unit), f"at most {_text(bound, unit)}", holds, gpu_only)


def at_least(name: str, value: float | None, bound: float, unit: str = "", gpu_only: bool = False) -> Claim:
    holds = value is not None and math.isfinite(value) and value >= bound
    return Claim(name, value, _text(value, unit), f"at least {_text(bound, unit)}", holds, gpu_only)


def between(name: str, value: float | None, low: float, high: float, unit: str = "", gpu_only: bool = False) -> Claim:
    holds = value is not None and math.isfinite(value) and low <= value <= high
    return Claim(name, value, _text(value, unit), f"{_text(low)} to {_text(high, unit)}", holds, gpu_only)


def same(name: str, value: Any, wanted: Any, gpu_only: bool = False) -> Claim:
    return Claim(name, value, _text(value), _text(wanted), value == wanted, gpu_only)


def true(name: str, holds: bool, found: str, expected: str, gpu_only: bool = False) -> Claim:
    """A claim about a text that was found."""
    return Claim(name, found, found, expected, holds, gpu_only)


def _text(value: Any, unit: str = "") -> str:
    if value is None:
        return "not read"
    if isinstance(value, float):
        value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    elif isinstance(value, list):
        value = ", ".join(map(_text, value)) or "none"
    return f"{value} {unit}".rstrip()
