"""Heartbeats: every rank writes signs of life, and the launcher reads which rank has died or is stuck. Without torch.

Times are from `time.monotonic`: all processes of a machine share it, and neither a corrected clock nor a suspended
machine changes it. The file belongs to the launcher, is on its machine, and has a place for each local rank.
"""

import fcntl
import os
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from enum import IntEnum
from pathlib import Path
from typing import ClassVar

import psutil

from ds_rvqvae.errors import ExitStatus

HEARTBEAT_VARIABLE = "DS_RVQVAE_HEARTBEAT"
"""Environment variable with the file that ranks write their signs of life to."""
PATIENCE = 600.0
"""Maximum seconds between two beats while a rank starts, compiles or does other long work."""

BLOCKED = 20.0
"""Seconds without a step after which a rank that was asked to stop is blocked, if its steps usually take less."""

_FORMAT = struct.Struct("=qqqqddqqqd")
"""The fields of `Sign`. They are written at once, so that nothing reads half a sign."""
_SECONDS_BETWEEN_WRITES = 1.0
_LONGEST_LOOK = 5.0
"""If more seconds pass between two calls of `Watch.look`, the watcher itself was stopped."""
_RECENT_STEPS = 8
_PATIENCE_WITH_OTHERS = 1.0
"""Maximum seconds to wait for the reports of other ranks that end."""
_LATER = 8.0
"""Seconds that ranks have to notice by themselves that they are blocked, before the launcher does."""


class Cause(IntEnum):
    """The reason why a rank failed, as far as the launcher treats it in a special way."""

    OTHER = 0
    OUT_OF_MEMORY = 1
    """A restart would run out of memory again."""
    BLOCKED = 2
    """It was asked to stop, and could not save because it was blocked. Nobody wants a restart."""
    FOLLOWED = 3
    """Another rank of this machine had ended before, and so this one could not go on."""


@dataclass
class Sign:
    """The last sign of life of a rank."""

    rank: int
    local_rank: int
    pid: int
    step: int
    """The last finished step; 0 before the first."""
    alive: float
    """Time of this sign; a thread of the rank writes one every second until the rank ends."""
    progress: float
    """Time of the main thread's last beat."""
    patient: bool
    """Whether the main thread does work that may take `PATIENCE`."""
    ended: int = -1
    """The exit status if the rank ends by itself; -1 before that."""
    cause: int = Cause.OTHER
    """Why it failed, a `Cause`."""
    slowest: float = 0.0
    """Seconds that the longest of the last steps took; 0 before the second one of this start."""

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid})"


class Heartbeat:
    """Writes a rank's signs of life, if our launcher asked for them."""

    _own: ClassVar["Heartbeat | None"] = None
    """The heartbeat of this process, once started."""
    _ending: ClassVar = threading.Lock()
    _writing: ClassVar = threading.RLock()

    def __init__(self, file: Path | None, rank: int) -> None:
        now = time.monotonic()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._sign = Sign(rank, local_rank, os.getpid(), step=0, alive=now, progress=now, patient=True)
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._file: int | None = None
        if file is not None:
            with suppress(OSError):  # as in `_write`
                self._file = os.open(file, os.O_RDWR | os.O_CLOEXEC)

    @classmethod
    def start(cls, rank: int) -> "Heartbeat":
        """Starts a thread that writes every second until the process ends."""
        file = os.environ.get(HEARTBEAT_VARIABLE)
        heartbeat = cls(Path(file) if file else None, rank)
        heartbeat._write()
        cls._own = heartbeat
        if heartbeat._file is not None:
            threading.Thread(target=heartbeat._write_on, name="heartbeat", daemon=True).start()
        return heartbeat

    def beat(self, step: int) -> None:
        """Reports progress of the main thread; `step` is the last one that it finished."""
        now = time.monotonic()
        if not self._sign.patient:
            self._recent.append(now - self._sign.progress)
            self._sign.slowest = max(self._recent)
        self._sign.step, self._sign.progress, self._sign.patient = step, now, False
        self._write()

    def has_stepped(self) -> bool:
        """Returns whether this process has finished a step."""
        return self._sign.step > 0

    def is_blocked(self, since: float) -> bool:
        """Returns whether this rank, which was asked to stop at the time `since`, is blocked; see `is_blocked`."""
        return is_blocked(self._sign, since, time.monotonic())

    @contextmanager
    def long_work(self) -> Iterator[None]:
        """Marks work between two steps that gives no beats, such as writing a large file."""
        was_patient = self._sign.patient
        self._sign.progress, self._sign.patient = time.monotonic(), True
        try:
            yield
        finally:
            self._sign.progress, self._sign.patient = time.monotonic(), was_patient

    @classmethod
    def end(cls, status: int) -> int:
        """Reports, if a heartbeat was started, that this process ends by itself with `status` and is not killed.

        Returns:
            the status to exit with. The first reported one stays, since later work of a stopped process may fail.
        """
        if cls._own is None:
            return status
        with cls._ending:
            sign = cls._own._sign
            if sign.ended < 0:
                sign.alive, sign.ended = time.monotonic(), status
                cls._own._write()
            return sign.ended

    @classmethod
    def fail(cls, cause: Cause = Cause.OTHER, patience: float = _PATIENCE_WITH_OTHERS) -> bool:
        """Reports that this process fails, if a heartbeat was started.

        Args:
            patience: seconds to wait for the sign of a rank that ended before; a lost connection is noticed sooner.

        Returns:
            whether it prints the reason: no other rank of this machine has ended before, and it did not stop itself.
        """
        own = cls._own
        if own is None:
            return True
        deadline = time.monotonic() + patience
        while not (followed := bool(cls.ended_before())) and time.monotonic() < deadline:
            time.sleep(0.05)
        with own._alone():
            followed = followed or bool(cls.ended_before())
            with cls._ending:
                if own._sign.ended < 0:
                    own._sign.cause = Cause.FOLLOWED if followed else cause
            return cls.end(ExitStatus.FAILED) == ExitStatus.FAILED and not followed

    @classmethod
    def ended_before(cls) -> int:
        """Returns the status of another rank of this machine that has ended, or 70 if it was killed; 0 if none has.

        Of several, it is one that failed rather than one that was stopped.
        """
        own = cls._own
        if own is None or own._file is None:
            return 0
        content = b""
        with suppress(OSError):
            content = os.pread(own._file, os.fstat(own._file).st_size, 0)
        found = 0
        for sign in _signs_in(content):
            if sign.pid == own._sign.pid or sign.ended == 0:
                continue
            if sign.ended > 0 and found in (0, ExitStatus.STOPPED):
                found = sign.ended
            elif sign.ended < 0 and not _is_running(sign.pid):
                return int(ExitStatus.FAILED)
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other ranks from reporting a failure meanwhile, so that one of them is the first."""
        deadline = time.monotonic() + _PATIENCE_WITH_OTHERS
        held = False
        while self._file is not None and not held and time.monotonic() < deadline:
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            if not held:
                time.sleep(0.01)
        try:
            yield
        finally:
            if self._file is not None and held:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _write_on(self) -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_WRITES)
            self._write()

    def _write(self) -> None:
        if self._sign.ended < 0:
            self._sign.alive = time.monotonic()
        if self._file is not None:
            with suppress(OSError), self._writing:  # a failed report must not end the training
                os.pwrite(self._file, _FORMAT.pack(*astuple(self._sign)), self._sign.local_rank * _FORMAT.size)


def read_heartbeats(file: Path) -> list[Sign]:
    """Returns the last sign of every rank that wrote one, sorted by rank."""
    content = b""
    with suppress(OSError):
        content = file.read_bytes()
    return _signs_in(content)


def _signs_in(content: bytes) -> list[Sign]:
    whole = len(content) - len(content) % _FORMAT.size
    signs = [Sign(*fields) for fields in _FORMAT.iter_unpack(content[:whole])]
    return sorted((sign for sign in signs if sign.pid), key=lambda sign: sign.rank)


def is_blocked(sign: Sign, since: float, now: float) -> bool:
    """Returns whether a rank that was asked to stop at the time `since` is blocked, so that it will not save.

    It is, if it has finished no step for `BLOCKED` seconds since then, or for twice its longest step if that is more.
    Long work between two steps, as a save, is never called blocked; before the first step there is nothing to save.
    """
    waited = now - max(sign.progress, since)
    return not (sign.patient and sign.step) and waited > max(BLOCKED, 2 * sign.slowest)


def find_stuck(signs: Sequence[Sign], local_ranks: int, started: float, now: float, limit: float) -> str | None:
    """Returns a text that says which rank is stuck, and why; None if none is.

    A rank that wrote nothing for `limit` seconds is stopped or hangs in a driver. If all write and none finishes a
    step, they wait for the one that is behind.

    Args:
        local_ranks: expected number of ranks on this machine.
        started: time when the ranks were started, or later time from which their silence counts.
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
        "--hang_timeout sets how long a step may take"
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
    """Returns a dead rank's status or negative signal; None if it was killed and the signal is not known."""
    if sign.ended >= 0:
        return sign.ended
    with suppress(OSError, ValueError):
        # The last field is the exit code, until its parent, deepspeed's launcher, asks for it.
        return os.waitstatus_to_exitcode(int(Path(f"/proc/{sign.pid}/stat").read_text().split()[-1]))
    return None


class Watch:
    """Follows the signs of life of one start of a job.

    Args:
        file: the file in `HEARTBEAT_VARIABLE`.
        local_ranks: expected number of ranks on this machine.
        limit: seconds without a sign, or without a step, after which a rank is stuck; 0 for no limit.
    """

    def __init__(self, file: Path, local_ranks: int, limit: float) -> None:
        self.file, self.local_ranks, self.limit = file, local_ranks, limit
        self.step = 0
        """The highest step that a rank finished."""
        self._dead: list[tuple[Sign, int | None]] = []
        self._started = self._looked = time.monotonic()

    def look(self) -> str | None:
        """Records dead ranks, and returns which rank is stuck, if any. Call it several times per second."""
        now = time.monotonic()
        if now - self._looked > _LONGEST_LOOK:
            self._started = now  # this process was stopped, and perhaps the ranks too
        self._looked = now
        signs = read_heartbeats(self.file)
        self.step = max((sign.step for sign in signs), default=self.step)
        if not self._dead:
            # Only the first deaths count: they cause those of the other ranks.
            self._dead = [(sign, code) for sign, code in self._gone() if code != 0]
        return find_stuck(signs, self.local_ranks, self._started, now, self.limit) if self.limit else None

    def begun(self) -> bool:
        """Returns whether a rank has written."""
        return bool(read_heartbeats(self.file))

    def running(self) -> list[psutil.Process]:
        """Returns the processes of the ranks that run."""
        found = []
        for sign in read_heartbeats(self.file):
            if _is_running(sign.pid):
                with suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(sign.pid))
        return found

    def blocked(self, since: float) -> bool:
        """Returns whether all ranks that run are blocked since they were asked to stop, and have not ended by
        themselves."""
        signs = [sign for sign in read_heartbeats(self.file) if _is_running(sign.pid)]
        return bool(signs) and all(is_blocked(sign, since, time.monotonic() - _LATER) for sign in signs)

    def one_failed(self) -> bool:
        """Returns whether a rank has ended with another status than 0, or was killed."""
        reported = any(sign.ended > 0 for sign in read_heartbeats(self.file))
        return reported or any(code != 0 for _, code in self._gone())

    def _gone(self) -> list[tuple[Sign, int | None]]:
        """Returns the ranks that do not run any more, with their statuses as `_exit_code` returns them."""
        gone = {sign.pid for sign in read_heartbeats(self.file) if not _is_running(sign.pid)}
        # Read again, because a rank reports its end before it is gone.
        return [(sign, _exit_code(sign)) for sign in read_heartbeats(self.file) if sign.pid in gone]

    def ended(self) -> int | None:
        """Returns the status if all ranks have ended by themselves: 0, or the first that is not 0. Else None."""
        signs = read_heartbeats(self.file)
        if len(signs) < self.local_ranks or any(sign.ended < 0 or _is_running(sign.pid) for sign in signs):
            return None
        return self.first_to_end()

    def first_to_end(self) -> int:
        """Returns the status of the rank that first ended by itself with a status other than 0; 0 if none did."""
        first = self._first(sign for sign in read_heartbeats(self.file) if sign.ended > 0)
        return first.ended if first else 0

    def last_word(self) -> Sign | None:
        """Returns the sign of the rank that first ended by itself with a status other than 0, and not because another
        had ended; None if none did."""
        signs = read_heartbeats(self.file)
        return self._first(sign for sign in signs if sign.ended > 0 and sign.cause != Cause.FOLLOWED)

    @staticmethod
    def _first(ended: Iterable[Sign]) -> Sign | None:
        return min(ended, key=lambda sign: sign.alive, default=None)

    def first_dead(self) -> tuple[Sign, int | None] | None:
        """Returns the rank that died first, and its status or negative signal (None if the signal is not known).

        If several died between two calls of `look`, it is the one that was killed. None if none died.
        """

        def order(death: tuple[Sign, int | None]) -> int:
            code = death[1]
            if code is None or (code < 0 and code != -signal.SIGTERM):
                return 0
            return 1 if code > 0 else 2  # deepspeed sends SIGTERM to the others

        return min(self._dead, key=order, default=None)
