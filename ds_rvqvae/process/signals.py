"""Handle the signals that end a command, once, with one line and after cleaning up, and those that end a rank."""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ds_rvqvae.errors import ExitStatus, say
from ds_rvqvae.process.streams import drain_streams

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end. One that was ignored at the start, as SIGHUP under nohup, stays ignored."""
HARMLESS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that batch systems send to all processes of a job; by default they would end them."""
LONGEST_STOP = 3.0
"""Seconds that a command has for cleaning up after a signal."""
_LONGEST_CLEARING = 1.0
"""Seconds for the exit functions of a process."""
_LAST_MESSAGES = 0.5
"""Seconds to wait for a reader of the last messages."""


class Stopped(BaseException):
    """A signal asked this process to end. It is not an Exception, so that code which continues after failures does not
    catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.summary = ""
        """The work that is already done, in words; set by work that is stopped in the middle."""


@contextmanager
def stopping_at_signals(*, is_program: bool = False) -> Iterator[None]:
    """Raises `Stopped` in the main thread at the first signal of `ENDING`; signals of `HARMLESS` do nothing.

    A second SIGINT ends the process at once; repeated SIGTERM and SIGHUP do nothing, so that cleaning up is not
    interrupted. A program that takes longer than `LONGEST_STOP` is ended with what it is doing: a library's long call,
    during which Python runs no handler, a callback in which the exception is lost, or the work of a thread. In other
    threads than the main one, where Python allows no handlers, nothing changes.

    Args:
        is_program: whether the process ends afterwards; then the former handlers are not restored. If false, the
            process belongs to another program, such as a notebook, and goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*ENDING, *HARMLESS)}
    ending = [number for number in ENDING if before[number] is not signal.SIG_IGN]

    def stop(number: int, _frame: FrameType | None) -> None:
        watch.stopped = True
        for other in ending:
            signal.signal(other, signal.SIG_IGN)
        if signal.SIGINT in ending:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise Stopped(number)

    watch = _Watch(stop, is_program)
    try:
        for number in HARMLESS:
            signal.signal(number, signal.SIG_IGN)
        for number in ending:
            signal.signal(number, stop)
        yield
    finally:
        watch.close()
        for number, handler in before.items():
            if not is_program:
                signal.signal(number, handler)
            elif number in ending and not watch.stopped:
                signal.signal(number, signal.SIG_DFL)  # no KeyboardInterrupt while the interpreter ends


class _Watch:
    """Ends this process if it still runs `LONGEST_STOP` after a signal that should end it.

    Args:
        handler: the signal handler whose signals it watches. If another handler is installed, its signals are not
            watched. A fork has neither handler nor thread.
        is_program: whether it may end the process.
    """

    def __init__(self, handler: object, is_program: bool) -> None:
        self.stopped = False
        self._handler, self._is_program, self._is_over = handler, is_program, threading.Event()
        self._hearing = heard_in_thread(self._hear)
        self._hearing.__enter__()
        os.register_at_fork(after_in_child=self._leave_fork)

    def _leave_fork(self) -> None:
        if self._is_over.is_set():
            return
        for number in ENDING:
            if signal.getsignal(number) is self._handler:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def close(self) -> None:
        self._is_over.set()
        self._hearing.__exit__(None, None, None)

    def _hear(self, number: int) -> None:
        is_ours = number in ENDING and (self.stopped or signal.getsignal(number) is self._handler)
        if is_ours and self._is_program and not self._is_over.wait(LONGEST_STOP):
            say(f"stopped by {signal.Signals(number).name}")
            end_now()


@contextmanager
def heard_in_thread(hear: Callable[[int], None]) -> Iterator[None]:
    """Calls a function in a thread at each signal that has a handler in Python, even while the main thread waits inside
    a library, where Python runs no handler. Only the main thread may call it.

    The interpreter writes the signal's number to a pipe at once; the thread reads it. Of nested calls only the
    innermost hears. A fork has no such thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    over = False
    os.register_at_fork(after_in_child=lambda: None if over else signal.set_wakeup_fd(-1))
    threading.Thread(target=_hear_on, args=(reader, hear), name="signals", daemon=True).start()
    try:
        yield
    finally:
        over = True
        signal.set_wakeup_fd(before)
        os.close(writer)  # ends the thread


def _hear_on(reader: int, hear: Callable[[int], None]) -> None:
    # Signals to the process are for its main thread, which may block them for a moment, as the monitor does.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while numbers := os.read(reader, 1):
        hear(numbers[0])
    os.close(reader)


def end_now(status: int = ExitStatus.STOPPED) -> NoReturn:
    """Runs the exit functions and ends this process, whatever its threads do; its child processes are asked to end.

    The interpreter would wait for threads and spend a second of CPU time on unloading torch.
    """
    clearing = threading.Thread(target=_clear, daemon=True)
    clearing.start()
    clearing.join(_LONGEST_CLEARING)
    drain_streams(_LAST_MESSAGES)
    os._exit(status)


def end_at_signals() -> None:
    """Makes a signal of `ENDING` end this program at once, as it has nothing to clean up yet."""

    def end(number: int, _frame: FrameType | None) -> None:
        say(f"stopped by {signal.Signals(number).name}")
        os._exit(ExitStatus.STOPPED)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def _clear() -> None:
    import psutil  # imported late: help answers sooner without it

    for child in psutil.Process().children():
        with suppress(psutil.Error):
            child.terminate()
    with suppress(Exception):
        atexit._run_exitfuncs()  # remove temporary folders and unfinished files


_left: list[int] = []


def left_to_a_thread(number: int, _frame: FrameType | None) -> None:
    """Handles the signals for which `call_at_signals` calls its function."""
    _left.append(number)


def take_left() -> list[int]:
    """Returns the signals that were left to the thread, and forgets them. Code that installs another handler calls
    this, because the thread may not have run since and then leaves these signals to that handler."""
    left = _left.copy()
    _left.clear()
    return left


@contextmanager
def call_at_signals(call: Callable[[int], None]) -> Iterator[None]:
    """Calls a function in its own thread at the first signal of `ENDING`, as long as the signal's handler is
    `left_to_a_thread`; signals of `HARMLESS` do nothing. Former handlers are restored at the end.

    Blocked signals, as ranks have them until they call this, are unblocked. Only the main thread may call it.
    """
    called = False

    def hear(number: int) -> None:
        nonlocal called
        if not called and number in ENDING and signal.getsignal(number) is left_to_a_thread:
            called = True
            call(number)

    before = {number: signal.getsignal(number) for number in (*ENDING, *HARMLESS)}
    with heard_in_thread(hear):
        for number in HARMLESS:
            signal.signal(number, signal.SIG_IGN)
        for number in ENDING:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, left_to_a_thread)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def hold_back_signals() -> None:
    """Blocks signals of `ENDING` in a process between this one and the ranks, before its `exec`: they neither end it
    nor are passed on. They stay pending, where `held_back` sees them; the process ends with its ranks.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # stops ranks, even if it was ignored at the start
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def held_back(pid: int) -> int | None:
    """Returns a signal of `ENDING` that is pending in a process which blocks them; None if there is none, or no /proc.

    Signals that this process ignores do not count.
    """
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("ShdPnd:"):
                waiting = int(line.split()[1], 16)
                for number in ENDING:
                    if waiting >> (number - 1) & 1 and signal.getsignal(number) is not signal.SIG_IGN:
                        return int(number)
    return None


@contextmanager
def no_signals_to_new_processes() -> Iterator[None]:
    """Blocks signals of `ENDING` in processes of `multiprocessing` that are started meanwhile, until they call
    `leave_signals_to_parent`: signals to a process group, such as a terminal sends, are handled by their parent.
    """
    from multiprocessing import resource_tracker  # imported late: most commands start no such process

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        resource_tracker.ensure_running()  # blocks them itself and then unblocks them
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """Ignores signals in a process that ends when its parent does, so that no signal ends it earlier."""
    for number in (*ENDING, *HARMLESS):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
