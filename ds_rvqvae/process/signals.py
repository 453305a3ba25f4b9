"""Signals that end a command: once, with one line, after what was begun is put away; and those that end a rank."""

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
"""Signals that ask a process to end. One that is ignored at the start, as SIGHUP under nohup, stays ignored."""
HARMLESS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that batch systems send to all processes of a job, and that by default would end them."""
LONGEST_STOP = 3.0
"""Seconds after a signal in which a command puts away what it has begun."""
_LONGEST_CLEARING = 1.0
"""Seconds for what is to be done at a process's end."""
_LAST_MESSAGES = 0.5
"""Seconds that a reader of them gets."""


class Stopped(BaseException):
    """A signal asked this process to end. No Exception, so that nothing that goes on after failures catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.summary = ""
        """What is done already, in words; who stops in the middle of much adds it."""


@contextmanager
def stopping_at_signals(*, is_program: bool = False) -> Iterator[None]:
    """Raises `Stopped` in the main thread at the first signal of `ENDING`; signals of `HARMLESS` do nothing.

    A second SIGINT ends the process at once; further ones of the others do nothing, so that what is being put away is
    put away. What takes a program longer than `LONGEST_STOP` (a library's long call, in which Python runs no handler, a
    callback in which the exception is lost, a thread's work) ends with it. In other threads than the main one, where
    Python takes no handlers, nothing is changed.

    Args:
        is_program: the process ends after it, and former handlers are not put back. Else it is somebody else's, such as
            a notebook, who has more in it.
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
    """A thread that ends this process where a signal was to, but `LONGEST_STOP` later has not.

    It hears of signals through a pipe that the interpreter writes to, also while the main thread runs no Python.

    Args:
        handler: where another one is in place, that one's signals are its own affair. A fork has neither.
        is_program: else the process is not ended.
    """

    def __init__(self, handler: object, is_program: bool) -> None:
        self.stopped = False
        self._handler, self._is_program, self._is_over = handler, is_program, threading.Event()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._leave_fork)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def _leave_fork(self) -> None:
        if self._is_over.is_set():
            return
        signal.set_wakeup_fd(-1)
        for number in ENDING:
            if signal.getsignal(number) is self._handler:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def close(self) -> None:
        self._is_over.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._writing)  # ends the thread

    def _watch(self) -> None:
        # Those to the process are for its main thread, which may hold them back for a moment, as the monitor does.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while numbers := os.read(self._reading, 1):
            number = numbers[0]
            is_ours = number in ENDING and (self.stopped or signal.getsignal(number) is self._handler)
            if is_ours and self._is_program and not self._is_over.wait(LONGEST_STOP):
                say(f"stopped by {signal.Signals(number).name}")
                end_now()
        os.close(self._reading)


def end_now(status: int = ExitStatus.STOPPED) -> NoReturn:
    """Ends this process, whatever its threads do, after what is to be done at its end; its processes are asked to end.

    The interpreter would wait for threads, and take a second of the processor to put away torch.
    """
    clearing = threading.Thread(target=_clear, daemon=True)
    clearing.start()
    clearing.join(_LONGEST_CLEARING)
    drain_streams(_LAST_MESSAGES)
    os._exit(status)


def end_at_signals() -> None:
    """From now on a signal of `ENDING` ends this program, which has begun nothing yet, at once."""

    def end(number: int, _frame: FrameType | None) -> None:
        say(f"stopped by {signal.Signals(number).name}")
        os._exit(ExitStatus.STOPPED)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def _clear() -> None:
    import psutil  # late: help answers before it would be loaded

    for child in psutil.Process().children():
        with suppress(psutil.Error):
            child.terminate()
    with suppress(Exception):
        atexit._run_exitfuncs()  # temporary folders, unfinished files


_left: list[int] = []


def left_to_a_thread(number: int, _frame: FrameType | None) -> None:
    """The handler of signals on which `call_at_signals` calls."""
    _left.append(number)


def take_left() -> list[int]:
    """Signals that were left to the thread. To be called by who puts another handler in place, as the thread, which
    may not have run since, leaves them to that one."""
    left = _left.copy()
    _left.clear()
    return left


@contextmanager
def call_at_signals(call: Callable[[int], None]) -> Iterator[None]:
    """The first signal of `ENDING` calls this from a thread of its own, for as long as its handler is
    `left_to_a_thread`; those of `HARMLESS` do nothing. Former handlers are put back in the end.

    The main thread may wait inside a library, where Python runs no handler. Signals that are held back, as those to
    ranks are until they call this, are let in. Only the main thread may call it.
    """
    before = {number: signal.getsignal(number) for number in (*ENDING, *HARMLESS)}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not this process's
    threading.Thread(target=_await_signals, args=(reader, call), name="signals", daemon=True).start()
    for number in HARMLESS:
        signal.signal(number, signal.SIG_IGN)
    for number in ENDING:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, left_to_a_thread)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # ends the thread


def _await_signals(reader: int, call: Callable[[int], None]) -> None:
    while numbers := os.read(reader, 1):
        if numbers[0] in ENDING and signal.getsignal(numbers[0]) is left_to_a_thread:
            call(numbers[0])
            break
    os.close(reader)


def hold_back_signals() -> None:
    """For a process between this one and the ranks, before its `exec`: signals of `ENDING` neither end it nor are
    passed on. They wait, where `held_back` sees them; it ends with its ranks.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which ranks are stopped, also where it was ignored at the start
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def held_back(pid: int) -> int | None:
    """A signal of `ENDING` that was sent to a process which holds them back; None where there is none, or no /proc.

    Those that this process ignores do not count.
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
    """Processes of `multiprocessing` that are started meanwhile get no signal of `ENDING` until they call
    `leave_signals_to_parent`: those to a whole group of processes, as a terminal sends them, are their parent's affair.
    """
    from multiprocessing import resource_tracker  # late: most commands start no such process

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        resource_tracker.ensure_running()  # which blocks them itself, and then lets them in
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """For a process that ends when its parent does: no signal ends it before."""
    for number in (*ENDING, *HARMLESS):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
