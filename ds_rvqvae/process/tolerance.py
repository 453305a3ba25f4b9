"""Turn failures of optional work (pictures, TensorBoard, summaries) into warnings."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ds_rvqvae.errors import UserError, printable

_LONGEST_REASON = 160
_logger = logging.getLogger("ds_rvqvae")


@contextmanager
def tolerated(what: str, todo: str = "", warn: Callable[[str], object] = _logger.warning) -> Iterator[None]:
    """Runs optional work: if it fails, a warning says `what` and why, and the caller continues.

    It is not for work that other ranks take part in: they would wait for the missing part. Signals and exits pass
    through.

    Args:
        what: the start of the warning, such as "memory.json not written".
        todo: how to get it after all.
        warn: receives the warning, one line; by default it goes to the run's log.
    """
    try:
        yield
    except Exception as error:
        warn(printable(f"{what}: {reason_of(error)}" + (f"; {todo}" if todo else "")))


def reason_of(error: Exception) -> str:
    """Returns why something failed, in one line that is not too long."""
    if isinstance(error, OSError) and error.strerror:
        where = error.filename2 or error.filename  # filename2 is the new name of a failed rename
        return f"{error.strerror}: {os.fsdecode(where)}" if isinstance(where, str | bytes) else error.strerror
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    first = first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]} …"
    if isinstance(error, UserError):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
