"""Work without which a run is as good: pictures, TensorBoard, summaries. Its failures become warnings."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ds_rvqvae.errors import UserError, printable

_LONGEST_REASON = 160
_logger = logging.getLogger("ds_rvqvae")


@contextmanager
def tolerated(what: str, todo: str = "", warn: Callable[[str], object] = _logger.warning) -> Iterator[None]:
    """Does what only decorates or reports: where it fails, a warning says `what` and why, and the caller goes on.

    Not for work that other ranks take part in, who would wait for what was left out. Signals and exits go through.

    Args:
        what: such as "memory.json not written".
        todo: how to have it after all.
        warn: takes the warning, a line; a run's log by default.
    """
    try:
        yield
    except Exception as error:
        warn(printable(f"{what}: {reason_of(error)}" + (f"; {todo}" if todo else "")))


def reason_of(error: Exception) -> str:
    """Why something failed, in one line that is not too long."""
    if isinstance(error, OSError) and error.strerror:
        where = error.filename2 or error.filename  # of a renaming, the name that was wanted
        return f"{error.strerror}: {os.fsdecode(where)}" if isinstance(where, str | bytes) else error.strerror
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    first = first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]} …"
    if isinstance(error, UserError):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
