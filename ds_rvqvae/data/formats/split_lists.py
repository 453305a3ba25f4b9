"""Lists of the clips of each split: `train.txt`, `val.txt` and `test.txt`, a clip a line."""

from collections.abc import Collection, Iterable
from pathlib import Path

from ds_rvqvae.errors import UserError

LISTED = ("train", "val", "test")
_SUFFIXES = (".bvh", ".npy", ".npz")
_LARGEST = 2**28
"""Bytes of a list; no data set has as many clips."""
_LONGEST = 4096
"""Characters of a line; no file has a longer path."""
_DEEPEST = 32
"""Folders of a listed name that are looked at."""


class SplitLists:
    """The lists in the first of some folders that has each; a data set without lists has no splits of its own.

    A line names a clip by its path with or without suffix. It matches a clip of that very name; or else, with folders
    before it that the data do not have (`bvh/01/01_01.bvh` is `01/01_01` in the folder `bvh`), those that lie in the
    data's own folder first; or else, without some of the folders that the data have (`01_01` is `01/01_01`).
    """

    def __init__(self, *folders: Path) -> None:
        """Reads the lists; raises UserError where one cannot be read. The data's own folder comes first."""
        self.files: list[Path] = []
        self._splits: dict[str, int] = {}  # a bit for each of `LISTED`
        self._shortened: dict[str, int] = {}
        self._above = [tuple(part for part in folder.resolve().parts if part != "/") for folder in folders]
        for split in LISTED:
            file = next((folder / f"{split}.txt" for folder in folders if (folder / f"{split}.txt").is_file()), None)
            if file is not None:
                self.files.append(file)
                self._add(_read_names(file), split)

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
        found = self._found("/".join(_parts(name)))
        if found:
            return " and ".join(_words(found))
        return "val" if [file.name for file in self.files] == ["train.txt"] else "additional"

    def missing(self, clip_names: Iterable[str]) -> list[str]:
        """Listed names that match none of the clips, sorted."""
        clips = {"/".join(_parts(name)) for name in clip_names}
        tails = clips.union(*(_tails(name) for name in clips))
        return sorted(name for name in self._splits if name not in tails and clips.isdisjoint(_tails(name)))

    def why_missing(self, name: str) -> str:
        """Says which lists have a name that no file of the data has."""
        lists = " and ".join(f"{split}.txt" for split in _words(self._splits[name]))
        out = ".." in _parts(name)
        return f"{lists} lists it, but {'the name leads out of the folder' if out else 'there is no such file'}"

    def _add(self, names: Iterable[str], split: str) -> None:
        bit = 1 << LISTED.index(split)
        for name in names:
            self._splits[name] = self._splits.get(name, 0) | bit
            for tail in _tails(name):
                self._shortened[tail] = self._shortened.get(tail, 0) | bit

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


def lists_of(folder: Path, clip_names: Collection[str]) -> SplitLists:
    """The lists in a folder or beside it; those beside it only where they name one of its clips."""
    lists = SplitLists(folder, folder.parent)
    return lists if len(lists.missing(clip_names)) < len(lists.names()) else SplitLists(folder)


def _read_names(file: Path) -> set[str]:
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"{file}: larger than {_LARGEST >> 20} MiB, so no list of clips, a name a line")
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
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
