"""Finding the files that a command is to work through; telling whole files from damaged ones, and statistics."""

import os
import stat
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds_rvqvae.data.formats import beat2
from ds_rvqvae.data.formats.base import Reader, npy_header
from ds_rvqvae.data.formats.split_lists import entries
from ds_rvqvae.motion.clip import ClipError, LeftOut

HUMANML3D_CLIPS = "new_joint_vecs"
"""The folder of the clips of HumanML3D and KIT."""
_CLIP_FOLDERS = (beat2.CLIP_FOLDER, HUMANML3D_CLIPS)
STATISTICS = ("Mean.npy", "Std.npy")
_STATISTICS_NAMES = tuple(name.lower() for name in STATISTICS)
_STATISTICS_FOLDERS = ("mean_std", "meta_data", "meta")
"""Of MotionStreamer and MotionMillion, of SnapMoGen, and of MoMask; BABEL's is called `t2m_babel_mean_std`."""
_NAMED = 3
"""Files that are named of those passed over for one reason."""


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
            if entry.suffix.lower() in self.suffixes and not is_statistics(entry):
                yield FoundFile(entry, relative / entry.name)
            elif _is_folder(entry):
                yield from self.files(entry, relative / entry.name, (*above, real))


class PassedOver(NamedTuple):
    """Files that no clip is read from, for one reason."""

    reason: str
    suffix: str
    files: int
    first: list[str]
    """The names of some, relative to the data."""


class FileCount(NamedTuple):
    """What became of every file of the data: the numbers add up."""

    source: str
    """The file or folder of motion."""
    seen: int
    read: int
    """Files that clips came of."""
    left_out: int
    """Files that were to be read and no clip came of."""
    passed_over: list[PassedOver]
    """All others, the most first."""


def count_files(
    reader: Reader, read: Collection[str], left_out: Collection[str], leave_out: Collection[Path] = ()
) -> FileCount:
    """Counts the files of the data, hidden ones too, by what became of them.

    Args:
        read: what `file_of` calls the clips that are in the store now.
        left_out: what it calls those that were left out whole.
        leave_out: folders that are not the data's, such as the store's.
    """
    files = reader.clip_files()
    tried = {name: reader.file_of(name) for name in files}
    of_read = {files[name] for name, file in tried.items() if file in read}
    of_left_out = {files[name] for name, file in tried.items() if file in left_out} - of_read
    known, used = set(files.values()), set(reader.sources())
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    seen = 0
    for file, is_hidden in _every_file(reader.path, {os.path.realpath(folder) for folder in leave_out}):
        seen += 1
        if file in of_read or file in of_left_out:
            continue
        if file in known:
            reason = "its clips are in the store already"
        elif file in used:
            reason = "lists and statistics in use"
        else:
            reason = "hidden" if is_hidden else reader.why_passed_over(file)
        groups[reason, "" if is_hidden else file.suffix.lower()[:16]].append(file)
    passed_over = [
        PassedOver(reason, suffix, len(some), [os.path.relpath(file, reader.path) for file in some[:_NAMED]])
        for (reason, suffix), some in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    ]
    return FileCount(str(reader.path), seen, len(of_read), len(of_left_out), passed_over)


def _every_file(path: Path, leave_out: Collection[str]) -> Iterator[tuple[Path, bool]]:
    """The files of a folder and those below it, and whether each is hidden; folders that cannot be read have none.

    Folders are searched as `files_below` does, so that its files are among them by the same names.
    """
    if not path.is_dir():
        yield path, False
        return
    seen = set(leave_out)
    for place, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(place)
        visible = sorted(name for name in folders if not name.startswith("."))
        hidden = [Path(place, name) for name in folders if name.startswith(".")]
        folders[:] = [] if real in seen else visible
        if real not in seen:
            seen.add(real)
            yield from ((Path(place, name), name.startswith(".")) for name in sorted(files))
            for folder in sorted(hidden):
                yield from ((file, True) for file in _all_below(folder, leave_out))


def _all_below(folder: Path, leave_out: Collection[str]) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if os.path.realpath(place) in leave_out:
            folders.clear()
        else:
            yield from (Path(place, name) for name in sorted(files))


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


def is_statistics(file: Path) -> bool:
    """Whether a file is a mean or std by its name, and no motion."""
    if file.name in STATISTICS:
        return True
    if file.name.lower() not in _STATISTICS_NAMES:
        return False
    try:
        shape = npy_header(file).shape
    except ClipError:
        return False
    return len(shape) < 2 or shape[0] < 2


def statistics_in(folder: Path, clip_folder: str) -> Iterator[tuple[Path, ...]]:
    """Mean and std in a folder of the data, and in those for statistics in it; one by itself where there is no other.

    Args:
        clip_folder: the name of the folder of clips; one of that name in a folder for statistics comes first.
    """
    places = [folder]
    for name in entries(folder):
        if name.lower() in _STATISTICS_FOLDERS or name.lower().endswith("mean_std"):
            below = sorted(entries(folder / name), key=lambda entry: entry != clip_folder)
            places += [folder / name, *(folder / name / entry for entry in below)]
    for place in places:
        called = [name for name in entries(place) if name.lower() in _STATISTICS_NAMES]
        there = {name.lower(): place / name for name in reversed(called)}
        found = tuple(there[name] for name in _STATISTICS_NAMES if name in there and is_statistics(there[name]))
        if found:
            yield found
