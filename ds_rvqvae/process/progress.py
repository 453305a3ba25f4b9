"""How far a long work is: what is being done, a bar on a terminal, and a line now and then elsewhere."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from typing_extensions import Self

from ds_rvqvae.errors import printable, say
from ds_rvqvae.process.bars import Bar

SECONDS_BETWEEN_LINES = 60.0
"""Where no terminal shows a bar: a log of days stays readable, and small."""
SECONDS_OF_SILENCE = 8.0
"""Seconds in which nothing is shown, after which a work that lasts says so."""


class _Watcher:
    """Calls a function, from a thread of its own, each time that stderr was silent for a while, until it is ended.

    Args:
        patience: seconds of silence before a call.
        first: those before the first call, where it is another number.
    """

    def __init__(self, call: Callable[[], object], patience: float, first: float | None = None) -> None:
        self._call, self._patience, self._first = call, patience, first or patience
        self._over, self._began = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        with suppress(RuntimeError):  # there may be as many threads as a user may have
            self._thread.start()

    def end(self) -> None:
        """No call comes after this."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
        called, patience = self._began, self._first
        while not self._over.wait(max(self._last(called) + patience - time.monotonic(), 0.02)):
            if time.monotonic() - self._last(called) >= patience:
                with suppress(Exception):  # what only reports ends nothing
                    self._call()
                called, patience = time.monotonic(), self._patience

    @staticmethod
    def _last(called: float) -> float:
        """When something was last shown, as far as is known."""
        return max(called, getattr(sys.stderr, "written_at", called))  # of a QueuedStream


class Stage:
    """A work that may last: says what it is, and again whenever nothing was said for `SECONDS_OF_SILENCE`.

    Args:
        what: such as "building the engine".
        tell: takes a line.
        shown: else nothing is said.
        after: seconds of silence before it is mentioned at all; by default it is at once.
        quiet: a work that is done within `SECONDS_OF_SILENCE` is not mentioned.
    """

    def __init__(
        self,
        what: str,
        tell: Callable[[str], object] = say,
        *,
        shown: bool = True,
        after: float = 0.0,
        quiet: bool = False,
    ) -> None:
        self._what, self._tell, self._began = what, tell, time.monotonic()
        self._told = quiet or not after
        if shown and not quiet and not after:
            tell(what)
        self._watcher = _Watcher(self._speak, SECONDS_OF_SILENCE, after) if shown else None

    def end(self) -> None:
        """The work is done, or given up."""
        if self._watcher is not None:
            self._watcher.end()
            self._watcher = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _speak(self) -> None:
        self._tell(f"still {self._what}, {time.monotonic() - self._began:.0f} s" if self._told else self._what)
        self._told = True


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
        self._watcher: _Watcher | None = None
        self._numbers: dict[str, str] = {}
        self._shown = shown
        self._said, self._said_at = done, time.monotonic()
        if shown and sys.stderr.isatty():
            self._bar = Bar(
                total=total, initial=done, unit="step", desc=self._name, mininterval=0.5, dynamic_ncols=True
            )
            # Its clock moves while a step lasts, but not before a stage has said what lasts.
            self._watcher = _Watcher(self._bar.refresh, SECONDS_OF_SILENCE + 1)

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
        if self._watcher is not None:
            self._watcher.end()
            self._watcher = None
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
