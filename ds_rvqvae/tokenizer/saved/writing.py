"""Writes a tokenizer's folder, which holds one whole tokenizer at every instant, the old or the new, and may hold files
of others, which are neither moved nor changed.

A new folder is made beside its place and renamed. In one that is there, new files are written under unfinished names,
brought to the disk and renamed one by one. The first rename is the moment from which the new tokenizer counts: that of
the weights, or of a body's `body.json`, which says what each part's weights are. Where a process is killed later,
readers find the rest under its unfinished names (`reading.py`), and the next writer renames it.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import xxhash

from ds_rvqvae.errors import UserError
from ds_rvqvae.files import (
    is_abandoned,
    read_json,
    remove_abandoned,
    sync,
    unfinished_files,
    unfinished_stem,
    whole_folder,
)
from ds_rvqvae.locks import HeldFolder, hold_folder
from ds_rvqvae.tokenizer.saved.reading import (
    BODY,
    CARD,
    CONFIG,
    MARK,
    WEIGHTS,
    content_listed,
    open_saved,
    open_weights,
    read_copy,
)

Place = Callable[[str], Path]
"""Where a file of such a name is to be written."""
Write = Callable[[Place], str]
"""Writes the files of a tokenizer; gives the content of its weights."""
CardOf = Callable[[dict[str, Any]], str]
"""The model card of a config."""

_ORDER = (BODY, WEIGHTS, CONFIG, CARD)
"""In which files take their places."""
_HEAD_BYTES = 1 << 20
_OURS = (b'"ds_rvqvae', b'"quantizer.initialized"')
"""Of which the head of our own weights has one."""
_LEFT = (".unfinished-", ".lock")
"""What names begin with of files that killed processes of ours leave, and of locks."""
_TRIES = 5
"""How often a folder is written where the file system has no locks and another process writes it as well."""


def sealed(card: str) -> str:
    """A model card with a last line that tells whether it is as it was written."""
    return f"{card}\n<!-- ds_rvqvae {xxhash.xxh3_128_hexdigest(card.encode())} -->\n"


def save_tokenizer(folder: Path, write: Write, card_of: CardOf) -> None:
    """Writes a tokenizer into a folder, which is new, empty or has one of ours.

    Raises:
        UserError: the folder holds something else, or something else under the name of one of our files.
        OSError: it cannot be written; what was there stays, unless only the copy of the config could not be replaced.
    """
    listed, folder = content_listed(folder.absolute()), _place_of(folder)
    if not folder.exists() and _made_whole(folder, lambda unfinished: write(unfinished.joinpath)):
        return
    _check_is_folder(folder)
    remove_abandoned(folder)
    with hold_folder(folder, wait=True) as held:
        for _ in _tries(held, lambda: open_saved(folder)):
            _check_ours(folder)
            _finish(folder, listed)
            pending = _Pending(folder, card_of)
            try:
                write(pending.file)
                pending.sync()
                pending.place()
            except BaseException:
                pending.discard()
                raise


def save_body(
    folder: Path, parts: Mapping[str, Write], table_of: Callable[[dict[str, str]], str], card_of: CardOf
) -> None:
    """Writes a body's tokenizer into a folder, as `save_tokenizer`: all parts at once.

    Args:
        parts: by name, which is that of a part's folder.
        table_of: the text of `body.json`, of the contents of the parts' weights.
    """
    folder = _place_of(folder)

    def fill(unfinished: Path) -> None:
        contents = {}
        for part, write in parts.items():
            (unfinished / part).mkdir()
            contents[part] = write((unfinished / part).joinpath)
        (unfinished / BODY).write_text(table_of(contents), encoding="utf-8")

    if not folder.exists() and _made_whole(folder, fill):
        return
    _check_is_folder(folder)
    remove_abandoned(folder)
    with hold_folder(folder, wait=True) as held:
        for _ in _tries(held, lambda: _check_whole(folder)):
            _check_body(folder, list(parts))
            _replace_body(folder, parts, table_of, card_of)


def _replace_body(
    folder: Path, parts: Mapping[str, Write], table_of: Callable[[dict[str, str]], str], card_of: CardOf
) -> None:
    before, contents, pendings = _contents_of(folder), {}, []
    for entry in {file.parent for file in folder.glob("*/.unfinished-*")}:
        _finish(entry, before.get(entry.name))
        with suppress(OSError):
            entry.rmdir()  # where nothing else is in it
    _finish(folder, None)
    table, made = _Pending(folder, card_of), [part for part in parts if not (folder / part).exists()]
    with ExitStack() as stack:
        try:
            for part, write in parts.items():
                place = _place_of(folder / part)
                place.mkdir(exist_ok=True)
                stack.enter_context(hold_folder(place, wait=True))
                pendings.append(_Pending(place, card_of))
                contents[part] = write(pendings[-1].file)
                pendings[-1].sync()
            table.file(BODY).write_text(table_of(contents), encoding="utf-8")
            table.sync()
            table.place()
        except BaseException:
            for pending in [] if table.counts else [table, *pendings]:
                pending.discard()
            for part in [] if table.counts else made:
                with suppress(OSError):
                    (folder / part).rmdir()
            raise
        for pending in pendings:
            pending.place()
    for part in before.keys() - parts.keys():
        _remove_part(folder / part, before[part], card_of)


class _Pending:
    """Files that are written beside those whose places they are to take.

    Attributes:
        counts: whether the first has taken its place, so that the others have to as well.
    """

    def __init__(self, folder: Path, card_of: CardOf) -> None:
        self._folder, self._stem = folder, unfinished_stem(folder)
        self._files: dict[str, Path] = {}
        self._keeps_card = not _is_card_ours(folder, card_of)
        self.counts = False

    def file(self, name: str) -> Path:
        """Where the file is to be written that is to have this name."""
        return self._files.setdefault(name, Path(f"{self._stem}-{name}"))

    def sync(self) -> None:
        """Waits until the files are on the disk."""
        for path in (*self._files.values(), self._folder):
            sync(path)

    def place(self) -> None:
        """Gives the files their names, each on the disk before the next."""
        for name in _ORDER:
            if name == CARD and CARD in self._files and self._keeps_card:
                self._files[CARD].unlink()
                text = "was changed by hand and is left as it is; it may speak of an earlier tokenizer"
                logging.getLogger("ds_rvqvae").warning("%s: %s", self._folder / CARD, text)
            elif name in self._files:
                self._files[name].replace(self._folder / name)
                self.counts = True
                sync(self._folder)

    def discard(self) -> None:
        """Removes the files, unless readers need them."""
        for file in [] if self.counts else self._files.values():
            with suppress(OSError):
                file.unlink(missing_ok=True)


def _place_of(folder: Path) -> Path:
    """The folder itself, where links lead to it."""
    return Path(os.path.realpath(folder))


def _made_whole(folder: Path, fill: Callable[[Path], object]) -> bool:
    """Makes a new folder; gives False where another process did so meanwhile."""
    try:
        with whole_folder(folder, replace=False, synced=True) as unfinished:
            fill(unfinished)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True


def _tries(held: HeldFolder, check: Callable[[], object]) -> Iterator[None]:
    """Once; where nobody is kept out, until what is there is whole."""
    for _ in range(_TRIES):
        yield
        if held.works:
            return
        try:
            check()
            return
        except UserError:
            time.sleep(random.uniform(0.0, 0.5))  # for another time than the others
    raise OSError("other processes write it at the same time")


def _finish(folder: Path, listed: str | None) -> None:
    """Ends the replacements that killed processes began, where they count already, and removes what they left.

    Args:
        listed: the content that a body's weights in this folder have to have.
    """
    groups: dict[str, dict[str, Path]] = {}
    for name in _ORDER:
        for file in filter(is_abandoned, unfinished_files(folder, name)):
            groups.setdefault(file.name.removesuffix(f"-{name}"), {})[name] = file
    for files in groups.values():
        if _counts(folder, files, listed):
            for name in (WEIGHTS, CONFIG):
                if name in files:
                    files[name].replace(folder / name)
                    sync(folder)
        for file in files.values():
            file.unlink(missing_ok=True)


def _counts(folder: Path, files: Mapping[str, Path], listed: str | None) -> bool:
    """Whether readers take unfinished files for those of a folder."""
    there = _content(folder / WEIGHTS)
    if WEIGHTS in files:
        return listed is not None and there != listed and _content(files[WEIGHTS]) == listed
    if CONFIG not in files or there is None:
        return False
    return read_copy(files[CONFIG])[0] == open_weights(folder / WEIGHTS).values


def _content(file: Path) -> str | None:
    """What a weights' file says of its content."""
    try:
        return open_weights(file).content
    except UserError:
        return None


def _contents_of(folder: Path) -> dict[str, str]:
    """What a body's table says of its parts' contents."""
    try:
        contents = read_json(folder / BODY)["contents"]
        return {part: content for part, content in contents.items() if isinstance(content, str)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _check_whole(folder: Path) -> None:
    """Raises UserError where a body's parts are not those of its table."""
    for part, content in _contents_of(folder).items():
        open_saved(folder / part, content=content)


def _remove_part(folder: Path, content: str, card_of: CardOf) -> None:
    """Removes our files of a part that a body has no more, and the folder where nothing else is in it."""
    if _content(folder / WEIGHTS) != content:  # not the one that we wrote
        return
    names = (CONFIG, *((CARD,) if _is_card_ours(folder, card_of) else ()), WEIGHTS)
    with suppress(OSError):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _is_card_ours(folder: Path, card_of: CardOf) -> bool:
    """Whether nobody else's words are lost with a folder's model card."""
    try:
        card = (folder / CARD).read_bytes().rstrip(b"\0").decode()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    if not card or card == sealed(card.rpartition("\n<!-- ")[0]):
        return True
    try:
        # As versions up to 0.3 wrote it, or torn.
        return sealed(card_of(open_saved(folder).values)).startswith(card)
    except (UserError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return False


def _check_is_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: exists and is no tokenizer of ours; name another folder")


def _check_ours(folder: Path) -> None:
    """Raises UserError where a tokenizer in a folder would take the place of what is none of ours."""
    _check_names(folder, (CONFIG, WEIGHTS, CARD))
    if _is_strange(folder) or not (_is_marked(folder) or _is_empty(folder)):
        raise UserError(f"{folder}: exists and is no tokenizer of ours; name another folder")


def _check_body(folder: Path, parts: Sequence[str]) -> None:
    """As `_check_ours`, for a body of these parts."""
    _check_names(folder, (BODY,))
    table = _head(folder / BODY)
    if not (MARK.encode() in table if table else _is_empty(folder) or (folder / BODY).is_file()):
        raise UserError(f"{folder}: exists and is no tokenizer of ours; name another folder")
    for place in (_place_of(folder / part) for part in parts):
        if place.exists():
            if not place.is_dir():
                raise UserError(f"{place}: is in the way of a part's folder; move it, or name another folder")
            _check_names(place, (CONFIG, WEIGHTS, CARD))
            if _is_strange(place):
                raise UserError(f"{place}: holds another's model; move it, or name another folder")


def _check_names(folder: Path, names: Sequence[str]) -> None:
    """Raises UserError where a file of such a name could not take its place."""
    import psutil  # late: the launcher answers before it would be loaded

    mounts = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}
    for file in (folder / name for name in names):
        if str(file) in mounts:
            raise UserError(f"{file}: something is mounted there, so it cannot be replaced; name another folder")
        if file.exists() and not file.is_file() and not file.is_symlink():
            raise UserError(f"{file}: is no file, so it cannot be replaced; move it, or name another folder")


def _head(file: Path) -> bytes:
    """The first bytes of a file; none where it is missing or empty, also of all but NULs."""
    try:
        with file.open("rb") as content:
            return content.read(_HEAD_BYTES).rstrip(b"\0")
    except FileNotFoundError:
        return b""


def _is_strange(folder: Path) -> bool:
    """Whether files of our names in a folder hold what is not ours."""
    config, weights = _head(folder / CONFIG), _head(folder / WEIGHTS)
    is_marked = any(mark in weights for mark in _OURS)
    if not config:
        return bool(weights) and not is_marked
    # What is no config of anything, beside weights of ours, is a damaged one of ours.
    return MARK.encode() not in config and not (is_marked and read_copy(folder / CONFIG)[0] is None)


def _is_marked(folder: Path) -> bool:
    """Whether a folder that is not strange has files of ours, be they empty after a crash."""
    files = (folder / CONFIG, folder / WEIGHTS)
    return any(map(_head, files)) or all(file.is_file() for file in files)


def _is_empty(folder: Path) -> bool:
    """Whether a folder has nothing but what killed processes of ours left."""
    return all(
        entry.name.startswith(_LEFT) or (entry.is_dir() and not entry.is_symlink() and _is_empty(entry))
        for entry in folder.iterdir()
    )
