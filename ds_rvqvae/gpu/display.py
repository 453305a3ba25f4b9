"""Where the monitor shows a refresh: a table on a terminal, else a plain line a card, or lines of JSON."""

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
"""To the terminal's second screen, without a cursor."""
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[2K", "\x1b[J"


class Display:
    """Where refreshes are shown; this one shows only problems, each once, on standard error."""

    def __init__(self) -> None:
        self._problems: set[str] = set()
        self.is_read = True
        """Whether there still is a reader, or a terminal."""

    def show(self, snapshot: Snapshot, problems: Sequence[str]) -> None:
        for problem in set(problems) - self._problems:
            say(f"warning: {problem}")
        self._problems = set(problems)

    def redraw(self) -> None:
        """The terminal has changed its size."""

    def suspend(self) -> None:
        """Gives the terminal back to the shell for a while."""

    def resume(self) -> None:
        """Takes it again."""

    def close(self) -> None:
        """Gives it back for good."""

    def _write(self, text: str) -> None:
        """Writes to standard output, and waits for its reader until a signal is pending: they are blocked meanwhile.

        Raises:
            UserError: it cannot be written, as on a disk that is full.
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
    """A plain line a card and refresh."""

    def show(self, snapshot: Snapshot, problems: Sequence[str]) -> None:
        self._write(text_of(plain_line(snapshot, gpu) for gpu in snapshot.cards) + "\n")
        super().show(snapshot, problems)


class JsonDisplay(Display):
    """A line of JSON a refresh."""

    def show(self, snapshot: Snapshot, problems: Sequence[str]) -> None:
        self._write(json_line(snapshot))
        super().show(snapshot, problems)


class TableDisplay(Display):
    """A table, live on the terminal's second screen; at its end the last one stays on the first.

    Args:
        live: whether refreshes replace one another; otherwise the last one is printed at the end.
        heading: more words for the table's first line.
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
