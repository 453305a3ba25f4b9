"""Signals that end a command: once, with one line, after what was begun is put away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
