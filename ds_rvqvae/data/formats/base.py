"""The base classes of all readers of motion files, and functions that readers share."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats import npz
from ds_rvqvae.data.formats.npz import LARGEST, Header, RefusedError, open_npz, read_npy
from ds_rvqvae.data.formats.pickles import is_pickle
from ds_rvqvae.data.formats.split_lists import SplitLists, find_lists
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import Clip, ClipError, LeftOut, Take, check_clip, check_finite
from ds_rvqvae.motion.layout import rotation_columns
from ds_rvqvae.motion.rotations import resample, translation_features

_MOST_COLUMNS = 2**16
_DEEPEST = 64
"""The depth to which nested folders are searched."""


class Reader(ABC):
    """One motion format. A new format is one subclass, named in `config.data.FORMATS`."""

    format: ClassVar[str]
    key: ClassVar[str]
    """The format's name in `config.data.FORMATS`, and so in `rvqvae.data.format`."""
    has_body_parts: ClassVar[bool] = False
    """Whether the body parts of `BODY_PARTS` select columns of this format."""
    has_up_axis: ClassVar[bool] = False
    """Whether `rvqvae.data.up_axis` rotates the motion in the files."""
    parallel: ClassVar[bool] = True
    """Whether several processes may each open the data and read some of the clips."""
    certainty: ClassVar[int] = 0
    """Above 0 if a match is certain whatever else the folder has; readers with the highest value are tried first."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.config = config
        self.notes: tuple[str, ...] = ()
        """Remarks on the data for the report, such as other files there that are not read."""
        self.readings: tuple[str, ...] = ()
        """How numbers in the files are read, for the report; `notes` has what users should know beforehand."""

    @property
    def fps(self) -> float:
        """Frame rate, in frames per second, of the clips that `read` and `clip` return."""
        return self.config.fps

    @classmethod
    @abstractmethod
    def matches(cls, path: Path) -> bool:
        """Returns whether the file or folder seems to be of this format; opens as few files as possible."""

    @classmethod
    def matches_if_asked(cls, path: Path) -> bool:
        """Works like `matches`, for a format that `rvqvae.data.format` names."""
        return cls.matches(path)

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        """Works like `matches`, by the rules of versions up to 0.2."""
        return cls.matches(path)

    @abstractmethod
    def sources(self) -> list[Path]:
        """Returns every file that the result depends on."""

    def clip_files(self) -> dict[str, Path]:
        """Returns those of `sources` that clips are read from, by the clips' names."""
        return dict.fromkeys(self.clip_names(), self.path)

    def why_passed_over(self, file: Path) -> str:
        """Returns the reason why no clip is read from a file of the data that is not in `sources`."""
        return "a pickle, which is never loaded" if is_pickle(file) else "not of this format"

    @abstractmethod
    def clip_names(self) -> list[str]:
        """Returns the names of the clips to try, in order."""

    @abstractmethod
    def file_of(self, name: str) -> str:
        """Returns the name of a clip's file for messages."""

    @abstractmethod
    def take(self, name: str) -> Take:
        """Reads the content of a clip's file, NaN included; raises ClipError."""

    def check(self, names: Sequence[str]) -> None:  # noqa: B027 - most formats have nothing to check
        """Checks the clips before a store is made from them; adds to `notes` and `readings`.

        Raises:
            UserError: the data cannot be read correctly; the message says which setting is missing.
        """

    def read(self, name: str) -> Clip:
        """Reads a complete clip at the wanted frame rate, without applying `rvqvae.data.rules`; raises ClipError."""
        take = self.take(name)
        check_finite(take.motion)
        return self.clip(take, name, 0, len(take.motion))

    def clip(self, take: Take, name: str, start: int, stop: int) -> Clip:
        """Returns frames `start` up to `stop` of a file's content, at the wanted frame rate; raises ClipError."""
        motion = take.motion[start:stop]
        if len(motion):
            try:
                motion = resample(motion, rotation_columns(take.layout), take.fps, self.fps)
            except ValueError as error:
                raise ClipError(f"cannot be resampled from {take.fps:g} to {self.fps:g} fps: {error}") from None
        if take.has_positions:
            motion = motion.copy()
            for part in (part for part in take.layout if part.kind == "translation"):
                motion[:, part.start : part.stop] = translation_features(motion[:, part.start : part.stop])
        with np.errstate(over="ignore"):  # values too large for float32 become infinite; a check finds them by frame
            return Clip(name, motion.astype(np.float32), self.fps, take.layout, take.split)

    def source_of(self, name: str) -> Path | None:
        """Returns the file that a clip comes from, if it holds no other clip, else None.

        As long as the content of this file, the clip's name, `split_of` and `reading_facts` are unchanged, so are the
        clip's numbers.
        """
        return None

    def split_of(self, name: str) -> str | None:
        """Returns the split of a clip according to the data, or None; no file is read for it."""
        return None

    def reading_facts(self) -> dict[str, Any]:
        """Returns, as JSON objects, facts beside the clips' own files and the settings that their numbers depend on.

        An example is a unit of length that was recognised from all files together.
        """
        return {}

    def weight(self, name: str) -> int:
        """Returns about how many bytes must be read for a clip; 0 if its file is missing."""
        return 0

    @property
    def statistics_files(self) -> Sequence[Path]:
        """The files of the data's own mean and std, if it has them."""
        return ()

    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Returns the data's own mean and std, float32 `[features]` each, or None if it has none."""
        return None

    def clips(self) -> Iterator[Clip | LeftOut]:
        """Yields each usable clip, and for each other clip the reason; nothing is kept in memory between clips."""
        for name in self.clip_names():
            try:
                clip = self.read(name)
                check_clip(clip)
            except ClipError as error:
                yield LeftOut(self.file_of(name), " ".join(str(error).split()))
            else:
                yield clip


class FilesReader(Reader):
    """A format with one file per clip, a folder of them, or one file. `find_lists` finds the lists of the splits."""

    suffix: ClassVar[str]
    """The suffix that messages give to a clip that is listed but has no file."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        super().__init__(path, config)
        refuse_speakers(config, path)
        self._folder = path
        """The folder that the names of clips are relative to."""
        if path.is_file():
            self._files, self._lists = {path.stem: path}, SplitLists()
        else:
            self._files, self._lists = self._find()

    @classmethod
    @abstractmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        """Returns the files of a folder by their clips' names, as `files_below` does; raises UserError."""

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        files = self.files_of(self.path)
        return files, self._lists_of(files, [self.path], self.path.parent)

    def _lists_of(self, files: dict[str, Path], folders: Sequence[Path], beside: Path | None) -> SplitLists:
        """Works like `find_lists`, and adds its notes to the reader's."""
        found = find_lists(folders, beside, files, self.config.split_version, self.config.reading_version)
        self.notes += unused_lists(found.lists.files, self.config) or found.notes
        return found.lists

    def sources(self) -> list[Path]:
        return [*self._files.values(), *self._lists.files]

    def clip_files(self) -> dict[str, Path]:
        return self._files

    def clip_names(self) -> list[str]:
        return sorted({*self._files, *self._lists.missing(self._files)})

    def file_of(self, name: str) -> str:
        if name not in self._files:
            return f"{name}{self.suffix}"
        file = self._files[name]
        return file.name if file == self.path else file.relative_to(self._folder).as_posix()

    def take(self, name: str) -> Take:
        if name not in self._files:
            raise ClipError(self._lists.why_missing(name))
        return self.take_of(name, self._files[name], self.split_of(name))

    def source_of(self, name: str) -> Path | None:
        return self._files.get(name)

    def split_of(self, name: str) -> str | None:
        return self._lists.split_of(name)

    @abstractmethod
    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        """Reads the content of the clip's file, NaN included; raises ClipError."""

    def weight(self, name: str) -> int:
        return file_size(self._files.get(name))


def unused_lists(files: Sequence[Path], config: DataConfig) -> tuple[str, ...]:
    """Returns a note on official lists that are not used because `rvqvae.data.split` replaces them."""
    names = ", ".join(file.name for file in files)
    return (f"{names}: not used, rvqvae.data.split is {config.split}",) if names and config.split != "auto" else ()


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """Returns the files of a folder with a suffix (case does not matter), sorted, without hidden ones."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if file.name.lower().endswith(suffix) and not file.name.startswith("."))


def file_size(file: Path | None) -> int:
    """Returns the size of a file in bytes; 0 if there is none."""
    try:
        return 0 if file is None else file.stat().st_size
    except OSError:
        return 0


def no_file(name: str) -> str:
    """Returns the reason why a name in a list of clips has no file."""
    return "there is no such file" if Path(name).name == name else "the name leads out of the folder"


def files_below(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Returns the files in a folder and below it by their clips' names: the path without suffix, such as `01/01_01`.

    If two paths differ only in the suffix, the second name keeps it. Hidden files and folders are skipped; a folder
    that several links lead to is searched once.

    Raises:
        UserError: a folder cannot be read, or folders are nested too deeply.
    """
    found: dict[str, Path] = {}
    for file in sorted(_search(folder, tuple(suffixes))):
        relative = file.relative_to(folder)
        name = relative.with_suffix("").as_posix()
        found[relative.as_posix() if name in found else name] = file
    return found


def _search(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror or error}") from None

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if len(Path(place).parts) > len(folder.parts) + _DEEPEST:
            raise UserError(f"{folder}: has folders nested more than {_DEEPEST} deep; move them out of it")
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            wanted = (name for name in files if not name.startswith(".") and name.lower().endswith(suffixes))
            yield from (Path(place, name) for name in wanted)
        seen.add(real)


@contextmanager
def _readable() -> Iterator[None]:
    """Turns errors of numpy and others on a damaged file into a ClipError."""
    try:
        yield
    except ClipError:
        raise
    except RefusedError as error:
        raise ClipError(str(error)) from None
    except OSError as error:
        raise ClipError(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile, zlib and numpy raise a dozen unrelated types
        # A memory address in the message would make each report different.
        words = re.sub(r" object at 0x[0-9a-f]+", "", str(error)[:200])
        raise ClipError(f"damaged or cut short: {words}") from None


def load_npy(file: Path) -> NDArray[Any]:
    """Reads the array of a `.npy` file; raises ClipError."""
    with _readable():
        return read_npy(file)


def load_npz(
    file: Path, required: Sequence[str], optional: Sequence[str] = (), largest: int = LARGEST
) -> dict[str, NDArray[Any]]:
    """Reads the named arrays of an npz, without the `optional` ones that are missing; other keys are not read.

    Args:
        largest: the most bytes that an array may take.

    Raises:
        ClipError: the file cannot be read, or lacks one of the `required` keys.
    """
    return load_npz_and_keys(file, required, optional, largest)[0]


def load_npz_and_keys(
    file: Path, required: Sequence[str], optional: Sequence[str] = (), largest: int = LARGEST
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Works like `load_npz`, and also returns all keys of the file; raises ClipError."""
    with _readable(), open_npz(file) as archive:
        for key in required:
            if key not in archive.keys:
                raise ClipError(missing_key(archive.keys, key))
        arrays = {key: archive.read(key, largest) for key in (*required, *optional) if key in archive.keys}
        return arrays, archive.keys


def said_rate(file: Path) -> float | None:
    """Returns the frame rate that an npz gives, or None if it has none or cannot be read."""
    with suppress(ClipError):
        return npz.rate_of(load_npz(file, (), npz.FPS_KEYS))
    return None


def npz_keys(file: Path) -> list[str]:
    """Returns the keys of an npz; raises ClipError."""
    with _readable(), open_npz(file) as archive:
        return archive.keys


def npy_header(file: Path) -> Header:
    """Reads shape and dtype of a `.npy` file, without its numbers; raises ClipError."""
    with _readable():
        return npz.npy_header(file)


def npz_headers(file: Path) -> dict[str, Header]:
    """Reads shapes and dtypes of an npz's arrays, without their numbers; raises ClipError."""
    with _readable(), open_npz(file) as archive:
        return {key: archive.header(key) for key in archive.keys}


def npz_samples(files: Iterable[Path], most: int = 16) -> Iterator[list[str]]:
    """Yields the keys of each of the first npz files that can be read, to find out the format of a folder."""
    found = 0
    for file in files:
        with suppress(ClipError):
            keys = npz_keys(file)
            yield keys
            found += 1
        if found == most:
            return


def missing_key(keys: Sequence[str], key: str) -> str:
    """Returns a message that a key is missing, with the keys that the file has."""
    more = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
    return f"no key {key}; it has {', '.join(name[:40] for name in keys[:12]) or 'none'}{more}"


def matrix(values: NDArray[Any], what: str, width: int | None = None) -> NDArray[Any]:
    """Returns `values` unchanged if they are real numbers of shape `[frames, width]`; else raises ClipError."""
    if values.dtype.kind not in "fiu":
        raise ClipError(f"{what} holds {str(values.dtype)[:40]}, not numbers")
    if values.ndim != 2 or width not in (None, values.shape[1]):
        raise ClipError(f"{what} has shape {list(values.shape)}, not [frames, {width or 'features'}]")
    if not values.size:
        raise ClipError(f"{what} is empty")
    if values.shape[1] > _MOST_COLUMNS:
        raise ClipError(f"{what} has {values.shape[1]:,} columns, more than {_MOST_COLUMNS:,}")
    return values


def refuse_speakers(config: DataConfig, path: Path) -> None:
    """Raises UserError if speakers are selected for a format without speakers."""
    if config.speakers is not None:
        raise UserError(f"rvqvae.data.speakers: only a BEAT2 folder has speakers, and {path} is not one; leave it out")
