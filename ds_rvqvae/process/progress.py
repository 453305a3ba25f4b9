"""Report the progress of long work: what is being done, a bar on a terminal, and occasional lines elsewhere."""

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
"""Used if no terminal shows a bar: a log of several days stays short and readable."""
SECONDS_OF_SILENCE = 8.0
"""Seconds without output after which long work reports that it continues."""


class _Watcher:
    """Calls a function in its own thread each time that nothing was written to stderr for a while, until `end`.

    Args:
        patience: seconds without output before a call.
        first: the same before the first call, if different.
    """

    def __init__(self, call: Callable[[], object], patience: float, first: float | None = None) -> None:
        self._call, self._patience, self._first = call, patience, first or patience
        self._over, self._began = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        with suppress(RuntimeError):  # the user's limit of threads may be reached
            self._thread.start()

    def end(self) -> None:
        """Stops the calls."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are for the main thread
        called, patience = self._began, self._first
        while not self._over.wait(max(self._last(called) + patience - time.monotonic(), 0.02)):
            if time.monotonic() - self._last(called) >= patience:
                with suppress(Exception):  # a failed report must not end the work
                    self._call()
                called, patience = time.monotonic(), self._patience

    @staticmethod
    def _last(called: float) -> float:
        """Returns when something was last shown, as far as is known."""
        return max(called, getattr(sys.stderr, "written_at", called))  # a QueuedStream has this


class Stage:
    """Long work that is announced, and mentioned again after every `SECONDS_OF_SILENCE` without output.

    Args:
        what: a description of the work, such as "building the engine".
        tell: prints a message.
        shown: whether anything is printed.
        after: seconds without output before the first mention; by default it comes at once.
        quiet: whether work that is done within `SECONDS_OF_SILENCE` is not mentioned.
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
        """Ends the work, whether done or given up."""
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
        name: the name of the work.
        shown: whether anything is shown.
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
            # The bar's clock moves on during a long step, but only after a stage has named the work.
            self._watcher = _Watcher(self._bar.refresh, SECONDS_OF_SILENCE + 1)

    def step(self) -> None:
        """Counts one more step."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif time.monotonic() - self._said_at >= SECONDS_BETWEEN_LINES:
            self._say()

    def note(self, numbers: dict[str, str]) -> None:
        """Sets the numbers to show from now on, by name."""
        self._numbers = numbers
        if self._bar is not None:
            self._bar.set_postfix(numbers, refresh=False)

    def close(self) -> None:
        """Shows the progress for the last time."""
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
