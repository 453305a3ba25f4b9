"""How far a long work is: a bar on a terminal, and a line now and then elsewhere."""

import sys
import time

from ds_rvqvae.errors import printable, say
from ds_rvqvae.process.bars import Bar

SECONDS_BETWEEN_LINES = 60.0
"""Where no terminal shows a bar: a log of days stays readable, and small."""


class Progress:
    """Shows on stderr how many steps are done.

    Args:
        total: steps in the end.
        done: steps at the start.
        name: what is at work.
        shown: else nothing is shown.
    """

    def __init__(self, total: int, done: int, name: str, shown: bool = True) -> None:
        self._total, self._done, self._name = total, done, printable(name)
        self._bar: Bar | None = None
        self._numbers: dict[str, str] = {}
        self._shown = shown
        self._said, self._said_at = done, time.monotonic()
        if shown and sys.stderr.isatty():
            self._bar = Bar(
                total=total, initial=done, unit="step", desc=self._name, mininterval=0.5, dynamic_ncols=True
            )

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif time.monotonic() - self._said_at >= SECONDS_BETWEEN_LINES:
            self._say()

    def note(self, numbers: dict[str, str]) -> None:
        """Numbers by name, to be shown from now on."""
        self._numbers = numbers
        if self._bar is not None:
            self._bar.set_postfix(numbers, refresh=False)

    def close(self) -> None:
        """Shows what is done a last time."""
        if self._bar is not None:
            self._bar.close()
        elif self._done != self._said:
            self._say()

    def _say(self) -> None:
        now = time.monotonic()
        speed = (self._done - self._said) / (now - self._said_at) if now > self._said_at else 0.0
        self._said, self._said_at = self._done, now
        if self._shown:
            numbers = "".join(f", {name} {value}" for name, value in self._numbers.items())
            say(f"{self._name}: step {self._done:,} of {self._total:,}, {speed:.2f} steps/s{numbers}")
