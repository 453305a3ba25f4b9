"""Files that are written whole or not at all, and their checksums."""

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_UNFINISHED = f".unfinished-{socket.gethostname()}-"


@contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `file` once all is written; after an exception nothing has changed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{_UNFINISHED}{os.getpid()}-{threading.get_ident()}")
    try:
        with unfinished.open("wb") as content:
            yield content
        unfinished.replace(file)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Raises OSError where no file can be written into a folder."""
    with whole_file(folder / f"{_UNFINISHED}0") as content:
        content.write(b"0")
    (folder / f"{_UNFINISHED}0").unlink()


def remove_unfinished(folder: Path) -> None:
    """Removes what `whole_file` left in a folder and below where its process was killed on this machine."""
    import psutil  # late: the launcher answers before it would be loaded

    for leftover in folder.rglob(f"{_UNFINISHED}*"):
        process = leftover.name.removeprefix(_UNFINISHED).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            with suppress(OSError):
                leftover.unlink()


def sync(file: Path) -> None:
    """Waits until a file is on the disk."""
    with file.open("rb") as content:
        os.fsync(content.fileno())


def sha256_of(file: Path) -> str:
    """A file's checksum, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
