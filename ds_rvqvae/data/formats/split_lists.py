"""Lists of the clips of each split: `train.txt`, `val.txt` and `test.txt`, a clip a line, and where data sets put them.

Sources of the places: HumanML3D and KIT (beside the clips), MotionStreamer's 272 columns (`split/`), MotionMillion
(`split/version1/tokenizer_96/`), SnapMoGen (`data_split_info/train_fnames.txt`), as their repositories have them.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ds_rvqvae.config.data import to_say
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_text
from ds_rvqvae.motion.clip import original_name, take_name, whole_name

LISTED = ("train", "val", "test")
_ALIKE = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
_ENDINGS = ("", "_fnames", "_ids")
"""SnapMoGen lists its takes as `train_fnames.txt`, and pieces of them as `train_ids.txt`."""
_FILES = {f"{name}{end}.txt": split for split, names in _ALIKE.items() for end in _ENDINGS for name in names}
"""Names of lists in small letters, and their splits; of several in one folder the first counts."""
_FOLDER = re.compile(r"splits?|(data_)?split_info\d*|data_splits?\d*", re.IGNORECASE)
_TOKEN = re.compile(r"(?<![a-z])(train|training|val|valid|validation|dev|test|testing)(?![a-z])", re.IGNORECASE)
_OF_SPLITS = re.compile(r"(?<![a-z])splits?(?![a-z])", re.IGNORECASE)
_ENDS = ("", ".txt", ".lst", ".list", ".csv", ".bak", ".old", ".orig")
_TABLE_ENDS = (*_ENDS, ".json", ".tsv", ".yaml", ".yml")
"""What a file ends with, wherever it lies, that may be a list, or a table of several splits."""
_CELL, _WORD = re.compile(r"[^,;\t\r\n]+"), re.compile(r"[^\s\"',:;\[\]{}]+")
_SUFFIXES = (".bvh", ".npy", ".npz")
_LARGEST = 2**28
"""Bytes of a list; no data set has as many clips."""
_LONGEST = 4096
"""Characters of a line; no file has a longer path."""
_DEEPEST = 32
"""Folders of a listed name that are looked at."""
_LEVELS = 4
"""Folders in each other that are searched for lists."""
_MOST_READ, _SHOWN = 100, 3
"""Files read because they may be lists, and named in a note."""


class SplitLists:
    """The lists in the first of some folders that has each; a data set without lists has no splits of its own.

    A line names a clip by its path with or without suffix. It matches a clip of that very name; or else, with folders
    before it that the data do not have (`bvh/01/01_01.bvh` is `01/01_01` in the folder `bvh`), those that lie in the
    data's own folder first; or else, without some of the folders that the data have (`01_01` is `01/01_01`).
    """

    def __init__(
        self,
        *folders: Path,
        files: Mapping[str, Path] | None = None,
        names: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """Reads the lists; raises UserError where one cannot be read. The data's own folder comes first.

        Args:
            files: the lists by split, wherever they lie; clips that they do not name go then with their take.
            names: what they list, where they were read already.
        """
        self._by_split = (
            _nearest_lists(folders) if files is None else {key: files[key] for key in LISTED if key in files}
        )
        self._with_takes = files is not None
        self._splits: dict[str, int] = {}  # a bit for each of `LISTED`
        self._shortened: dict[str, int] = {}
        self._above = [tuple(part for part in folder.resolve().parts if part != "/") for folder in folders]
        for split, file in self._by_split.items():
            self._add(_read_names(file) if names is None else names[split], split)

    @property
    def files(self) -> list[Path]:
        """The lists that were read."""
        return list(self._by_split.values())

    def names(self) -> set[str]:
        """Every listed name, with `/` between folders and without suffix."""
        return set(self._splits)

    def split_of(self, name: str) -> str | None:
        """The split of a clip.

        A clip that no list names is `additional`, or `val` where there is only `train.txt`. One that is listed with
        different answers has a split of both names, `train and test`, which is none that a clip may have. None where
        there are no lists.
        """
        if not self.files:
            return None
        name = "/".join(_parts(name))
        if found := self._bits(name):
            return " and ".join(_words(found))
        # The mirror image of a clip that trains is not held out.
        trains = self._with_takes and self._found(original_name(name))
        return "val" if list(self._by_split) == ["train"] and not trains else "additional"

    def unlisted(self, clip_names: Iterable[str]) -> list[str]:
        """Those that no list names, sorted."""
        return sorted(name for name in clip_names if not self._bits("/".join(_parts(name)))) if self.files else []

    def missing(self, clip_names: Iterable[str]) -> list[str]:
        """Listed names that match none of the clips, sorted."""
        clips = {"/".join(_parts(name)) for name in clip_names}
        if self._with_takes:
            clips |= {take_name(name) for name in clips}
        tails = clips.union(*(_tails(name) for name in clips))
        return sorted(name for name in self._splits if name not in tails and clips.isdisjoint(_tails(name)))

    def why_missing(self, name: str) -> str:
        """Says which lists have a name that no file of the data has."""
        lists = " and ".join(self._by_split[split].name for split in _words(self._splits[name]))
        out = ".." in _parts(name)
        return f"{lists} lists it, but {'the name leads out of the folder' if out else 'there is no such file'}"

    def _add(self, names: Iterable[str], split: str) -> None:
        bit = 1 << LISTED.index(split)
        for name in names:
            self._splits[name] = self._splits.get(name, 0) | bit
            for tail in _tails(name):
                self._shortened[tail] = self._shortened.get(tail, 0) | bit

    def _bits(self, name: str) -> int:
        """The splits that lists say of a clip or of its take."""
        return self._found(name) or (self._found(take_name(name)) if self._with_takes else 0)

    def _found(self, name: str) -> int:
        if name in self._splits:
            return self._splits[name]
        for parts in self._above:
            for first in range(len(parts)):
                whole = "/".join((*parts[first:], name))
                if whole in self._splits:
                    return self._splits[whole]
        if name in self._shortened:
            return self._shortened[name]
        return next((self._splits[tail] for tail in _tails(name) if tail in self._splits), 0)


def _words(bits: int) -> list[str]:
    return [split for index, split in enumerate(LISTED) if bits >> index & 1]


class FoundLists(NamedTuple):
    """The lists of a data set, and what the report should say of lists there."""

    lists: SplitLists
    notes: tuple[str, ...] = ()


def find_lists(
    folders: Sequence[Path],
    beside: Path | None,
    clip_names: Collection[str],
    version: str | None = None,
    reading_version: int = 2,
) -> FoundLists:
    """The lists of a data set: among its clips or beside them, else in folders for lists (`split/`, …) and below these.

    Args:
        folders: of the data: the one that clips are named relative to, and those above it.
        beside: the folder around them, which may hold other data: its lists count where they name a clip.
        version: the folder of lists to take, by the end of its path (`rvqvae.data.split_version`).
        reading_version: `rvqvae.data.reading_version`; 1 looks among the clips and beside them only.

    Raises:
        UserError: several folders of lists that differ and no version, one that is not there, or a damaged list.
    """
    if reading_version == 1:
        return _lists_of_version_1(folders, beside, clip_names)
    search = _Search(folders, beside, clip_names)
    chosen = search.chosen(version)
    taken = chosen or _Lists("", {}, {})
    around = [*folders, beside] if beside else folders
    lists = SplitLists(*around, files=taken.files, names=taken.names)
    return FoundLists(lists, (*search.notes(chosen, version), *_notes_of_unlisted(lists, clip_names)))


def _notes_of_unlisted(lists: SplitLists, clip_names: Collection[str]) -> Iterator[str]:
    """Of clips that no list names, what they count as."""
    there, unlisted = ", ".join(file.name for file in lists.files), lists.unlisted(clip_names)
    for split in ("val", "additional"):
        names = [name for name in unlisted if lists.split_of(name) == split]
        end = ", neither trained on nor scored" * (split == "additional")
        if names:
            yield f"clips that {there} do not name count as {split}{end}: {len(names):,}, such as {names[0]}"


def _lists_of_version_1(folders: Sequence[Path], beside: Path | None, clip_names: Collection[str]) -> FoundLists:
    """Those beside the data only where they name a clip."""
    lists = SplitLists(*reversed(folders), *([beside] if beside else []))
    if beside is not None and len(lists.missing(clip_names)) >= len(lists.names()):
        lists = SplitLists(*folders)
    try:
        same = find_lists(folders, beside, clip_names).lists.files == lists.files
    except UserError:
        same = False
    if same and (lists.files or all(original_name(name) == whole_name(name) for name in clip_names)):
        return FoundLists(lists)
    note = "read as versions up to 0.2 did: other clips train and are held out than now; prepare again with "
    return FoundLists(lists, (f"{note}rvqvae.data.reading_version 2 for the data set's own split",))


class _Lists(NamedTuple):
    """The lists of one place."""

    place: str
    """Relative to the data; empty among the clips and beside them."""
    files: dict[str, Path]
    names: dict[str, set[str]]
    """Both by split."""

    @property
    def words(self) -> str:
        return ", ".join(f"{self.place}/{file.name}".lstrip("/") for file in self.files.values())


class _Search:
    """All lists in the folders of a data set."""

    def __init__(self, folders: Sequence[Path], beside: Path | None, clip_names: Collection[str]) -> None:
        self._root, self._beside = folders[-1], beside
        clips = {"/".join(_parts(name)) for name in clip_names}
        self._clips = clips | {take_name(name) for name in clips}
        self._tails = self._clips.union(*(_tails(name) for name in self._clips))
        self._unmatched: list[_Lists] = []
        near: _Lists | None = None
        self._elsewhere: list[_Lists] = []
        for folder in (*folders, *([beside] if beside else [])):
            for place in ("", *_list_folders(folder)):
                found = self._read(folder, place, is_own=folder != beside)
                if place and found is not None:
                    self._elsewhere.append(found)
                elif found is not None:
                    near = found if near is None else _Lists("", found.files | near.files, found.names | near.names)
        self._near = near

    def _read(self, folder: Path, place: str, is_own: bool) -> _Lists | None:
        """The lists of a place, where they name a clip."""
        files = _lists_in(folder / place)
        try:
            lists = _Lists(place, files, {split: _read_names(file) for split, file in files.items()})
        except UserError:
            if is_own:
                raise
            return None
        if any(map(self._names_a_clip, lists.names.values())):
            return lists
        if is_own and any(file.stem in LISTED for file in files.values()):
            self._unmatched.append(lists)
        return None

    def _names_a_clip(self, names: Iterable[str]) -> bool:
        return any(name in self._tails or not self._clips.isdisjoint(_tails(name)) for name in names)

    def chosen(self, version: str | None) -> _Lists | None:
        """The lists to take; raises UserError where that is not clear."""
        there = ", ".join(lists.place for lists in self._elsewhere)
        if version is not None and self._elsewhere:
            wanted = _parts(version)
            fitting = [lists for lists in self._elsewhere if _parts(lists.place)[-len(wanted) :] == wanted]
            if len(fitting) == 1:
                return fitting[0]
            raise UserError(
                f"rvqvae.data.split_version: {version} names {'several' if fitting else 'none'} of the folders of "
                f"split lists in {self._root}; there: {there}"
            )
        if self._near is not None or not self._elsewhere:
            return self._near
        if any(lists.names != self._elsewhere[0].names for lists in self._elsewhere):
            say = to_say("split_version", "NAME")
            raise UserError(f"{self._root}: several folders of split lists: {there}; {say} says which")
        return self._elsewhere[0]

    def notes(self, chosen: _Lists | None, version: str | None) -> Iterator[str]:
        """Of lists that are there and not taken."""
        if version is not None and not self._elsewhere:
            yield f"rvqvae.data.split_version {version} is not used: there is no folder of split lists"
        others = [lists for lists in self._elsewhere if chosen is not None and lists.names != chosen.names]
        if others and version is None and chosen is not None:
            yield f"{_shown([lists.words for lists in others])}: not used, {chosen.words} beside the data say otherwise"
        for lists in self._unmatched:
            yield f"{lists.words}: not used, names none of the clips"
        if chosen is None and (folders := self._split_folders()):
            yield f"the folders {_shown(folders)} are not taken for splits: list their clips in train.txt, val.txt, …"
        loose = [os.path.relpath(file, self._root) for file in self._loose(chosen is None)]
        if loose:
            yield f"{_shown(loose)}: names clips as a list of a split does, and is not used"

    def _split_folders(self) -> list[str]:
        """First folders of the clips, where some are called after what trains and some after what is held out."""
        folders = sorted({name.partition("/")[0] for name in self._clips if "/" in name})
        splits = {folder: {word.lower()[:3] for word in _TOKEN.findall(folder)} for folder in folders}
        named = [folder for folder in folders if splits[folder]]
        return named if {"tra"} < set().union(*splits.values()) else []

    def _loose(self, tables: bool) -> Iterator[Path]:
        """Files that name clips and are called like lists, where no list is looked for; `tables`: of several too."""
        places = [lists for lists in (self._near, *self._elsewhere, *self._unmatched) if lists is not None]
        known = {file for lists in places for file in lists.files.values()}
        there = sorted(_like_lists(self._root, tables))
        if self._beside is not None:
            there += [file for file in sorted(_like_lists(self._beside, tables, 1)) if file not in there]
        for file in [file for file in there if file not in known][:_MOST_READ]:
            if self._names_a_clip(_words_of(file)):
                yield file


def _nearest_lists(folders: Sequence[Path]) -> dict[str, Path]:
    """`train.txt`, `val.txt` and `test.txt`, each of the first folder that has it."""
    files = {split: [folder / f"{split}.txt" for folder in folders] for split in LISTED}
    found = {split: next((file for file in places if file.is_file()), None) for split, places in files.items()}
    return {split: file for split, file in found.items() if file is not None}


def _lists_in(folder: Path) -> dict[str, Path]:
    """The lists of one folder by split."""
    there = {name.lower(): folder / name for name in entries(folder) if name.lower() in _FILES}
    found: dict[str, Path] = {}
    for name, split in _FILES.items():
        if name in there and there[name].is_file():
            found.setdefault(split, there[name])
    return {split: found[split] for split in LISTED if split in found}


def _list_folders(folder: Path) -> list[str]:
    """Folders for lists in a folder and those below them, relative to it, sorted."""
    found: list[str] = []
    level = [name for name in entries(folder) if _FOLDER.fullmatch(name) and (folder / name).is_dir()]
    for _ in range(_LEVELS):
        found += level
        below = [f"{place}/{name}" for place in level for name in entries(folder / place) if name[0] != "."]
        level = [place for place in below if (folder / place).is_dir()]
    return found


def _like_lists(root: Path, tables: bool, levels: int = _LEVELS) -> Iterator[Path]:
    """Files of a folder and those below it whose names say that they list one split, or with `tables` several."""
    for place, folders, files in os.walk(root):
        depth = len(Path(place).parts) - len(root.parts)
        folders[:] = [name for name in folders if name[0] != "." and depth + 1 < levels]
        for name in files:
            splits, end = {word.lower()[:3] for word in _TOKEN.findall(name)}, Path(name).suffix.lower()
            is_like_one = len(splits) == 1 and end in _ENDS
            is_table = tables and end in _TABLE_ENDS and (splits or _OF_SPLITS.search(name))
            if (is_like_one or is_table) and name[0] != "." and Path(place, name).is_file():  # a pipe would never end
                yield Path(place, name)


def _words_of(file: Path) -> set[str]:
    """What may be names of clips in a file: cells of its lines, or words of JSON and YAML."""
    try:
        text = read_text(file) if file.stat().st_size <= _LARGEST else ""
    except (OSError, UnicodeError):
        return set()
    words = set((_CELL if file.suffix.lower() in (*_ENDS, ".tsv") else _WORD).findall(text))
    return {_without_suffix("/".join(_parts(word.strip()))) for word in words if len(word) <= _LONGEST} - {""}


def entries(folder: Path) -> list[str]:
    """The names of what a folder holds, sorted, as far as one may look."""
    try:
        with os.scandir(folder) as there:
            return sorted(entry.name for entry in there)
    except OSError:
        return []


def _shown(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")


def _read_names(file: Path) -> set[str]:
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"{file}: larger than {_LARGEST >> 20} MiB, so no list of clips, a name a line")
        lines = read_text(file).split("\n")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file}: cannot be read as a list of clips, a name a line in UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if len(line) > _LONGEST:
            raise UserError(f"{file}: line {number} has {len(line):,} characters, so it is no name of a clip")
    return {name for line in lines if (name := _without_suffix("/".join(_parts(line.strip()))))}


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _without_suffix(name: str) -> str:
    return name[:-4] if name.lower().endswith(_SUFFIXES) else name


def _tails(name: str) -> list[str]:
    """The name without its first folder, without its first two, …; of a name that leads out (`..`) there are none."""
    parts = name.split("/")
    if ".." in parts:
        return []
    return ["/".join(parts[first:]) for first in range(max(1, len(parts) - _DEEPEST), len(parts))]
