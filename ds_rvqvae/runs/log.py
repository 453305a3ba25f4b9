"""Write a run's `run.log`; training continues if the disk is full."""

import logging
from collections.abc import Iterable
from pathlib import Path

from ds_rvqvae.errors import PrintableFormatter, say
from ds_rvqvae.files import AppendedLines

_MOST_WAITING = 1 << 20
"""Maximum bytes of lines that wait for free space."""


class RunLog(logging.Handler):
    """Writes records to a run's log, complete lines in UTF-8.

    If the file cannot be written, the terminal gets one warning, and the lines wait until a later write succeeds.

    Args:
        file: created at the first record.
        who: the writer, for example `rank 0`.
    """

    def __init__(self, file: Path, who: str) -> None:
        super().__init__()
        self.setFormatter(PrintableFormatter(f"%(asctime)s %(levelname)s {who.replace('%', '%%')}: %(message)s"))
        self._path = file
        self._lines: AppendedLines | None = None
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record; raises nothing."""
        try:
            line = self.format(record) + "\n"
        except Exception as error:  # a message whose arguments do not fit it
            line = f"{record.levelname} {record.msg}: {error}\n"
        self._write(line.encode("utf-8", "replace"))

    def flush(self) -> None:
        """Tries again to write the lines that wait."""
        if self._lines is not None:
            self._write(b"")

    def close(self) -> None:
        """Closes the file."""
        super().close()
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _write(self, content: bytes) -> None:
        try:
            if self._lines is None:
                self._lines = AppendedLines(self._path, most_pending=_MOST_WAITING)
            why = self._lines.write(content)
        except OSError as error:
            why = error.strerror or str(error)
        if why is not None and not self._told:
            self._told = True
            say(f"warning: {self._path}: cannot be written: {why}; its lines wait, and training goes on")


def add_warnings(file: Path, who: str, lines: Iterable[str]) -> None:
    """Adds warnings to a run's log, if it exists."""
    if not file.is_file():
        return
    log = RunLog(file, who)
    for line in lines:
        log.emit(logging.LogRecord("ds_rvqvae", logging.WARNING, __file__, 0, line, None, None))
    log.close()
