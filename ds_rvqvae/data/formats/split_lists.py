"""Lists of the clips of each split (`train.txt`, `val.txt` and `test.txt`, one clip per line), and their places.

The places are those of the data sets' repositories: HumanML3D and KIT (beside the clips), MotionStreamer's 272 columns
(`split/`), MotionMillion (`split/version1/tokenizer_96/`), SnapMoGen (`data_split_info/train_fnames.txt`).
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ds_rvqvae.config.data import to_say
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import entries, read_text
from ds_rvqvae.motion.clip import original_name, take_name, whole_name

LISTED = ("train", "val", "test")
_ALIKE = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
_ENDINGS = ("", "_fnames", "_ids")
"""SnapMoGen lists its recordings in `train_fnames.txt`, and their pieces in `train_ids.txt`."""
_FILES = {f"{name}{end}.txt": split for split, names in _ALIKE.items() for end in _ENDINGS for name in names}
"""Names of lists in lower case, and their splits; if a folder has several for one split, the first counts."""
_FOLDER = re.compile(r"splits?|(data_)?split_info\d*|data_splits?\d*", re.IGNORECASE)
_TOKEN = re.compile(r"(?<![a-z])(train|training|val|valid|validation|dev|test|testing)(?![a-z])", re.IGNORECASE)
_OF_SPLITS = re.compile(r"(?<![a-z])splits?(?![a-z])", re.IGNORECASE)
_ENDS = ("", ".txt", ".lst", ".list", ".csv", ".bak", ".old", ".orig")
_TABLE_ENDS = (*_ENDS, ".json", ".tsv", ".yaml", ".yml")
"""Suffixes of files in any folder that may be a list (`_ENDS`), or a table of several splits."""
_CELL, _WORD = re.compile(r"[^,;\t\r\n]+"), re.compile(r"[^\s\"',:;\[\]{}]+")
_SUFFIXES = (".bvh", ".npy", ".npz", ".csv")
_LARGEST = 2**28
"""The most bytes of a list; no data set needs more."""
_LONGEST = 4096
"""The most characters of a line; no file has a longer path."""
_DEEPEST = 32
"""The number of folders of a listed name that are compared."""
_LEVELS = 4
"""The depth to which nested folders are searched for lists."""
_MOST_READ, _SHOWN = 100, 3
"""The numbers of files read because they may be lists, and named in a note."""


class SplitLists:
    """The lists of a data set, each from the first of several folders that has it; without lists there are no splits.

    A line names a clip by its path, with or without suffix. It matches a clip of exactly this name. If there is none,
    the line may have more folders at the start than the clip (`bvh/01/01_01.bvh` is `01/01_01` in the folder `bvh`);
    folders that match the data's own come first. Or it may have fewer folders than the clip (`01_01` is `01/01_01`).
    """

    def __init__(
        self,
        *folders: Path,
        files: Mapping[str, Path] | None = None,
        names: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """Reads the lists; raises UserError if one cannot be read. The data's own folder comes first.

        Args:
            files: the lists by split, from any folder; a clip that they do not name then takes its recording's split.
            names: the names in these lists, if they were read before.
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
        """Returns every listed name, with `/` between folders and without suffix."""
        return set(self._splits)

    def split_of(self, name: str) -> str | None:
        """Returns the split of a clip, or None if there are no lists.

        A clip that no list names is `additional`, or `val` if there is only `train.txt`. A clip in different lists has
        a split such as `train and test`, which is not valid.
        """
        if not self.files:
            return None
        name = "/".join(_parts(name))
        if found := self._bits(name):
            return " and ".join(_words(found))
        # The mirror image of a training clip is not held out.
        trains = self._with_takes and self._found(original_name(name))
        return "val" if list(self._by_split) == ["train"] and not trains else "additional"

    def unlisted(self, clip_names: Iterable[str]) -> list[str]:
        """Returns the clips that no list names, sorted."""
        return sorted(name for name in clip_names if not self._bits("/".join(_parts(name)))) if self.files else []

    def missing(self, clip_names: Iterable[str]) -> list[str]:
        """Returns the listed names that match none of the clips, sorted."""
        clips = {"/".join(_parts(name)) for name in clip_names}
        if self._with_takes:
            clips |= {take_name(name) for name in clips}
        tails = clips.union(*(_tails(name) for name in clips))
        return sorted(name for name in self._splits if name not in tails and clips.isdisjoint(_tails(name)))

    def why_missing(self, name: str) -> str:
        """Returns a message for a listed name without a file; it names the lists."""
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
        """Returns the splits that the lists give for a clip, or for the recording that it is a piece of."""
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
    """The lists of a data set, and notes on lists for the report."""

    lists: SplitLists
    notes: tuple[str, ...] = ()


def find_lists(
    folders: Sequence[Path],
    beside: Path | None,
    clip_names: Collection[str],
    version: str | None = None,
    reading_version: int = 2,
    pieces: bool = False,
) -> FoundLists:
    """Finds the lists of a data set: among its clips or beside them, else in folders for lists (`split/`, …) or below.

    Args:
        folders: of the data: the one that clips are named relative to, and those above it.
        beside: the folder around them, which may hold other data: its lists are used only if they name a clip.
        version: the folder of lists to use, by the end of its path (`rvqvae.data.split_version`).
        reading_version: `rvqvae.data.reading_version`; 1 searches only among the clips and beside them.
        pieces: the clips are recordings, and lists may name pieces of them: `train_ids.txt` comes before
            `train_fnames.txt` then. Notes on clips that no list names are left to the caller, who knows the pieces.

    Raises:
        UserError: several folders have different lists and no version is given, the version does not exist, or a list
            is damaged.
    """
    if reading_version == 1:
        return _lists_of_version_1(folders, beside, clip_names)
    search = _Search(folders, beside, clip_names, pieces)
    chosen = search.chosen(version)
    taken = chosen or _Lists("", {}, {})
    around = [*folders, beside] if beside else folders
    lists = SplitLists(*around, files=taken.files, names=taken.names)
    unlisted = () if pieces else notes_of_unlisted(lists, clip_names)
    return FoundLists(lists, (*search.notes(chosen, version), *unlisted))


def notes_of_unlisted(lists: SplitLists, clip_names: Collection[str]) -> Iterator[str]:
    """Yields notes on clips that no list names, with the split that they are counted in."""
    there, unlisted = ", ".join(file.name for file in lists.files), lists.unlisted(clip_names)
    for split in ("val", "additional"):
        names = [name for name in unlisted if lists.split_of(name) == split]
        end = ", neither trained on nor scored" * (split == "additional")
        if names:
            yield f"clips that {there} do not name count as {split}{end}: {len(names):,}, such as {names[0]}"


def _lists_of_version_1(folders: Sequence[Path], beside: Path | None, clip_names: Collection[str]) -> FoundLists:
    """Finds lists by the rules of versions up to 0.2: those beside the data are used only if they name a clip."""
    lists = SplitLists(*reversed(folders), *([beside] if beside else []))
    if beside is not None and len(lists.missing(clip_names)) >= len(lists.names()):
        lists = SplitLists(*folders)
    try:
        same = find_lists(folders, beside, clip_names).lists.files == lists.files
    except UserError:
        same = False
    if same and (lists.files or all(original_name(name) == whole_name(name) for name in clip_names)):
        return FoundLists(lists)
    note = "read as versions up to 0.2 did: other clips are held out than by today's rules; prepare again with "
    return FoundLists(lists, (f"{note}rvqvae.data.reading_version 2 to use the data set's own split",))


class _Lists(NamedTuple):
    """The lists of one folder."""

    place: str
    """The folder, relative to the data; empty for lists among the clips and beside them."""
    files: dict[str, Path]
    names: dict[str, set[str]]
    """Both by split; the names are those in the files."""

    @property
    def words(self) -> str:
        return ", ".join(f"{self.place}/{file.name}".lstrip("/") for file in self.files.values())


class _Search:
    """All lists in the folders of a data set, and the choice among them."""

    def __init__(self, folders: Sequence[Path], beside: Path | None, clip_names: Collection[str], pieces: bool) -> None:
        self._root, self._beside, self._pieces = folders[-1], beside, pieces
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
        """Reads the lists of a folder, if they name a clip, else returns None."""
        files = _lists_in(folder / place, self._pieces)
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
        known = {take_name(name) for name in names} if self._pieces else names
        return any(name in self._tails or not self._clips.isdisjoint(_tails(name)) for name in known)

    def chosen(self, version: str | None) -> _Lists | None:
        """Returns the lists to use; raises UserError if that is not clear."""
        there = ", ".join(lists.place for lists in self._elsewhere)
        if version is not None and self._elsewhere:
            wanted = _parts(version)
            fitting = [lists for lists in self._elsewhere if _parts(lists.place)[-len(wanted) :] == wanted]
            if len(fitting) == 1:
                return fitting[0]
            raise UserError(
                f"rvqvae.data.split_version: {version} names {'several' if fitting else 'none'} of the folders of "
                f"split lists in {self._root}; these are {there}"
            )
        if self._near is not None or not self._elsewhere:
            return self._near
        if any(lists.names != self._elsewhere[0].names for lists in self._elsewhere):
            say = to_say("split_version", "NAME")
            raise UserError(f"{self._root}: several folders of split lists: {there}; {say} chooses one")
        return self._elsewhere[0]

    def notes(self, chosen: _Lists | None, version: str | None) -> Iterator[str]:
        """Yields notes on lists that are not used."""
        if version is not None and not self._elsewhere:
            yield f"rvqvae.data.split_version {version} is not used: there is no folder of split lists"
        others = [lists for lists in self._elsewhere if chosen is not None and lists.names != chosen.names]
        if others and version is None and chosen is not None:
            yield f"{_shown([lists.words for lists in others])}: not used, {chosen.words} beside the data differ"
        for lists in self._unmatched:
            yield f"{lists.words}: not used, names none of the clips"
        if chosen is None and (folders := self._split_folders()):
            yield f"the folders {_shown(folders)} are not used as splits: list their clips in train.txt, val.txt, …"
        loose = [os.path.relpath(file, self._root) for file in self._loose(chosen is None)]
        if loose:
            yield f"{_shown(loose)}: names clips like the list of a split, but is not used"

    def _split_folders(self) -> list[str]:
        """Returns the clips' top folders that are named after splits, if one of them is named after training."""
        folders = sorted({name.partition("/")[0] for name in self._clips if "/" in name})
        splits = {folder: {word.lower()[:3] for word in _TOKEN.findall(folder)} for folder in folders}
        named = [folder for folder in folders if splits[folder]]
        return named if {"tra"} < set().union(*splits.values()) else []

    def _loose(self, tables: bool) -> Iterator[Path]:
        """Yields files that are named like lists and name clips, but are not used; with `tables`, tables too."""
        places = [lists for lists in (self._near, *self._elsewhere, *self._unmatched) if lists is not None]
        known = {file for lists in places for file in lists.files.values()}
        there = sorted(_like_lists(self._root, tables))
        if self._beside is not None:
            there += [file for file in sorted(_like_lists(self._beside, tables, 1)) if file not in there]
        for file in [file for file in there if file not in known][:_MOST_READ]:
            if self._names_a_clip(_words_of(file)):
                yield file


def _nearest_lists(folders: Sequence[Path]) -> dict[str, Path]:
    """Returns `train.txt`, `val.txt` and `test.txt`, each from the first folder that has it."""
    files = {split: [folder / f"{split}.txt" for folder in folders] for split in LISTED}
    found = {split: next((file for file in places if file.is_file()), None) for split, places in files.items()}
    return {split: file for split, file in found.items() if file is not None}


def _lists_in(folder: Path, pieces: bool) -> dict[str, Path]:
    """Returns the lists of one folder by split; with `pieces`, lists of pieces come first."""
    there = {name.lower(): folder / name for name in entries(folder) if name.lower() in _FILES}
    found: dict[str, Path] = {}
    files = {name: file for name, file in there.items() if pieces and name.endswith("_ids.txt") and file.is_file()}
    of_pieces = {name for name, file in files.items() if any("#" in word for word in _words_of(file))}
    for name, split in sorted(_FILES.items(), key=lambda item: item[0] not in of_pieces):
        if name in there and there[name].is_file():
            found.setdefault(split, there[name])
    return {split: found[split] for split in LISTED if split in found}


def _list_folders(folder: Path) -> list[str]:
    """Returns the folders for lists in a folder and the folders below them, relative to it, sorted by level."""
    found: list[str] = []
    level = [name for name in entries(folder) if _FOLDER.fullmatch(name) and (folder / name).is_dir()]
    for _ in range(_LEVELS):
        found += level
        below = [f"{place}/{name}" for place in level for name in entries(folder / place) if name[0] != "."]
        level = [place for place in below if (folder / place).is_dir()]
    return found


def _like_lists(root: Path, tables: bool, levels: int = _LEVELS) -> Iterator[Path]:
    """Yields files in a folder and below whose names say that they list one split, or with `tables` several splits."""
    for place, folders, files in os.walk(root):
        depth = len(Path(place).parts) - len(root.parts)
        folders[:] = [name for name in folders if name[0] != "." and depth + 1 < levels]
        for name in files:
            splits, end = {word.lower()[:3] for word in _TOKEN.findall(name)}, Path(name).suffix.lower()
            is_like_one = len(splits) == 1 and end in _ENDS
            is_table = tables and end in _TABLE_ENDS and (splits or _OF_SPLITS.search(name))
            if (is_like_one or is_table) and name[0] != "." and Path(place, name).is_file():  # a pipe would block
                yield Path(place, name)


def _words_of(file: Path) -> set[str]:
    """Returns possible names of clips in a file: cells of its lines, or words of JSON and YAML."""
    try:
        text = read_text(file) if file.stat().st_size <= _LARGEST else ""
    except (OSError, UnicodeError):
        return set()
    words = set((_CELL if file.suffix.lower() in (*_ENDS, ".tsv") else _WORD).findall(text))
    return {_without_suffix("/".join(_parts(word.strip()))) for word in words if len(word) <= _LONGEST} - {""}


def _shown(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")


def _read_names(file: Path) -> set[str]:
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"{file}: larger than {_LARGEST >> 20} MiB, so not a list of clips with one name per line")
        lines = read_text(file).split("\n")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file}: cannot be read as a list of clips with one name per line, UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if len(line) > _LONGEST:
            raise UserError(f"{file}: line {number} has {len(line):,} characters, so it is not the name of a clip")
    return {name for line in lines if (name := _without_suffix("/".join(_parts(line.strip()))))}


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _without_suffix(name: str) -> str:
    return name[:-4] if name.lower().endswith(_SUFFIXES) else name


def _tails(name: str) -> list[str]:
    """Returns a name without its first folder, without its first two, …; an empty list for a name with `..`."""
    parts = name.split("/")
    if ".." in parts:
        return []
    return ["/".join(parts[first:]) for first in range(max(1, len(parts) - _DEEPEST), len(parts))]
