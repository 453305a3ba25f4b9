"""Signs of life: every rank writes them, the launcher reads from them which rank has died or is stuck. Without torch.

Times are those of `time.monotonic`, which all processes of a machine share and which neither a corrected clock nor a
suspended machine moves; the file is the launcher's own, on its machine, and has a place for each of its local ranks.
"""

import os
import signal
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import ClassVar

import psutil

HEARTBEAT_VARIABLE = "DS_RVQVAE_HEARTBEAT"
"""Environment variable with the file that ranks write their signs of life into."""
PATIENCE = 600.0
"""Seconds that starting, compiling and other long work may take between two beats."""

_FORMAT = struct.Struct("=qqqqddqq")
"""The fields of `Sign`. All of it is written at once, so that no reader meets half a sign."""
_SECONDS_BETWEEN_WRITES = 1.0
_LONGEST_LOOK = 5.0
"""Seconds between two looks from which on the watcher itself must have been stopped."""


@dataclass
class Sign:
    """What one rank last wrote."""

    rank: int
    local_rank: int
    pid: int
    step: int
    """The last step that was finished, 0 before the first."""
    alive: float
    """When the rank wrote this, as a thread of it does every second until it ends."""
    progress: float
    """When the main thread last gave a beat."""
    patient: bool
    """Whether the main thread is at work that may take `PATIENCE`."""
    ended: int = -1
    """The exit status with which the rank ends of itself; -1 while it has none."""

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid})"


class Heartbeat:
    """A rank's signs of life; none are written where no launcher of ours asked for them."""

    _own: ClassVar["Heartbeat | None"] = None
    """This process's, once started."""
    _ending: ClassVar = threading.Lock()

    def __init__(self, file: Path | None, rank: int) -> None:
        now = time.monotonic()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._sign = Sign(rank, local_rank, os.getpid(), step=0, alive=now, progress=now, patient=True)
        self._file: int | None = None
        if file is not None:
            with suppress(OSError):  # as in `_write`
                self._file = os.open(file, os.O_WRONLY | os.O_CLOEXEC)

    @classmethod
    def start(cls, rank: int) -> "Heartbeat":
        """Starts writing every second, from a thread of its own, until the process ends."""
        file = os.environ.get(HEARTBEAT_VARIABLE)
        heartbeat = cls(Path(file) if file else None, rank)
        heartbeat._write()
        cls._own = heartbeat
        if heartbeat._file is not None:
            threading.Thread(target=heartbeat._write_on, name="heartbeat", daemon=True).start()
        return heartbeat

    def beat(self, step: int) -> None:
        """Says that the main thread gets on; `step` is the last one that it finished."""
        self._sign.step, self._sign.progress, self._sign.patient = step, time.monotonic(), False
        self._write()

    @contextmanager
    def long_work(self) -> Iterator[None]:
        """Work between two steps in which no beat can be given, such as writing a large file."""
        was_patient = self._sign.patient
        self._sign.progress, self._sign.patient = time.monotonic(), True
        try:
            yield
        finally:
            self._sign.progress, self._sign.patient = time.monotonic(), was_patient

    @classmethod
    def end(cls, status: int) -> int:
        """Says, where a heartbeat was started, that this process is about to exit with `status`, not to be killed.

        Returns:
            the status to exit with: what was said first stays, as what a stopped process does next may fail.
        """
        if cls._own is None:
            return status
        with cls._ending:
            sign = cls._own._sign
            if sign.ended < 0:
                sign.alive, sign.ended = time.monotonic(), status
                cls._own._write()
            return sign.ended

    def _write_on(self) -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_WRITES)
            self._write()

    def _write(self) -> None:
        if self._sign.ended < 0:
            self._sign.alive = time.monotonic()
        if self._file is not None:
            with suppress(OSError):  # what only reports must not end the training
                os.pwrite(self._file, _FORMAT.pack(*astuple(self._sign)), self._sign.local_rank * _FORMAT.size)


def read_heartbeats(file: Path) -> list[Sign]:
    """The last sign of every rank that wrote one, by rank."""
    content = b""
    with suppress(OSError):
        content = file.read_bytes()
    whole = len(content) - len(content) % _FORMAT.size
    signs = [Sign(*fields) for fields in _FORMAT.iter_unpack(content[:whole])]
    return sorted((sign for sign in signs if sign.pid), key=lambda sign: sign.rank)


def find_stuck(signs: Sequence[Sign], local_ranks: int, started: float, now: float, limit: float) -> str | None:
    """Says which rank is stuck, and by what; None where none is.

    A rank that wrote nothing for `limit` seconds is stopped or hung in a driver. Where all write and none finishes a
    step, they wait for the one that is behind.

    Args:
        local_ranks: how many there should be on this machine.
        started: when the ranks were started, or, later, from when on their silence counts.
    """
    silent = [sign for sign in signs if now - max(sign.alive, started) > limit and _is_running(sign.pid)]
    if silent:
        return "; ".join(_silence(sign, now - max(sign.alive, started)) for sign in silent)
    patience = max(limit, PATIENCE)
    missing = sorted(set(range(local_ranks)) - {sign.local_rank for sign in signs})
    if missing:
        late = now - started > patience
        return f"local rank {', '.join(map(str, missing))} did not start within {patience:.0f} s" if late else None
    ages = [now - max(sign.progress, started) for sign in signs]
    if not signs or any(age <= (patience if sign.patient else limit) for sign, age in zip(signs, ages, strict=True)):
        return None
    behind = [sign for sign in signs if sign.step == min(sign.step for sign in signs)]
    verb = "has" if len(behind) == 1 else "have"
    return (
        f"{', '.join(map(str, behind))} {verb} not finished a step for {min(ages):.0f} s, after step {behind[0].step}; "
        "--hang_timeout sets how long that may take"
    )


def _silence(sign: Sign, seconds: float) -> str:
    with suppress(psutil.Error):
        if psutil.Process(sign.pid).status() == psutil.STATUS_STOPPED:
            return f"{sign} has been stopped for {seconds:.0f} s"
    return f"{sign} has given no sign of life for {seconds:.0f} s"


def _is_running(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _exit_code(sign: Sign) -> int | None:
    """A dead rank's status or negative signal; None where it was killed and the signal is lost."""
    if sign.ended >= 0:
        return sign.ended
    with suppress(OSError, ValueError):
        # The last field is what its parent, deepspeed's launcher, has not asked for yet.
        return os.waitstatus_to_exitcode(int(Path(f"/proc/{sign.pid}/stat").read_text().split()[-1]))
    return None


class Watch:
    """Follows the signs of life of one start of a job.

    Args:
        file: what `HEARTBEAT_VARIABLE` names.
        local_ranks: how many ranks there should be on this machine.
        limit: seconds without a sign, or without a step, after which a rank is stuck; 0 for any number.
    """

    def __init__(self, file: Path, local_ranks: int, limit: float) -> None:
        self.file, self.local_ranks, self.limit = file, local_ranks, limit
        self.step = 0
        """The furthest step that a rank finished."""
        self._dead: list[tuple[Sign, int | None]] = []
        self._started = self._looked = time.monotonic()

    def look(self) -> str | None:
        """Notes who has died; says who is stuck. To be called several times a second."""
        now = time.monotonic()
        if now - self._looked > _LONGEST_LOOK:
            self._started = now  # this process was stopped, and the ranks perhaps with it
        self._looked = now
        signs = read_heartbeats(self.file)
        self.step = max((sign.step for sign in signs), default=self.step)
        if not self._dead:
            # Only the first: the others die of its death.
            dead = [(sign, _exit_code(sign)) for sign in signs if not _is_running(sign.pid)]
            self._dead = [(sign, code) for sign, code in dead if code != 0]
        return find_stuck(signs, self.local_ranks, self._started, now, self.limit) if self.limit else None

    def begun(self) -> bool:
        """Whether a rank has written."""
        return bool(read_heartbeats(self.file))

    def running(self) -> list[psutil.Process]:
        """The ranks that run."""
        found = []
        for sign in read_heartbeats(self.file):
            if _is_running(sign.pid):
                with suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(sign.pid))
        return found

    def ended(self) -> int | None:
        """The status of ranks that have all ended of themselves: 0, or that of the first with another. Else None."""
        signs = read_heartbeats(self.file)
        if len(signs) < self.local_ranks or any(sign.ended < 0 or _is_running(sign.pid) for sign in signs):
            return None
        return self.first_to_end()

    def first_to_end(self) -> int:
        """The status of the rank that first ended of itself with another than 0; 0 where none did."""
        ended = [sign for sign in read_heartbeats(self.file) if sign.ended > 0]
        return min(ended, key=lambda sign: sign.alive).ended if ended else 0

    def first_dead(self) -> tuple[Sign, int | None] | None:
        """The rank that died first, and its status or negative signal, None where it was killed by an unknown one.

        Of several in one look it is the one that was killed. None where no death was seen.
        """

        def order(death: tuple[Sign, int | None]) -> int:
            code = death[1]
            if code is None or (code < 0 and code != -signal.SIGTERM):
                return 0
            return 1 if code > 0 else 2  # deepspeed sends SIGTERM to the others

        return min(self._dead, key=order, default=None)
