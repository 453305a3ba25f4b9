"""Run a command and turn its result, or any exception, into an exit status."""

import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from ds_rvqvae.errors import ExitStatus, PrintableFormatter, UserError, say, text_of
from ds_rvqvae.process.home import settle_home
from ds_rvqvae.process.signals import Stopped, end_at_signals, end_now, stopping_at_signals
from ds_rvqvae.process.streams import QueuedStream, open_standard_streams, queued_streams, write_all


def exit_status_of(
    command: Callable[[], int], *, is_program: bool = False, stopped: tuple[int, str] = (ExitStatus.STOPPED, "stopped")
) -> int:
    """Runs a command and turns what it raises into one line on stderr and an exit status.

    SIGINT, SIGTERM and SIGHUP end it with status 75 (`stopping_at_signals`); printing a message never blocks it
    (`QueuedStream`).

    Args:
        command: the function to run. It imports slow modules itself, so that signals and warnings are handled during
            the import too.
        is_program: whether the process ends after the command.
        stopped: the exit status of a command that a signal ends, and the start of the message about it; empty for no
            message.
    """
    open_standard_streams()
    settle_home()
    keep_warnings_harmless()
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if logging.lastResort is not None:  # prints warnings if no handler was set
        logging.lastResort.setFormatter(PrintableFormatter())
    with queued_streams("stderr"):
        try:
            with stopping_at_signals(is_program=is_program):
                return _run(command)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.status
        except (Stopped, KeyboardInterrupt) as stop:
            if stopped[1]:
                name, summary = (stop.name, stop.summary) if isinstance(stop, Stopped) else ("SIGINT", "")
                say(f"{stopped[1]} by {name}" + (f": {summary}" if summary else ""))
            if is_program:
                end_now(stopped[0])
            return stopped[0]
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                say(f"error: {error.filename}: {(error.strerror or '').lower()}; give a shorter one")
                return ExitStatus.BAD_INPUT
            if os.environ.get("DS_RVQVAE_DEBUG"):
                print(text_of(traceback.format_exc().splitlines()), file=sys.stderr)
            say(f"error: {type(error).__name__}: {error} (DS_RVQVAE_DEBUG=1 shows the traceback)")
            return ExitStatus.FAILED


def begin_program() -> None:
    """Prepares a script before its slow imports: until `run_program`, a signal ends it at once."""
    open_standard_streams()
    keep_warnings_harmless()
    end_at_signals()


def run_program(command: Callable[[], int | None]) -> NoReturn:
    """Runs the main function of a script and exits with its exit status; None is 0."""
    sys.exit(exit_status_of(lambda: command() or ExitStatus.DONE, is_program=True))


def _run(command: Callable[[], int]) -> int:
    try:
        status = command()
    except SystemExit:  # raised by a parser, which may have printed its help
        print_out("")
        raise
    print_out("")
    return status


def print_out(text: str, end: str = "") -> None:
    """Writes a command's result to standard output without buffering.

    If the reader closes the pipe early, as `head` does, that is not an error: later output is dropped.

    Raises:
        UserError: it cannot be written, for example because the disk is full.
    """
    text, stream, own = text + end, sys.stdout, sys.__stdout__
    try:
        stream.flush()
        if not text:  # writing an empty text fails too if the disk is full
            return
        if isinstance(sys.stderr, QueuedStream):  # keeps both in order in one log
            sys.stderr.drain()
        if stream is own and own is not None:  # without its buffer, where a signal could leave text behind
            write_all(own.fileno(), text.encode(own.encoding, "replace"))
        else:
            stream.write(text)
            stream.flush()
    except OSError as error:
        # The interpreter would write the rest of the buffer again at its end, and fail again.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        if error.errno != errno.EPIPE:
            raise UserError(f"standard output: cannot be written: {error.strerror or error}") from None


def print_summary(text: str) -> None:
    """Prints a summary of a result that is in files; a failure to print it is only a warning."""
    try:
        print_out(text)
    except UserError as error:
        say(f"warning: {error}")


def keep_warnings_harmless() -> None:
    """Undoes `PYTHONWARNINGS=error` and `-W error`: a library's warning must not end a training, a command, or a
    process that it starts."""
    if any(option.partition(":")[0].startswith("error") for option in sys.warnoptions):
        kept = [("default", *rest) if action == "error" else (action, *rest) for action, *rest in warnings.filters]
        warnings.filters[:] = kept  # type: ignore[index]
        warnings.simplefilter("default", append=True)  # this also makes the warnings module notice the change
        sys.warnoptions[:] = [_harmless(option) for option in sys.warnoptions]
        if "PYTHONWARNINGS" in os.environ:
            options = os.environ["PYTHONWARNINGS"].split(",")
            os.environ["PYTHONWARNINGS"] = ",".join(_harmless(option) for option in options)


def _harmless(option: str) -> str:
    action, colon, rest = option.partition(":")
    return f"default{colon}{rest}" if action.startswith("error") else option
