"""Write a tokenizer's folder, which holds one complete tokenizer at every instant: the old or the new one. Other files
in the folder are neither moved nor changed.

A new folder is made beside its final path and renamed. In an existing folder, new files are written under unfinished
names, synced and renamed one by one. The new tokenizer replaces the old one at the first rename: that of the weights,
or of a body's `body.json`, which lists the content of each part's weights. If the process is killed after that, reading
finds the other files under their unfinished names (`reading.py`), and the next writer renames them.
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
"""Returns the path that a file with this name is to be written to."""
Write = Callable[[Place], str]
"""Writes the files of a tokenizer, and returns the content hash of its weights."""
CardOf = Callable[[dict[str, Any]], str]
"""Returns the model card for a config."""

_ORDER = (BODY, WEIGHTS, CONFIG, CARD)
"""The order in which files are renamed."""
_HEAD_BYTES = 1 << 20
_OURS = (b'"ds_rvqvae', b'"quantizer.initialized"')
"""The first bytes of our own weights contain one of these."""
_LEFT = (".unfinished-", ".lock")
"""Prefixes of the files that our killed processes leave, and of locks."""
_TRIES = 5
"""How many times a folder is written if the file system has no locks and another process writes it too."""


def sealed(card: str) -> str:
    """Returns a model card with a last line that shows whether the card was changed."""
    return f"{card}\n<!-- ds_rvqvae {xxhash.xxh3_128_hexdigest(card.encode())} -->\n"


def save_tokenizer(folder: Path, write: Write, card_of: CardOf) -> None:
    """Writes a tokenizer into a folder that is new, empty or holds one of our tokenizers.

    Raises:
        UserError: the folder holds something else, or has one of our file names for something else.
        OSError: it cannot be written; the old tokenizer stays, unless only the config's copy could not be replaced.
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
    """Writes a body's tokenizer into a folder, as `save_tokenizer` does: all parts at once.

    Args:
        parts: by name, which is also the name of the part's folder.
        table_of: returns the text of `body.json` for the content hashes of the parts' weights.
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
            entry.rmdir()  # only succeeds if nothing else is in it
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
    """Files that are written beside the files that they replace.

    Attributes:
        counts: whether the first file was renamed, so that the others must be renamed too.
    """

    def __init__(self, folder: Path, card_of: CardOf) -> None:
        self._folder, self._stem = folder, unfinished_stem(folder)
        self._files: dict[str, Path] = {}
        self._keeps_card = not _is_card_ours(folder, card_of)
        self.counts = False

    def file(self, name: str) -> Path:
        """Returns the unfinished path for the file that will get this name."""
        return self._files.setdefault(name, Path(f"{self._stem}-{name}"))

    def sync(self) -> None:
        """Syncs the files to the disk."""
        for path in (*self._files.values(), self._folder):
            sync(path)

    def place(self) -> None:
        """Renames the files to their final names; each rename is synced before the next."""
        for name in _ORDER:
            if name == CARD and CARD in self._files and self._keeps_card:
                self._files[CARD].unlink()
                text = "was changed by hand and is left as it is; it may describe an earlier tokenizer"
                logging.getLogger("ds_rvqvae").warning("%s: %s", self._folder / CARD, text)
            elif name in self._files:
                self._files[name].replace(self._folder / name)
                self.counts = True
                sync(self._folder)

    def discard(self) -> None:
        """Removes the files, unless the first was renamed and reading needs them."""
        for file in [] if self.counts else self._files.values():
            with suppress(OSError):
                file.unlink(missing_ok=True)


def _place_of(folder: Path) -> Path:
    """Returns the folder itself, with links resolved."""
    return Path(os.path.realpath(folder))


def _made_whole(folder: Path, fill: Callable[[Path], object]) -> bool:
    """Makes a new folder; returns False if another process made it meanwhile."""
    try:
        with whole_folder(folder, replace=False, synced=True) as unfinished:
            fill(unfinished)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True


def _tries(held: HeldFolder, check: Callable[[], object]) -> Iterator[None]:
    """Yields once; without a working lock, until the folder is complete or `_TRIES` is reached."""
    for _ in range(_TRIES):
        yield
        if held.works:
            return
        try:
            check()
            return
        except UserError:
            time.sleep(random.uniform(0.0, 0.5))  # random, so that processes do not stay in step
    raise OSError("other processes are writing it at the same time")


def _finish(folder: Path, listed: str | None) -> None:
    """Completes replacements of killed processes whose first file was renamed, and removes their other files.

    Args:
        listed: the content hash that `body.json` lists for the weights in this folder.
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
    """Returns whether reading uses these unfinished files as the folder's files."""
    there = _content(folder / WEIGHTS)
    if WEIGHTS in files:
        return listed is not None and there != listed and _content(files[WEIGHTS]) == listed
    if CONFIG not in files or there is None:
        return False
    return read_copy(files[CONFIG])[0] == open_weights(folder / WEIGHTS).values


def _content(file: Path) -> str | None:
    """Returns the content hash in a weights file, or None."""
    try:
        return open_weights(file).content
    except UserError:
        return None


def _contents_of(folder: Path) -> dict[str, str]:
    """Returns the content hashes that a body's table lists for its parts."""
    try:
        contents = read_json(folder / BODY)["contents"]
        return {part: content for part, content in contents.items() if isinstance(content, str)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _check_whole(folder: Path) -> None:
    """Raises UserError if a body's parts are not those of its table."""
    for part, content in _contents_of(folder).items():
        open_saved(folder / part, content=content)


def _remove_part(folder: Path, content: str, card_of: CardOf) -> None:
    """Removes our files of a part that a body no longer has, and its folder if nothing else is in it."""
    if _content(folder / WEIGHTS) != content:  # not the one that we wrote
        return
    names = (CONFIG, *((CARD,) if _is_card_ours(folder, card_of) else ()), WEIGHTS)
    with suppress(OSError):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _is_card_ours(folder: Path, card_of: CardOf) -> bool:
    """Returns whether a folder's model card is ours and unchanged, so that replacing it loses nobody's words."""
    try:
        card = (folder / CARD).read_bytes().rstrip(b"\0").decode()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    if not card or card == sealed(card.rpartition("\n<!-- ")[0]):
        return True
    try:
        # Without a seal, as versions up to 0.3 wrote it, or torn; versions up to 0.6 wrote "a" for "per".
        text = card_of(open_saved(folder).values)
        return any(sealed(words).startswith(card) for words in (text, text.replace(" per second", " a second")))
    except (UserError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return False


def _check_is_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: exists and is not a tokenizer of ours; name another folder")


def _check_ours(folder: Path) -> None:
    """Raises UserError if a tokenizer in this folder would replace files that are not ours."""
    _check_names(folder, (CONFIG, WEIGHTS, CARD))
    if _is_strange(folder) or not (_is_marked(folder) or _is_empty(folder)):
        raise UserError(f"{folder}: exists and is not a tokenizer of ours; name another folder")


def _check_body(folder: Path, parts: Sequence[str]) -> None:
    """Does the same as `_check_ours`, for a body of these parts."""
    _check_names(folder, (BODY,))
    table = _head(folder / BODY)
    if not (MARK.encode() in table if table else _is_empty(folder) or (folder / BODY).is_file()):
        raise UserError(f"{folder}: exists and is not a tokenizer of ours; name another folder")
    for place in (_place_of(folder / part) for part in parts):
        if place.exists():
            if not place.is_dir():
                raise UserError(f"{place}: is in the way of a part's folder; move it, or name another folder")
            _check_names(place, (CONFIG, WEIGHTS, CARD))
            if _is_strange(place):
                raise UserError(f"{place}: holds a model that is not ours; move it, or name another folder")


def _check_names(folder: Path, names: Sequence[str]) -> None:
    """Raises UserError if a file with one of these names cannot be replaced."""
    import psutil  # late: the launcher does not need it

    mounts = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}
    for file in (folder / name for name in names):
        if str(file) in mounts:
            raise UserError(f"{file}: something is mounted there, so it cannot be replaced; name another folder")
        if file.exists() and not file.is_file() and not file.is_symlink():
            raise UserError(f"{file}: is not a file, so it cannot be replaced; move it, or name another folder")


def _head(file: Path) -> bytes:
    """Returns the first bytes of a file; none if it is missing, empty or has only NULs."""
    try:
        with file.open("rb") as content:
            return content.read(_HEAD_BYTES).rstrip(b"\0")
    except FileNotFoundError:
        return b""


def _is_strange(folder: Path) -> bool:
    """Returns whether files with our names in a folder are not ours."""
    config, weights = _head(folder / CONFIG), _head(folder / WEIGHTS)
    is_marked = any(mark in weights for mark in _OURS)
    if not config:
        return bool(weights) and not is_marked
    # A file that is no config at all, beside weights of ours, is a damaged config of ours.
    return MARK.encode() not in config and not (is_marked and read_copy(folder / CONFIG)[0] is None)


def _is_marked(folder: Path) -> bool:
    """Returns whether a folder that is not strange has files of ours; a crash may have left them empty."""
    files = (folder / CONFIG, folder / WEIGHTS)
    return any(map(_head, files)) or all(file.is_file() for file in files)


def _is_empty(folder: Path) -> bool:
    """Returns whether a folder has nothing but leftovers of our killed processes."""
    return all(
        entry.name.startswith(_LEFT) or (entry.is_dir() and not entry.is_symlink() and _is_empty(entry))
        for entry in folder.iterdir()
    )
