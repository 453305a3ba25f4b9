"""What can go wrong, and the exit status that says so."""

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

    def __init__(self, message: str, status: ExitStatus = ExitStatus.BAD_INPUT):
        super().__init__(message)
        self.status = status
