"""The monitor's displays: a table on a terminal, otherwise one plain line per GPU, or lines of JSON."""

import errno
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence

from ds_rvqvae.errors import UserError, say, text_of
from ds_rvqvae.gpu.recording import json_line
from ds_rvqvae.gpu.snapshot import Snapshot, plain_line
from ds_rvqvae.process.signals import ENDING
from ds_rvqvae.process.terminal import terminal_of

_ENTER = "\x1b[?1049h\x1b[?25l"
"""Switches to the terminal's second screen and hides the cursor."""
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[2K", "\x1b[J"


class Display:
    """A display of refreshes; this base class shows only problems, each once, on standard error."""

    def __init__(self) -> None:
        self._problems: set[str] = set()
        self.is_read = True
        """Whether standard output still has a reader or a terminal."""

    def show(self, snapshot: Snapshot, problems: Sequence[str]) -> None:
        for problem in set(problems) - self._problems:
            say(f"warning: {problem}")
        self._problems = set(problems)

    def redraw(self) -> None:
        """Draws again after the terminal has changed its size."""

    def suspend(self) -> None:
        """Returns the terminal to the shell while this process is suspended."""

    def resume(self) -> None:
        """Takes the terminal again."""

    def close(self) -> None:
        """Returns the terminal to the shell at the end."""

    def _write(self, text: str) -> None:
        """Writes to standard output; waits for its reader, but not if a signal is pending, because signals are blocked.

        Raises:
            UserError: standard output cannot be written, for example on a full disk.
        """
        stream, own = sys.stdout, sys.__stdout__
        if stream is not own or own is None:
            stream.write(text)
            return
        content = text.encode(own.encoding, "replace") if self.is_read else b""
        try:
            while content:
                if select.select([], [own], [], 0.1)[1]:
                    content = content[os.write(own.fileno(), content[: select.PIPE_BUF]) :]
                elif signal.sigpending() & set(ENDING):
                    return
        except OSError as error:
            self.is_read = False
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: a terminal that has hung up
                raise UserError(f"standard output: cannot be written: {error.strerror or error}") from None


class LinesDisplay(Display):
    """One plain line per GPU and refresh."""

    def show(self, snapshot: Snapshot, problems: Sequence[str]) -> None:
        self._write(text_of(plain_line(snapshot, gpu) for gpu in snapshot.cards) + "\n")
        super().show(snapshot, problems)


class JsonDisplay(Display):
    """One line of JSON per refresh."""

    def show(self, snapshot: Snapshot, problems: Sequence[str]) -> None:
        self._write(json_line(snapshot))
        super().show(snapshot, problems)


class TableDisplay(Display):
    """A live table on the terminal's second screen; at the end the last table stays on the first screen.

    Args:
        live: whether each refresh replaces the one before; otherwise only the last table is printed, at the end.
        heading: additional words for the table's first line.
    """

    def __init__(self, live: bool, heading: str = "") -> None:
        from ds_rvqvae.gpu.table import History

        super().__init__()
        self._history = History()
        self._live, self._heading = live, heading
        self._last: tuple[Snapshot, float, Sequence[str]] | None = None
        self.resume()

    def show(self, snapshot: Snapshot, problems: Sequence[str]) -> None:
        now = time.monotonic()
        self._history.add(snapshot.cards, now)
        self._last = (snapshot, now, list(problems))
        if self._live:
            self.redraw()

    def redraw(self) -> None:
        if self._live and self._last:
            height = shutil.get_terminal_size().lines
            lines = self._text(self._last, height).splitlines()[:height]
            self._write(_HOME + "\n".join(_CLEAR_LINE + line for line in lines) + _CLEAR_BELOW)

    def suspend(self) -> None:
        if self._live:
            self._write(_LEAVE)

    def resume(self) -> None:
        if self._live:
            self._write(_ENTER)

    def close(self) -> None:
        self.suspend()
        if self._last:
            self._write(self._text(self._last, None))

    def _text(self, shown: tuple[Snapshot, float, Sequence[str]], height: int | None) -> str:
        from ds_rvqvae.gpu.table import Screen

        snapshot, now, problems = shown
        return Screen(snapshot, self._history, now, terminal_of(), height, self._heading).text(problems) + "\n"
