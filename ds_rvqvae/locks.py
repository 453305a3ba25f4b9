"""Locks on folders: who trains in a run, who writes a tokenizer or a store, who reads one that must not be removed.

On a disk of this machine it is a lock of the system's on the folder itself, which leaves no file. Where there is none,
or where it keeps out the processes of this machine alone, as on network file systems, the folder also gets a lease: the
file `LOCK_FILE`, which names host and process and which its holder renews.
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
"""In a folder that is held by a lease, or was by a process that was killed."""
SILENCE_SECONDS = 60.0
"""A lease of another machine that was not renewed for this long is that of a process which ended."""
_BEATS = 6
"""How often a lease is renewed in that time."""
_SECONDS_BETWEEN_LOOKS = 0.25
_SLOW_SECONDS = 5.0
"""A look that takes longer says that the file system stood still, and perhaps the holder with it."""
_LOCAL = frozenset(
    [
        *(0xEF53, 0x58465342, 0x9123683E, 0x2FC12FC1, 0xF2F52010, 0xCA451A4E),  # ext, xfs, btrfs, zfs, f2fs, bcachefs
        *(0x01021994, 0x858458F6, 0x794C7630, 0x4D44, 0x5346544E, 0x7366746E),  # tmpfs, ramfs, overlay, fat, ntfs
    ]
)
"""What statfs(2) says of file systems that one machine alone has, so that its own locks keep all others out."""

logger = logging.getLogger("ds_rvqvae")
_warned: set[Path] = set()


class BusyError(Exception):
    """Another process has the folder.

    Attributes:
        holder: who, in words.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder}: {holder} holds it")
        self.holder = holder


class HeldFolder:
    """A folder that this process holds until `close`, or until it ends, of whatever; a fork of it holds nothing.

    Attributes:
        works: False where the file system has no lock of any kind, so that nobody is kept out.
    """

    def __init__(self, handle: int | None, lease: SoftFileLease | None = None) -> None:
        self._handle, self._lease = handle, lease
        self._closing = threading.Lock()
        self.works = handle is not None or lease is not None
        _held.add(self)

    def close(self) -> None:
        """Lets go of the folder."""
        with self._closing:
            lease, self._lease = self._lease, None
            if lease is not None:
                with suppress(OSError):  # the folder is gone, or its disk
                    lease.release()
            handle, self._handle = self._handle, None
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_UN)  # also of a copy that a fork has not closed yet
                os.close(handle)

    def is_there(self, folder: Path) -> bool:
        """Whether what is held still goes by the name `folder`; while it was waited for, it may have been removed."""
        try:
            there = folder.stat()
        except FileNotFoundError:
            return False
        return self._handle is None or os.path.samestat(os.fstat(self._handle), there)

    def _forget(self) -> None:
        """In a fork, whose copy of the handle would keep the folder locked after its parent's end; filelock sees to the
        lease."""
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
    """Holds a folder that is there, against all others; leaves no file in it after `close`.

    A holder on this machine keeps it as long as it lives, also while it is stopped. One on another machine that gives
    no sign of life is waited for, `SILENCE_SECONDS` long and without `wait` too; then it has lost the folder. Where
    nobody can be kept out, a warning says so, once a folder.

    Args:
        wait: until those who hold it let go; else raises BusyError.
        shared: together with others who hold it shared, against those who want it alone. It never makes a lease: where
            the system has no lock of its own, it keeps nobody out.
        say: takes the lines about waiting and about what cannot be locked.
        lost: takes, in another thread, a line about a folder that another machine has taken from this process, which
            gave no sign of life for too long. By default `say` does.

    Raises:
        BusyError: without `wait`, where another holds it.
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
    """Who has the lock on an open folder, by the system's list of them."""
    inode = f":{os.fstat(handle).st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4711 08:01:123456 0 EOF; one that waits has "->" before FLOCK
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(inode) and int(words[4]) > 0:
                return f"process {words[4]} of this machine ({printable(socket.gethostname())})"
    return "another process"


def _is_local(folder: Path) -> bool:
    """Whether the system's locks on a folder keep out all who see it.

    A network file system answers those on folders too, but from the memory of this machine.
    """
    if not sys.platform.startswith("linux"):
        return True
    facts = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None).statfs(os.fsencode(folder), facts) != 0:
        return False
    kind = int.from_bytes(facts.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return kind & 0xFFFFFFFF in _LOCAL


def _take_lease(folder: Path, wait: bool, say: Callable[[str], None], lost: Callable[[str], None]) -> SoftFileLease:
    """The lease of a folder; raises BusyError as `hold_folder`, and OSError where there can be none."""
    lease, beat, told = _new_lease(folder, lost), None, False
    while True:
        began = time.monotonic()
        try:
            lease.acquire(blocking=False)  # also breaks one whose holder is gone, or was silent while `lease` was there
            return lease
        except Timeout:
            settled = False
        except LeaseSettingsMismatch:
            settled = True
        except PermissionError:
            if lease.owner is None:
                raise
            _refuse(folder, lease)  # somebody else's, whose file this process may not renew
        owner, renewed = lease.owner, _renewed(folder)
        here = owner is not None and owner.hostname == _own_host() and _runs(owner.pid)
        alive = settled or here or (None not in (beat, renewed) and beat != renewed)
        if alive and not wait:
            _refuse(folder, lease)
        if owner is not None and not alive and not told:
            told = True
            say(
                f"{folder}: {_words(owner.pid, owner.hostname)} holds it; waiting up to {SILENCE_SECONDS:.0f} s for a "
                f"sign of life of it"
            )
        if alive or time.monotonic() - began > _SLOW_SECONDS:
            lease = _new_lease(folder, lost)  # forgets how long it has seen no sign of life
        beat = renewed
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _new_lease(folder: Path, lost: Callable[[str], None]) -> SoftFileLease:
    def report(compromise: LeaseCompromise) -> None:
        if compromise.reason == "owner-changed":
            owner = SoftFileLease(compromise.lock_file, lease_duration=SILENCE_SECONDS).owner
            other = _words(owner.pid, owner.hostname) if owner else "another process"
            lost(f"{folder}: this process gave no sign of life for too long, and {other} has taken the folder")
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
    name = printable(host.partition("?")[0])  # filelock adds the space of process ids, for containers
    return f"process {pid} of this machine ({name})" if host == _own_host() else f"process {pid} of {name}"


def _renewed(folder: Path) -> tuple[int, int] | None:
    """What changes whenever a lease is renewed; opened, as a network file system looks for changes only then."""
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
    """Whether a process of this machine has not ended; one that ended may be listed until its parent takes note."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@functools.cache
def _own_host() -> str:
    """This machine and its space of process ids as leases name it."""
    with suppress(OSError), tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / LOCK_FILE) as lease:
        if lease.owner is not None:
            return lease.owner.hostname
    return socket.gethostname()
