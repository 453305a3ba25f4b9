"""Write files and folders completely or not at all, append complete lines, read text and JSON, and detect changed
files."""

import atexit
import codecs
import errno
import functools
import glob
import hashlib
import json
import os
import shutil
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

_BLOCK_BYTES = 1 << 20
_READERS = min(32, 4 * (os.cpu_count() or 1))
"""Threads that read files at the same time: more than cores, because they wait for the disk or the network."""
LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Most bytes of a name on common file systems, and of a path on Linux."""
_ANY_UNFINISHED = ".unfinished-"
_UNFINISHED = f"{_ANY_UNFINISHED}{socket.gethostname()}-"
"""First part of the name of a file or folder that is being written; the process id follows."""
_ABANDONED_AFTER = 24 * 3600.0
"""Seconds without a change after which a file of another machine counts as abandoned."""
_being_written: set[Path] = set()
"""Files and folders that this process is writing."""
os.register_at_fork(after_in_child=_being_written.clear)


@contextmanager
def whole_file(file: Path, synced: bool = False) -> Iterator[BinaryIO]:
    """Opens a new file for writing; it replaces `file` when everything is written. After an exception `file` is
    unchanged.

    Args:
        synced: wait until both the file and its name are on the disk.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{_UNFINISHED}{os.getpid()}-{threading.get_ident()}")
    _being_written.add(unfinished)
    try:
        with unfinished.open("wb") as content:
            yield content
            if synced:
                content.flush()
                os.fsync(content.fileno())
        unfinished.replace(file)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    finally:
        _being_written.discard(unfinished)
    if synced:
        sync(file.parent)


@contextmanager
def whole_folder(
    folder: Path, place: Path | None = None, *, replace: bool = True, synced: bool = False
) -> Iterator[Path]:
    """Makes a new folder to fill; it gets the name `folder` when everything is written. After an exception `folder` is
    unchanged.

    Args:
        place: a folder beside `folder` that holds the new one until then; what a killed process left in it is removed.
            By default it gets a new name.
        replace: whether to remove an existing folder with its content; only for folders in which nobody else keeps
            files. If false, a folder that is not empty raises OSError at the end, and a symbolic link is followed.
        synced: wait until files, folders and their names are on the disk.
    """
    folder = folder.absolute() if replace else Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if place is None:
        remove_abandoned(folder)
        place = folder.with_name(f"{hidden_name(folder.name)}{_UNFINISHED}{_new_name()}")
    else:
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    unfinished = place / "new"
    _being_written.add(unfinished)
    try:
        unfinished.mkdir()
        yield unfinished
        for path in [*unfinished.rglob("*"), unfinished] if synced else []:
            sync(path)
        if replace:
            replace_folder(unfinished, folder)
        else:
            unfinished.rename(folder)
        if synced:
            sync(folder.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        _being_written.discard(unfinished)


@atexit.register
def _remove_begun() -> None:
    """Removes unfinished files when a process ends while its threads write, for example after a signal."""
    for path in list(_being_written):
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
                path.parent.rmdir()
            else:
                path.unlink()


def hidden_name(name: str) -> str:
    """Returns the first part of the name of a hidden file or folder beside a folder: `.NAME`, or `.` and a checksum if
    NAME is so long that a suffix would not fit."""
    long = len(os.fsencode(name)) > LONGEST_NAME // 2
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:24] if long else name}"


def remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left beside a folder that `whole_folder` was making."""
    for place in folder.parent.glob(f"{glob.escape(hidden_name(folder.name))}{_ANY_UNFINISHED}*"):
        if is_abandoned(place):
            shutil.rmtree(place, ignore_errors=True)


def replace_folder(made: Path, folder: Path) -> None:
    """Renames `made` to `folder` on the same disk. An existing `folder` is removed with its content: only for folders
    in which nobody else keeps files.

    A process that is killed in between leaves the existing folder beside `made`, with the suffix `.old`.
    """
    earlier = made.with_name(f"{made.name}.old")
    shutil.rmtree(earlier, ignore_errors=True)
    try:
        if folder.exists():
            folder.rename(earlier)
        made.rename(folder)
    except BaseException:
        if earlier.exists() and not folder.exists():
            earlier.rename(folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _new_name() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex[:8]}"


def unfinished_files(folder: Path, name: str) -> list[Path]:
    """Returns the unfinished files of all processes that are to replace the file `name` of a folder."""
    return sorted(folder.glob(f"{_ANY_UNFINISHED}*-{glob.escape(name)}"))


def unfinished_stem(folder: Path) -> Path:
    """Returns the common first part of the names of files that one process writes into a folder together; `-` and the
    name of the file to replace follow."""
    return folder / f"{_UNFINISHED}{_new_name()}"


def is_abandoned(unfinished: Path) -> bool:
    """Returns whether nobody writes an unfinished file or folder any more: its process has ended, or, if the process is
    on another machine, it has not changed for a day."""
    import psutil  # imported late: the launcher answers sooner without it

    _, ours, rest = unfinished.name.partition(_UNFINISHED)
    process = rest.partition("-")[0]
    if ours and process.isdecimal():
        return not psutil.pid_exists(int(process))
    try:
        return time.time() - unfinished.stat().st_mtime > _ABANDONED_AFTER
    except OSError:  # gone
        return False


class AppendedLines:
    """Appends lines to a file: all lines of one write or none. An incomplete last line, left by a crash, is cut first.

    Lines for which the disk has no room are kept and written with later ones.

    Args:
        file: created if missing; it may be a pipe or a device.
        header: first bytes of an empty file.
        most_pending: most bytes of lines to keep; beyond them the oldest are dropped.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, file: Path, header: bytes = b"", most_pending: int | None = None) -> None:
        self._handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._is_regular = stat.S_ISREG(os.fstat(self._handle).st_mode)
        self._most_pending = most_pending
        size = 0
        if self._is_regular:
            size, end = _whole_lines(self._handle)
            if size != end:  # else this would cut lines that another process has just added
                os.ftruncate(self._handle, size)
        self._pending = b"" if size else header

    def write(self, lines: bytes) -> str | None:
        """Appends complete lines; returns why they are kept for later, or None if all were written.

        Raises:
            BrokenPipeError: nobody reads the pipe any more.
        """
        self._pending += lines
        end = os.lseek(self._handle, 0, os.SEEK_END) if self._is_regular else 0
        written, why = 0, "no room on the disk"
        try:
            written = os.write(self._handle, self._pending)
        except BrokenPipeError:
            raise
        except OSError as error:
            why = error.strerror or why
        if written == len(self._pending):
            self._pending = b""
            return None
        if self._is_regular:
            os.ftruncate(self._handle, end)
        if self._most_pending is not None and len(self._pending) > self._most_pending:
            self._pending = self._pending[-self._most_pending :].partition(b"\n")[2]
        return why

    def close(self) -> None:
        """Closes the file; lines that are kept are lost."""
        os.close(self._handle)


def _whole_lines(handle: int, block: int = 1 << 16) -> tuple[int, int]:
    """Returns the bytes up to the end of the last complete line, and up to the end of the file."""
    end = size = os.lseek(handle, 0, os.SEEK_END)
    while end:
        start = max(0, end - block)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1, size
        end = start
    return 0, size


def check_writable(folder: Path) -> None:
    """Raises OSError if no file can be written into a folder."""
    with whole_file(folder / f"{_UNFINISHED}0") as content:
        content.write(b"0")
    (folder / f"{_UNFINISHED}0").unlink()


def remove_unfinished(folder: Path) -> None:
    """Removes files that killed processes of this machine left in a folder and its subfolders."""
    for leftover in folder.rglob(f"{_UNFINISHED}*"):
        if is_abandoned(leftover):
            with suppress(OSError):
                leftover.unlink()


def read_json(file: Path) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged: not UTF-8, not JSON, or nested too deeply.
    """
    if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe could wait for ever
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    return parse_json(file.read_bytes())


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parses a JSON text; raises ValueError for any damage. `options` are those of `json.loads`."""
    try:
        return json.loads(text_in(text) if isinstance(text, bytes) else text, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_text(file: Path) -> str:
    """Reads a text file that a user may have edited, with lines ended by `\\n`. It raises what `text_in` raises, and
    OSError."""
    return text_in(file.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")


def text_in(content: bytes) -> str:
    """Decodes UTF-8, with or without a byte order mark, which editors on Windows write.

    Raises:
        UnicodeError: it is not UTF-8.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnicodeError("the text is UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig")


@functools.cache
def utf8_path(folder: Path) -> Path:
    """Returns a path in UTF-8 to a folder, for libraries that accept no other. It works on Linux only, in this process
    only.

    Raises:
        OSError: the folder cannot be opened.
    """
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:
        return Path(f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}")  # stays open
    return folder


def sync(path: Path) -> None:
    """Waits until a file, or a folder's own entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(file: Path) -> str:
    """Returns the SHA-256 checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_of(file: Path) -> str | None:
    """Returns an identifier of a file's content: its size in bytes and its xxh3_128 hash, such as `2831524-68d0b2…`.

    The complete file is read every time, because name, size and times can stay the same when `cp -p`, `rsync -a` or an
    archive replaces it.

    Returns:
        None if it is not a regular file or cannot be read.
    """
    size, digest, block = 0, xxhash.xxh3_128(), memoryview(bytearray(_BLOCK_BYTES))
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe could wait for ever
            return None
        with file.open("rb", buffering=0) as content:
            while count := content.readinto(block):
                digest.update(block[:count])
                size += count
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return None
    return f"{size}-{digest.hexdigest()}"


def contents_of(files: Iterable[Path]) -> dict[Path, str | None]:
    """Returns `content_of` of each file. Several are read at the same time: reading and hashing both let other threads
    run."""
    files = list(dict.fromkeys(files))
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(files, pool.map(content_of, files), strict=True))


def entries(folder: Path) -> list[str]:
    """Returns the names of a folder's entries, sorted; an empty list if the folder cannot be read."""
    try:
        with os.scandir(folder) as there:
            return sorted(entry.name for entry in there)
    except OSError:
        return []
