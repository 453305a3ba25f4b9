"""From a command to its exit status, whatever it raises and whatever surrounds it."""

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress

from ds_rvqvae.errors import ExitStatus, PrintableFormatter, UserError, say, text_of
from ds_rvqvae.process.home import settle_home
from ds_rvqvae.process.signals import Stopped, stopping_at_signals
from ds_rvqvae.process.streams import open_standard_streams, queued_streams


def exit_status_of(command: Callable[[], int]) -> int:
    """Runs a command and turns what it raises into one line on stderr and an exit status.

    SIGINT, SIGTERM and SIGHUP end it with status 75 (`stopping_at_signals`); messages never stop it (`QueuedStream`).
    """
    open_standard_streams()
    settle_home()
    keep_warnings_harmless()
    if logging.lastResort is not None:  # prints warnings where no handler was set
        logging.lastResort.setFormatter(PrintableFormatter())
    with queued_streams("stderr"):
        try:
            with stopping_at_signals():
                status = command()
                print_out("")
                return status
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.status
        except Stopped as stop:
            say(f"stopped by {stop.name}")
            return ExitStatus.STOPPED
        except KeyboardInterrupt:
            say("stopped by SIGINT")
            return ExitStatus.STOPPED
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                say(f"error: {error.filename}: {(error.strerror or '').lower()}; give a shorter one")
                return ExitStatus.BAD_INPUT
            if os.environ.get("DS_RVQVAE_DEBUG"):
                print(text_of(traceback.format_exc().splitlines()), file=sys.stderr)
            say(f"error: {type(error).__name__}: {error} (DS_RVQVAE_DEBUG=1 shows the traceback)")
            return ExitStatus.FAILED


def print_out(text: str, end: str = "") -> None:
    """Writes a command's result to standard output, at once.

    A reader that has seen enough, `head` for one, is no error: what comes later goes nowhere.

    Raises:
        UserError: it cannot be written, as on a disk that is full.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        # What is left in the buffer would be tried again, and fail again, when the interpreter ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            raise UserError(f"standard output: cannot be written: {error.strerror or error}") from None


def keep_warnings_harmless() -> None:
    """Takes back `PYTHONWARNINGS=error` and `-W error`: a library's warning must not end a training or a command."""
    if any(option.partition(":")[0].startswith("error") for option in sys.warnoptions):
        kept = [("default", *rest) if action == "error" else (action, *rest) for action, *rest in warnings.filters]
        warnings.filters[:] = kept  # type: ignore[index]
        warnings.simplefilter("default", append=True)  # which also tells the warnings module that they changed
