"""What can go wrong, and the exit status that says so."""

import os
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum


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
    """Something the user can put right: one line saying what is wrong, where, and what to do."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.BAD_INPUT) -> None:
        super().__init__(message)
        self.status = status


def printable(text: str) -> str:
    """Without control characters and bytes that are no text: names of files, clips and processes may hold any, and a
    terminal obeys what it is sent."""
    return "".join(character if character.isprintable() else "?" for character in text)


def exit_status_of(command: Callable[[], int]) -> int:
    """Runs a command and turns what it raises into one line on stderr and an exit status."""
    try:
        return command()
    except UserError as error:
        text = "\n".join(map(printable, str(error).split("\n")))
        print(f"error: {text}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return ExitStatus.STOPPED
    except BrokenPipeError:
        # The reader, `head` for one, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.DONE
    except Exception as error:
        if os.environ.get("DS_RVQVAE_DEBUG"):
            traceback.print_exc()
        print(f"error: {type(error).__name__}: {error} (DS_RVQVAE_DEBUG=1 shows the traceback)", file=sys.stderr)
        return ExitStatus.FAILED
