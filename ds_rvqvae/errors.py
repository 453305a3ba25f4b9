"""Errors that the user can correct, exit statuses, and text that is safe to print."""

import logging
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import PurePath


class ExitStatus(IntEnum):
    """Exit statuses of every command and launcher."""

    DONE = 0
    PARTLY_DONE = 1
    """Some files failed; the summary names them."""
    BAD_INPUT = 2
    """Bad input, settings or folders, or no such GPU or slot."""
    CARD_NOT_IDLE = 3
    """A GPU that should be idle is busy."""
    NO_DRIVER = 4
    """Real GPUs are needed, but there is no NVIDIA driver."""
    FAILED = 70
    """A rank died or hung, the run gave up, or this program has an error."""
    STOPPED = 75
    """Stopped by a signal; the checkpoints are complete and `--resume` continues the run."""


class UserError(Exception):
    """An error that the user can correct: one line that says what is wrong, where, and what to do.

    Its text is safe to print, whatever names are in it.

    Args:
        details: more lines.
    """

    def __init__(self, message: str, status: ExitStatus = ExitStatus.BAD_INPUT, *, details: Sequence[str] = ()) -> None:
        super().__init__(printable(message))
        self.status, self.details = status, details

    def __str__(self) -> str:
        return text_of([super().__str__(), *self.details])


def printable(text: str) -> str:
    """Returns text on one line, with `?` for control characters, characters that change the writing direction, and
    bytes that are not text. Names of files, clips and processes may contain any of these, and a terminal would obey
    them."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or unicodedata.category(character) == "Zs" else "?" for character in text
    )


def text_of(lines: Iterable[str]) -> str:
    """Joins lines into a text that is safe to print: a name in a line cannot start a new one."""
    return "\n".join(map(printable, lines))


def say(line: str) -> None:
    """Prints a message on stderr."""
    print(printable(line), file=sys.stderr, flush=True)


class PrintableFormatter(logging.Formatter):
    """Formats log records so that a log is safe to show on a terminal: a name in a message cannot start a new line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as text."""
        if isinstance(record.args, tuple):
            record = logging.makeLogRecord(vars(record))
            record.args = tuple(
                # Python quotes and escapes names inside lists and other containers.
                printable(str(value)) if isinstance(value, str | PurePath | BaseException) else value
                for value in record.args or ()
            )
        return text_of(super().format(record).split("\n"))
