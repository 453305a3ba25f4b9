"""What can go wrong, and the exit status that says so."""

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
    """Bad input, settings or folders, or no such card or slot."""
    CARD_NOT_IDLE = 3
    """A card that should be idle is not."""
    NO_DRIVER = 4
    """Real cards wanted and no NVIDIA driver."""
    FAILED = 70
    """A rank died or hung, the run gave up, or an error of our own."""
    STOPPED = 75
    """Stopped by a signal; the checkpoints are whole and `--resume` goes on."""


class UserError(Exception):
    """Something the user can put right: one line saying what is wrong, where, and what to do.

    Its text can be printed as it is, whatever the names in it.

    Args:
        details: more lines.
    """

    def __init__(self, message: str, status: ExitStatus = ExitStatus.BAD_INPUT, *, details: Sequence[str] = ()) -> None:
        super().__init__(printable(message))
        self.status, self.details = status, details

    def __str__(self) -> str:
        return text_of([super().__str__(), *self.details])


def printable(text: str) -> str:
    """In one line, without control characters, characters that turn the direction of others, and bytes that are no
    text: names of files, clips and processes may hold any, and a terminal obeys what it is sent."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or unicodedata.category(character) == "Zs" else "?" for character in text
    )


def text_of(lines: Iterable[str]) -> str:
    """Lines as one text that can be printed: no name in them makes another line."""
    return "\n".join(map(printable, lines))


def say(line: str) -> None:
    """Prints a line for people on stderr."""
    print(printable(line), file=sys.stderr, flush=True)


class PrintableFormatter(logging.Formatter):
    """Writes records so that a log can be shown on a terminal; what a message is about makes no line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        if isinstance(record.args, tuple):
            record = logging.makeLogRecord(vars(record))
            record.args = tuple(
                # Within lists and the like a name is quoted, and its characters escaped.
                printable(str(value)) if isinstance(value, str | PurePath | BaseException) else value
                for value in record.args or ()
            )
        return text_of(super().format(record).split("\n"))
