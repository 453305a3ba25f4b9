"""Lock folders: for training in a run, for writing a tokenizer or a store, for reading one that must not be removed.

On a local disk the lock is a system lock (flock) on the folder itself, which leaves no file. If the file system has no
such lock, or one that works only within one machine, as network file systems do, the folder also gets a lease: the file
`LOCK_FILE`, which names host and process and which its holder renews.
"""

import ctypes
import errno
import fcntl
import functools
import logging
import os
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import psutil
from filelock import LeaseCompromise, LeaseSettingsMismatch, SoftFileLease, Timeout
from typing_extensions import Self

from ds_rvqvae.errors import printable

LOCK_FILE = ".lock"
"""This file is in a folder that is held by a lease, or that was held by a process that was killed."""
SILENCE_SECONDS = 60.0
"""A lease of another machine counts as left by an ended process after so long without renewal."""
_BEATS = 6
"""Renewals of a lease within that time."""
_SECONDS_BETWEEN_LOOKS = 0.25
_SLOW_SECONDS = 5.0
"""A check that takes longer means that the file system was blocked, and perhaps its holder too."""
_LOCAL = frozenset(
    [
        *(0xEF53, 0x58465342, 0x9123683E, 0x2FC12FC1, 0xF2F52010, 0xCA451A4E),  # ext, xfs, btrfs, zfs, f2fs, bcachefs
        *(0x01021994, 0x858458F6, 0x794C7630, 0x4D44, 0x5346544E, 0x7366746E),  # tmpfs, ramfs, overlay, fat, ntfs
    ]
)
"""Types that statfs(2) gives for file systems of one machine only, on which the system's locks keep everybody else
out."""

logger = logging.getLogger("ds_rvqvae")
_warned: set[Path] = set()


class BusyError(Exception):
    """Another process holds the folder.

    Attributes:
        holder: which process, in words.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder}: {holder} holds it")
        self.holder = holder


class HeldFolder:
    """A folder that this process holds until `close`, or until it ends for any reason; a fork of it holds nothing.

    Attributes:
        works: False if the file system has no lock of any kind, so that nobody is kept out.
    """

    def __init__(self, handle: int | None, lease: SoftFileLease | None = None) -> None:
        self._handle, self._lease = handle, lease
        self._closing = threading.Lock()
        self.works = handle is not None or lease is not None
        _held.add(self)

    def close(self) -> None:
        """Releases the folder."""
        with self._closing:
            lease, self._lease = self._lease, None
            if lease is not None:
                with suppress(OSError):  # the folder or its disk is gone
                    lease.release()
            handle, self._handle = self._handle, None
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_UN)  # also releases a fork's copy that is not closed yet
                os.close(handle)

    def is_there(self, folder: Path) -> bool:
        """Returns whether the held folder still has the name `folder`; it may have been removed while this process
        waited."""
        try:
            there = folder.stat()
        except FileNotFoundError:
            return False
        return self._handle is None or os.path.samestat(os.fstat(self._handle), there)

    def _forget(self) -> None:
        """Closes a fork's copy of the handle, which would keep the folder locked after its parent ends. filelock
        handles the lease."""
        handle, self._handle = self._handle, None
        self._lease, self._closing = None, threading.Lock()
        if handle is not None:
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_held: "weakref.WeakSet[HeldFolder]" = weakref.WeakSet()


def _forget_all() -> None:
    for held in list(_held):
        held._forget()


os.register_at_fork(after_in_child=_forget_all)


def hold_folder(
    folder: Path,
    *,
    wait: bool,
    shared: bool = False,
    say: Callable[[str], None] = logger.warning,
    lost: Callable[[str], None] | None = None,
) -> HeldFolder:
    """Locks an existing folder against all others; leaves no file in it after `close`.

    A holder on this machine keeps it until its process ends, even while that process is stopped. A holder on another
    machine that does not renew its lease loses the folder after `SILENCE_SECONDS`; this function waits that long even
    without `wait`. If nobody can be kept out, a warning says so, once per folder.

    Args:
        wait: until the holders release it; else raises BusyError.
        shared: holds it together with other shared holders, against those who want it alone. It never makes a lease: if
            the system has no lock of its own, it keeps nobody out.
        say: receives messages about waiting and about folders that cannot be locked.
        lost: receives, in another thread, a message that another machine has taken the folder, because this process did
            not renew its lease in time. The default is `say`.

    Raises:
        BusyError: another process holds it, and `wait` is false.
        OSError: the folder cannot be opened.
    """
    handle: int | None = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    assert handle is not None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        holder = _flock_holder(handle)
        os.close(handle)
        raise BusyError(folder, holder) from None
    except OSError:  # a file system without locks
        os.close(handle)
        handle = None
    except BaseException:
        os.close(handle)
        raise
    if shared or (handle is not None and _is_local(folder)):
        return HeldFolder(handle)
    try:
        return HeldFolder(handle, _take_lease(folder, wait, say, lost or say))
    except OSError as error:
        if folder not in _warned:
            _warned.add(folder)
            say(
                f"{folder}: cannot be locked ({error.strerror or error}): a second start "
                f"{'on another machine ' if handle is not None else ''}would not be noticed"
            )
        return HeldFolder(handle)
    except BaseException:
        if handle is not None:
            os.close(handle)
        raise


def _flock_holder(handle: int) -> str:
    """Returns who holds the lock on an open folder, from the system's list of locks."""
    inode = f":{os.fstat(handle).st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4711 08:01:123456 0 EOF; one that waits has "->" before FLOCK
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(inode) and int(words[4]) > 0:
                return f"process {words[4]} of this machine ({printable(socket.gethostname())})"
    return "another process"


def _is_local(folder: Path) -> bool:
    """Returns whether the system's lock on a folder keeps out everybody who can see it.

    A network file system accepts such locks too, but keeps them in the memory of this machine.
    """
    if not sys.platform.startswith("linux"):
        return True
    facts = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None).statfs(os.fsencode(folder), facts) != 0:
        return False
    kind = int.from_bytes(facts.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return kind & 0xFFFFFFFF in _LOCAL


def _take_lease(folder: Path, wait: bool, say: Callable[[str], None], lost: Callable[[str], None]) -> SoftFileLease:
    """Takes the lease of a folder; raises BusyError as `hold_folder` does, and OSError if no lease is possible."""
    lease, beat, told = _new_lease(folder, lost), None, False
    while True:
        began = time.monotonic()
        try:
            lease.acquire(blocking=False)  # also breaks one whose holder is gone or did not renew it
            return lease
        except Timeout:
            settled = False
        except LeaseSettingsMismatch:
            settled = True
        except PermissionError:
            if lease.owner is None:
                raise
            _refuse(folder, lease)  # the lease of another user, whose file this process may not renew
        owner, renewed = lease.owner, _renewed(folder)
        here = owner is not None and owner.hostname == _own_host() and _runs(owner.pid)
        alive = settled or here or (None not in (beat, renewed) and beat != renewed)
        if alive and not wait:
            _refuse(folder, lease)
        if owner is not None and not alive and not told:
            told = True
            say(
                f"{folder}: {_words(owner.pid, owner.hostname)} holds it; waiting up to {SILENCE_SECONDS:.0f} s for "
                "it to renew its lock"
            )
        if alive or time.monotonic() - began > _SLOW_SECONDS:
            lease = _new_lease(folder, lost)  # starts again to count the time without renewal
        beat = renewed
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _new_lease(folder: Path, lost: Callable[[str], None]) -> SoftFileLease:
    def report(compromise: LeaseCompromise) -> None:
        if compromise.reason == "owner-changed":
            owner = SoftFileLease(compromise.lock_file, lease_duration=SILENCE_SECONDS).owner
            other = _words(owner.pid, owner.hostname) if owner else "another process"
            lost(f"{folder}: this process did not renew its lock in time, and {other} has taken the folder")
        else:
            logger.warning("%s: the lock was removed: a second start would not be noticed", folder / LOCK_FILE)

    return SoftFileLease(
        folder / LOCK_FILE,
        lease_duration=SILENCE_SECONDS,
        heartbeat_interval=SILENCE_SECONDS / _BEATS,
        on_compromise=report,
        thread_local=False,
    )


def _refuse(folder: Path, lease: SoftFileLease) -> NoReturn:
    owner = lease.owner
    raise BusyError(folder, _words(owner.pid, owner.hostname) if owner else "another process")


def _words(pid: int, host: str) -> str:
    name = printable(host.partition("?")[0])  # filelock adds the namespace of process ids, for containers
    return f"process {pid} of this machine ({name})" if host == _own_host() else f"process {pid} of {name}"


def _renewed(folder: Path) -> tuple[int, int] | None:
    """Returns values that change with each renewal of a lease. The file is opened, because a network file system checks
    for changes only then."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.EACCES):
            raise
        return None
    try:
        facts = os.fstat(handle)
        return facts.st_mtime_ns, facts.st_ino
    finally:
        os.close(handle)


def _runs(pid: int) -> bool:
    """Returns whether a process of this machine still runs; an ended one may be listed until its parent notices."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@functools.cache
def _own_host() -> str:
    """Returns the name that leases use for this machine and its namespace of process ids."""
    with suppress(OSError), tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / LOCK_FILE) as lease:
        if lease.owner is not None:
            return lease.owner.hostname
    return socket.gethostname()
