"""What every reader of motion files has in common."""

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
from ds_rvqvae.data.formats.split_lists import SplitLists, find_lists
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import Clip, ClipError, LeftOut, Take, check_clip, check_finite
from ds_rvqvae.motion.layout import rotation_columns
from ds_rvqvae.motion.rotations import resample, translation_features

_MOST_COLUMNS = 2**16
_DEEPEST = 64
"""Folders in each other that are searched."""


class Reader(ABC):
    """One motion format. A new format is one subclass, named in `config.data.FORMATS`."""

    format: ClassVar[str]
    key: ClassVar[str]
    """The format's name in `config.data.FORMATS`, and so in `rvqvae.data.format`."""
    has_body_parts: ClassVar[bool] = False
    """Whether the parts of `BODY_PARTS` select columns of this format."""
    has_up_axis: ClassVar[bool] = False
    """Whether `rvqvae.data.up_axis` turns what the files hold."""
    parallel: ClassVar[bool] = True
    """Whether several processes may each open the data and read some of the clips."""
    certainty: ClassVar[int] = 0
    """Above 0 where `matches` leaves no doubt, whatever else lies in the folder; the highest is asked first."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.config = config
        self.notes: tuple[str, ...] = ()
        """What the report should say of the data, such as other files there that are not read."""
        self.readings: tuple[str, ...] = ()
        """How numbers of the files are read, for the report; what users should know beforehand is in `notes`."""

    @property
    def fps(self) -> float:
        """Frames a second of the clips that `read` and `clip` give."""
        return self.config.fps

    @classmethod
    @abstractmethod
    def matches(cls, path: Path) -> bool:
        """Whether the file or folder looks like this format; opens as little as it can."""

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        """As `matches`, by the rules of versions up to 0.2."""
        return cls.matches(path)

    @abstractmethod
    def sources(self) -> list[Path]:
        """Every file that the result depends on."""

    def clip_files(self) -> dict[str, Path]:
        """Those of them that clips are read from, by the clips' names."""
        return dict.fromkeys(self.clip_names(), self.path)

    def why_passed_over(self, file: Path) -> str:
        """Why no clip is read from a file of the data that is none of `sources`."""
        return "not of this format"

    @abstractmethod
    def clip_names(self) -> list[str]:
        """Names of the clips to try, in order."""

    @abstractmethod
    def file_of(self, name: str) -> str:
        """What a clip's file is called in messages."""

    @abstractmethod
    def take(self, name: str) -> Take:
        """What a clip's file holds, NaN included; raises ClipError."""

    def check(self, names: Sequence[str]) -> None:  # noqa: B027 - most formats have nothing to look at
        """Looks at the clips before a store is made of them: adds to `notes` and `readings`.

        Raises:
            UserError: data that cannot be read rightly, and how to say what is missing.
        """

    def read(self, name: str) -> Clip:
        """A whole clip at the wanted frame rate, whatever `rvqvae.data.rules` says; raises ClipError."""
        take = self.take(name)
        check_finite(take.motion)
        return self.clip(take, name, 0, len(take.motion))

    def clip(self, take: Take, name: str, start: int, stop: int) -> Clip:
        """Frames `start` up to `stop` of a take, at the wanted frame rate; raises ClipError."""
        motion = take.motion[start:stop]
        if len(motion):
            try:
                motion = resample(motion, rotation_columns(take.layout), take.fps, self.fps)
            except ValueError as error:
                raise ClipError(
                    f"cannot be resampled from {take.fps:g} to {self.fps:g} frames a second: {error}"
                ) from None
        if take.has_positions:
            motion = motion.copy()
            for part in (part for part in take.layout if part.kind == "translation"):
                motion[:, part.start : part.stop] = translation_features(motion[:, part.start : part.stop])
        with np.errstate(over="ignore"):  # what does not fit float32 is found as infinite, with its frame
            return Clip(name, motion.astype(np.float32), self.fps, take.layout, take.split)

    def source_of(self, name: str) -> Path | None:
        """The file that a clip comes from, where it holds no other clip: while its content stays, so do the clip's
        numbers, its name, `split_of` and `reading_facts` being the same.
        """
        return None

    def split_of(self, name: str) -> str | None:
        """The split of a clip's take, by what the data say; nothing is read for it."""
        return None

    def reading_facts(self) -> dict[str, Any]:
        """What the numbers of clips depend on beside their own files and the settings, as JSON objects: such as a unit
        that all files together tell.
        """
        return {}

    def weight(self, name: str) -> int:
        """About how many bytes have to be read for a clip; 0 where its file is not there."""
        return 0

    @property
    def statistics_files(self) -> Sequence[Path]:
        """The files of the data's own mean and std, where it brings them."""
        return ()

    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """The data's own mean and std, float32 `[features]` each, where it brings them."""
        return None

    def clips(self) -> Iterator[Clip | LeftOut]:
        """Each usable clip, and why each other one is not; nothing is kept in memory between clips."""
        for name in self.clip_names():
            try:
                clip = self.read(name)
                check_clip(clip)
            except ClipError as error:
                yield LeftOut(self.file_of(name), " ".join(str(error).split()))
            else:
                yield clip


class FilesReader(Reader):
    """A format of a file a clip, in a folder of motion at any depth, or one such file.

    Lists of the clips of each split (`train.txt`, …) count where `find_lists` finds them.
    """

    suffix: ClassVar[str]
    """What the file of a clip that is only listed is said to end with."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        super().__init__(path, config)
        refuse_speakers(config, path)
        self._folder = path
        """What the names of clips are relative to."""
        if path.is_file():
            self._files, self._lists = {path.stem: path}, SplitLists()
        else:
            self._files, self._lists = self._find()

    @classmethod
    @abstractmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        """The files of a folder by their clips' names, as `files_below` gives them; raises UserError."""

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        files = self.files_of(self.path)
        return files, self._lists_of(files, [self.path], self.path.parent)

    def _lists_of(self, files: dict[str, Path], folders: Sequence[Path], beside: Path | None) -> SplitLists:
        """As `find_lists`, whose notes become the reader's."""
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
        """What the clip's file holds, NaN included; raises ClipError."""

    def weight(self, name: str) -> int:
        return file_size(self._files.get(name))


def unused_lists(files: Sequence[Path], config: DataConfig) -> tuple[str, ...]:
    """A note of official lists that `rvqvae.data.split` takes the place of."""
    names = ", ".join(file.name for file in files)
    return (f"{names}: not used, rvqvae.data.split is {config.split}",) if names and config.split != "auto" else ()


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder with a suffix, in whatever case, sorted, without hidden ones."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if file.name.lower().endswith(suffix) and not file.name.startswith("."))


def file_size(file: Path | None) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return 0 if file is None else file.stat().st_size
    except OSError:
        return 0


def no_file(name: str) -> str:
    """Why a name in a list of clips has no file."""
    return "there is no such file" if Path(name).name == name else "the name leads out of the folder"


def files_below(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files in a folder and below it by their clips' names: the path without suffix, as `01/01_01`.

    Where two files differ in nothing but the suffix, the second keeps it. Hidden files and folders are passed over; a
    folder that links lead to more than once is searched once.

    Raises:
        UserError: a folder that cannot be read.
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
            raise UserError(f"{folder}: has folders in each other, more than {_DEEPEST} deep; move them out of it")
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            wanted = (name for name in files if not name.startswith(".") and name.lower().endswith(suffixes))
            yield from (Path(place, name) for name in wanted)
        seen.add(real)


@contextmanager
def _readable() -> Iterator[None]:
    """Turns what numpy raises on a damaged file into a ClipError."""
    try:
        yield
    except ClipError:
        raise
    except RefusedError as error:
        raise ClipError(str(error)) from None
    except OSError as error:
        raise ClipError(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile, zlib and numpy raise a dozen unrelated types
        # An address in the words would make each report another one.
        words = re.sub(r" object at 0x[0-9a-f]+", "", str(error)[:200])
        raise ClipError(f"damaged or cut short: {words}") from None


def load_npy(file: Path) -> NDArray[Any]:
    """The array of a `.npy` file; raises ClipError."""
    with _readable():
        return read_npy(file)


def load_npz(
    file: Path, required: Sequence[str], optional: Sequence[str] = (), largest: int = LARGEST
) -> dict[str, NDArray[Any]]:
    """The named arrays of an npz, as far as they are there; other keys are not touched.

    Args:
        largest: bytes that an array may take.

    Raises:
        ClipError: unreadable, or without one of the `required` keys.
    """
    return load_npz_and_keys(file, required, optional, largest)[0]


def load_npz_and_keys(
    file: Path, required: Sequence[str], optional: Sequence[str] = (), largest: int = LARGEST
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """As `load_npz`, and every key that is there; raises ClipError."""
    with _readable(), open_npz(file) as archive:
        for key in required:
            if key not in archive.keys:
                raise ClipError(missing_key(archive.keys, key))
        arrays = {key: archive.read(key, largest) for key in (*required, *optional) if key in archive.keys}
        return arrays, archive.keys


def said_rate(file: Path) -> float | None:
    """Frames a second that an npz says, as far as it can be read."""
    with suppress(ClipError):
        return npz.rate_of(load_npz(file, (), npz.FPS_KEYS))
    return None


def npz_keys(file: Path) -> list[str]:
    """The keys of an npz; raises ClipError."""
    with _readable(), open_npz(file) as archive:
        return archive.keys


def npy_header(file: Path) -> Header:
    """Shape and dtype of a `.npy` file, without its numbers; raises ClipError."""
    with _readable():
        return npz.npy_header(file)


def npz_headers(file: Path) -> dict[str, Header]:
    """Shapes and dtypes of an npz's arrays, without their numbers; raises ClipError."""
    with _readable(), open_npz(file) as archive:
        return {key: archive.header(key) for key in archive.keys}


def npz_samples(files: Iterable[Path], most: int = 16) -> Iterator[list[str]]:
    """The keys of each of the first npz files that can be read, to tell what a folder holds."""
    found = 0
    for file in files:
        with suppress(ClipError):
            keys = npz_keys(file)
            yield keys
            found += 1
        if found == most:
            return


def missing_key(keys: Sequence[str], key: str) -> str:
    """Says that a key is missing, and which there are."""
    more = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
    return f"no key {key}; it has {', '.join(name[:40] for name in keys[:12]) or 'none'}{more}"


def matrix(values: NDArray[Any], what: str, width: int | None = None) -> NDArray[Any]:
    """`values`, where they are real numbers of shape `[frames, width]`; raises ClipError."""
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
    """Raises UserError where speakers are asked of a format that has none."""
    if config.speakers is not None:
        raise UserError(f"rvqvae.data.speakers: only a BEAT2 folder has speakers, {path} is none; leave it out")
