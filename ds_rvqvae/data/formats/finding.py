"""Finds the files that a command works on, and statistics; detects damaged files."""

import os
import stat
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds_rvqvae.data.formats.base import Reader, npy_header
from ds_rvqvae.data.formats.smpl import beat2
from ds_rvqvae.files import entries
from ds_rvqvae.motion.clip import ClipError, LeftOut

HUMANML3D_CLIPS = "new_joint_vecs"
"""The folder of clips in HumanML3D and KIT."""
_CLIP_FOLDERS = (beat2.CLIP_FOLDER, HUMANML3D_CLIPS)
STATISTICS = ("Mean.npy", "Std.npy")
_STATISTICS_NAMES = tuple(name.lower() for name in STATISTICS)
_STATISTICS_FOLDERS = ("mean_std", "meta_data", "meta")
"""Those of MotionStreamer and MotionMillion, of SnapMoGen, and of MoMask; BABEL's is called `t2m_babel_mean_std`."""
_BESIDE_CLIPS = {"face_motion_data": "motion_data", "keypoints2d": "motions", "keypoints3d": "motions"}
"""Folders of Motion-X and AIST++ that hold no clips, and those of the clips beside them."""
_NAMED = 3
"""The number of files named for each reason to pass files over."""


class FoundFile(NamedTuple):
    """A file to work on, and its path in the tree that was searched."""

    file: Path
    relative: Path


def find_files(
    paths: Sequence[Path], suffixes: Sequence[str], leave_out: Path | None = None
) -> tuple[list[FoundFile], list[LeftOut]]:
    """Finds the files named, of any suffix, and the files of `suffixes` in the folders named, at any depth, each once.

    Hidden files and folders are skipped, and so are a data set's statistics and everything beside its folder of clips
    (`smplxflame_30`, `new_joint_vecs`), or what Motion-X and AIST++ have beside theirs. Links are followed.

    Args:
        leave_out: a folder that is not searched, such as the output folder.

    Returns:
        The files, sorted within each folder, and the paths that cannot be read, with the reasons.
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
        """Yields the files of a folder at any depth; `above` are the real paths of its parents, against link loops."""
        real = os.path.realpath(folder)
        if real in above or (self.leave_out is not None and above and real == os.path.realpath(self.leave_out)):
            return
        try:
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            self.left_out.append(LeftOut(str(folder), f"cannot be read: {error.strerror or error}"))
            return
        clip_folders = [entry for entry in entries if entry.name in _CLIP_FOLDERS and _is_folder(entry)]
        names = {entry.name for entry in entries}
        for entry in clip_folders or entries:
            if _BESIDE_CLIPS.get(entry.name) in names:
                continue
            if entry.suffix.lower() in self.suffixes and not is_statistics(entry):
                yield FoundFile(entry, relative / entry.name)
            elif _is_folder(entry):
                yield from self.files(entry, relative / entry.name, (*above, real))


class PassedOver(NamedTuple):
    """Files that are not read, with one reason for all."""

    reason: str
    suffix: str
    files: int
    first: list[str]
    """The first names, relative to the data."""


class FileCount(NamedTuple):
    """Numbers of files of the data, by how they were used; together they are all files."""

    source: str
    """The file or folder of motion."""
    seen: int
    """All files."""
    read: int
    """Files that gave clips."""
    left_out: int
    """Files that gave no clip, although they are motion files."""
    passed_over: list[PassedOver]
    """All other files, in groups, the largest first."""


def count_files(
    reader: Reader, read: Collection[str], left_out: Collection[str], leave_out: Collection[Path] = ()
) -> FileCount:
    """Counts the files of the data, including hidden ones, by how they were used.

    Args:
        read: names, as from `file_of`, of the files with clips that are in the store now.
        left_out: names of the files that were left out completely.
        leave_out: folders that do not belong to the data, such as the store's.
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
    """Yields the files of a folder at any depth, and whether each is hidden; folders that cannot be read are skipped.

    Folders are searched as in `files_below`, so that its files are found under the same paths.
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
    """Raises ClipError for a path that is not a regular file: a folder, a broken link, or a pipe, which would block."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise ClipError(f"cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise ClipError("a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")


def is_regular(file: Path) -> bool:
    """Returns whether there is a regular file; False too if permissions forbid to check."""
    try:
        check_regular(file)
    except ClipError:
        return False
    return True


def _is_folder(path: Path) -> bool:
    """Returns whether a path is a folder; False if permissions forbid to check, where `Path.is_dir` raises."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_whole(file: Path) -> bool:
    """Returns whether an npz or `.npy` file is complete; of an npz, checksums are compared too."""
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
    """Returns whether a file has the name of a mean or std, and is not motion."""
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
    """Yields the files of mean and std in a folder of the data and in its folders for statistics.

    If a folder has only one of the two, that one is yielded by itself.

    Args:
        clip_folder: the name of the folder of clips; a folder of that name among the statistics comes first.
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
