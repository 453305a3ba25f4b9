"""Signals that end a command: once, with one line, after what was begun is put away; and those that end a rank."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end. One that is ignored at the start, as SIGHUP under nohup, stays ignored."""
HARMLESS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that batch systems send to all processes of a job, and that by default would end them."""


class Stopped(BaseException):
    """A signal asked this process to end. No Exception, so that nothing that goes on after failures catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name


@contextmanager
def stopping_at_signals() -> Iterator[None]:
    """Raises `Stopped` in the main thread at the first signal of `ENDING`; signals of `HARMLESS` do nothing.

    A second SIGINT ends the process at once; further ones of the others do nothing, so that what is being put away is
    put away. In other threads than the main one, where Python takes no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*ENDING, *HARMLESS)}
    ending = [number for number in ENDING if before[number] is not signal.SIG_IGN]

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in ending:
            signal.signal(other, signal.SIG_IGN)
        if signal.SIGINT in ending:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise Stopped(number)

    for number in HARMLESS:
        signal.signal(number, signal.SIG_IGN)
    for number in ending:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def left_to_a_thread(_number: int, _frame: FrameType | None) -> None:
    """The handler of signals on which `call_at_signals` calls."""


def call_at_signals(call: Callable[[int], None]) -> None:
    """From now on the first signal of `ENDING` calls this from a thread of its own, for as long as its handler is
    `left_to_a_thread`; those of `HARMLESS` do nothing.

    The main thread may wait inside a library, where Python runs no handler. Signals that are held back, as those to
    ranks are until they call this, are let in. Only the main thread may call it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not this process's
    threading.Thread(target=_await_signals, args=(reader, call), name="signals", daemon=True).start()
    for number in HARMLESS:
        signal.signal(number, signal.SIG_IGN)
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, left_to_a_thread)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _await_signals(reader: int, call: Callable[[int], None]) -> None:
    while numbers := os.read(reader, 1):
        if numbers[0] in ENDING and signal.getsignal(numbers[0]) is left_to_a_thread:
            call(numbers[0])
            return


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
