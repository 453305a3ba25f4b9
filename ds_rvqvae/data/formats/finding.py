"""Finding the files that a command is to work through, and telling whole files from damaged ones."""

import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds_rvqvae.data.formats import beat2, features
from ds_rvqvae.motion.clip import ClipError, LeftOut

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
