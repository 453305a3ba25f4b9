"""Finding the files that a command is to work through, and writing files that are whole or not there."""

import os
import socket
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import psutil

from ds_rvqvae.data import beat2, features
from ds_rvqvae.data.clips import ClipError, LeftOut

_UNFINISHED = f".unfinished-{socket.gethostname()}-"
_CLIP_FOLDERS = (beat2.CLIP_FOLDER, features.CLIP_FOLDER)


class FoundFile(NamedTuple):
    """A file to work on, and its place in the tree that was searched."""

    file: Path
    relative: Path


def find_files(
    paths: Sequence[Path], suffixes: Sequence[str], leave_out: Path | None = None
) -> tuple[list[FoundFile], list[LeftOut]]:
    """Files named, of whatever suffix, and those of `suffixes` in the folders named and below them, each once.

    Hidden files and folders are not searched, nor a data set's statistics, nor what lies beside its folder of clips
    (`smplxflame_30`, `new_joint_vecs`). Links are followed.

    Args:
        leave_out: a folder that is not searched, such as the one written to.

    Returns:
        The files, sorted within each folder, and what cannot be read with the reason.
    """
    found: dict[FoundFile, None] = {}
    left_out: list[LeftOut] = []
    for path in paths:
        if _is_folder(path):
            search = _Search(tuple(suffixes), leave_out, left_out)
            found |= dict.fromkeys(search.files(path, Path(), ()))
        elif os.path.lexists(path):
            found[FoundFile(path, Path(path.name))] = None
        else:
            left_out.append(LeftOut(str(path), "no such file or folder"))
    return list(found), left_out


class _Search(NamedTuple):
    suffixes: tuple[str, ...]
    leave_out: Path | None
    left_out: list[LeftOut]

    def files(self, folder: Path, relative: Path, above: tuple[str, ...]) -> Iterator[FoundFile]:
        """The files of a folder and those below it; `above` are the real folders it lies in, against loops of links."""
        real = os.path.realpath(folder)
        if real in above or (self.leave_out is not None and above and real == os.path.realpath(self.leave_out)):
            return
        try:
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            self.left_out.append(LeftOut(str(folder), f"cannot be read: {error.strerror or error}"))
            return
        clip_folders = [entry for entry in entries if entry.name in _CLIP_FOLDERS and _is_folder(entry)]
        for entry in clip_folders or entries:
            if entry.suffix.lower() in self.suffixes and entry.name not in features.STATISTICS:
                yield FoundFile(entry, relative / entry.name)
            elif _is_folder(entry):
                yield from self.files(entry, relative / entry.name, (*above, real))


def check_regular(file: Path) -> None:
    """Raises ClipError for what is no file: a folder, a dangling link, a pipe that would be waited on for ever."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise ClipError(f"cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise ClipError("a folder, not a file" if stat.S_ISDIR(mode) else "no regular file")


def is_regular(file: Path) -> bool:
    """Whether there is a file, as far as one may look."""
    try:
        check_regular(file)
    except ClipError:
        return False
    return True


def _is_folder(path: Path) -> bool:
    """As `Path.is_dir`, which raises where one may not look."""
    try:
        return path.is_dir()
    except OSError:
        return False


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
    for leftover in folder.rglob(f"{_UNFINISHED}*"):
        process = leftover.name.removeprefix(_UNFINISHED).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            with suppress(OSError):
                leftover.unlink()


def write_npz(content: BinaryIO, arrays: Mapping[str, np.ndarray], compressed: bool = False) -> None:
    """Writes an npz as `np.savez` does, but under any key and the same bytes for the same arrays.

    Raises:
        ValueError: arrays of Python objects, which are never pickled.
    """
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(content, "w", method) as archive:
        for key, values in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy")
            entry.compress_type = method
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)


def sync(file: Path) -> None:
    """Waits until a file is on the disk."""
    with file.open("rb") as content:
        os.fsync(content.fileno())


def is_whole(file: Path) -> bool:
    """Whether an npz or `.npy` file has all its bytes, and of an npz the right ones."""
    try:
        check_regular(file)
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
        np.load(file, mmap_mode="r", allow_pickle=False)
        return True
    except Exception:  # numpy and zipfile raise a dozen unrelated types
        return False
