"""The places of stores: folders in the user's cache, locks on them, and the folders in which stores are built."""

import hashlib
import json
import logging
import os
import re
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from ds_rvqvae.data.formats.described import said
from ds_rvqvae.data.store.store import FORMAT, REPORT, TABLE, DamagedStoreError, Store, is_store, open_store
from ds_rvqvae.data.store.table import SHARDS, link_or_copy, write_json
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import hidden_name, read_json, remove_unfinished, sync
from ds_rvqvae.locks import LOCK_FILE, BusyError, HeldFolder, hold_folder
from ds_rvqvae.process.home import CACHE_VARIABLE

_BUILDING, _LOCKED, _PLAN = ".building", ".locked", "plan.json"
_SHARD_FILE = re.compile(r"(\d{5,})(\.npy|\.json)")
_UNFINISHED = re.compile(r"\.unfinished-.+")
_PASSING = re.compile(rf"{_UNFINISHED.pattern}|\.nfs[0-9a-f]{{8,}}")
"""Includes the names under which a network file system keeps a removed file that a process still has open."""
_OF_VERSION_1 = ("frames.npy", "mean.npy", "std.npy")

logger = logging.getLogger("ds_rvqvae")


def hash_of(value: Any) -> str:
    """Returns a sha256 of JSON objects, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Returns the folder where training keeps its stores: `DS_RVQVAE_CACHE`, by default `~/.cache/ds_rvqvae`.

    Raises:
        UserError: the variable is not set, and this process's user has no home.
    """
    folder = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ds_rvqvae")
    try:
        return folder.expanduser()
    except RuntimeError:
        raise UserError(
            f"{folder}: HOME is not set and the system knows no home of user {os.getuid()}; set {CACHE_VARIABLE} to a "
            "folder for the packed motion"
        ) from None


def cached_place(path: Path, settings: dict[str, Any]) -> Path:
    """Returns `NAME-KEY` in the cache: the start of the folder names of all stores of the same data and settings."""
    return cache_folder() / f"{path.resolve().stem[:40]}-{hash_of([str(path.resolve()), settings])[:8]}"


def cached_folder(place: Path, fingerprint: str) -> Path:
    """Returns the folder of the store with this fingerprint at a place that `cached_place` gives."""
    return place.with_name(f"{place.name}-{fingerprint[:16]}")


def cached_stores(place: Path) -> list[Path]:
    """Returns the folders of all stores at a place that `cached_place` gives, whatever their state."""
    return sorted(folder for folder in place.parent.glob(f"{escape(place.name)}-*") if is_store(folder))


def may_replace(folder: Path) -> bool:
    """Returns whether a folder does not exist, or holds nothing except an earlier store."""
    if not folder.is_dir():
        return not folder.exists()
    return not any(folder.iterdir()) or _holds_only_a_store(folder)


def _holds_only_a_store(folder: Path) -> bool:
    """Returns whether everything in a folder belongs to a store, of this version or the first, whatever its state."""
    if not is_store(folder):
        return False
    with suppress(OSError, ValueError):
        table = read_json(folder / TABLE)
        if isinstance(table, dict) and table.get("format") != FORMAT:
            return False
    others = [entry for entry in folder.iterdir() if entry.name not in {TABLE, REPORT, LOCK_FILE, *_OF_VERSION_1}]
    shards = [file for entry in others if entry.name == SHARDS and entry.is_dir() for file in entry.iterdir()]
    names = [entry.name for entry in others if not (entry.name == SHARDS and entry.is_dir())]
    return all(map(_PASSING.fullmatch, names)) and all(
        _SHARD_FILE.fullmatch(file.name) or _PASSING.fullmatch(file.name) for file in shards
    )


def check_nothing_is_lost(folder: Path) -> None:
    """Raises UserError if replacing a store would lose clips of other data, or may do so."""
    if not is_store(folder):
        return
    try:
        sources = [str(source) for source in read_json(folder / TABLE).get("sources", ())]
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"{folder / TABLE}: damaged, so it is not known which data the store holds; delete {folder}, or name a "
            "new folder"
        ) from None
    if len(sources) > 1:
        raise UserError(
            f"{folder}: holds clips of {len(sources)} data sets ({', '.join(sources[:3])}); add to it with --append, "
            "or name a new folder"
        )


def put_in_place(made: Path, folder: Path) -> None:
    """Puts the store in `made`, on the same disk, into `folder`, atomically.

    If the folder exists, it stays: the new shards go into it under new names, then the table is replaced, and the old
    shards are removed. Files that do not belong to a store stay.
    """
    with suppress(OSError):
        made.rename(folder)  # works if the folder does not exist or is empty
        sync(folder.parent)
        return
    mend(_put_beside(made, folder))


def _put_beside(made: Path, folder: Path) -> Store:
    """Puts a store into the folder of another one; its shards are numbered from 0 if these numbers are free."""
    table, before, shards = read_json(made / TABLE), None, folder / SHARDS
    with suppress(OSError, ValueError):
        before = read_json(folder / TABLE)
    outdated = _OF_VERSION_1 if isinstance(before, dict) and before.get("version") == 1 else ()
    shards.mkdir(exist_ok=True)
    there, parts = _numbers(shards), table["num_parts"]
    first = 0 if min(there, default=parts) >= parts else max(*there, parts - 1) + 1
    by = first - table["first_part"]
    place_shards(made / SHARDS, shards, by)
    for shard in table["shards"]:
        shard["file"] = f"{SHARDS}/{_renumbered(Path(shard['file']).name, by)}"
    write_json(folder / TABLE, {**table, "first_part": first}, synced=True)
    for name in outdated:
        (folder / name).unlink(missing_ok=True)
    return open_store(folder)


def place_shards(made: Path, shards: Path, by: int = 0) -> None:
    """Links or copies the shards of one folder into another one, their numbers increased by `by`.

    No file there is written to.
    """
    for file in sorted(file for file in made.iterdir() if _SHARD_FILE.fullmatch(file.name)):
        place = shards / _renumbered(file.name, by)
        place.unlink(missing_ok=True)  # left by a killed process: no table names it
        link_or_copy(file, place)
    sync(shards)


def _numbers(shards: Path) -> list[int]:
    return [int(match[1]) for file in shards.iterdir() if (match := _SHARD_FILE.fullmatch(file.name))]


def _renumbered(name: str, by: int) -> str:
    match = _SHARD_FILE.fullmatch(name)
    assert match, name
    return f"{int(match[1]) + by:05d}{match[2]}"


def mend(store: Store) -> Store:
    """Finishes the work of a killed process. The caller holds the lock.

    It writes `report.json` if that differs from the table's report, removes the shards that the table does not name,
    and numbers the store's shards as in a new folder.

    Returns:
        The store as it is now.
    """
    with suppress(OSError, UserError):  # it may be read-only, or have no report (stores of earlier versions)
        _sweep(store)
        if store.first_part:
            _sweep(_put_beside(store.folder, store.folder))
            return open_in_use(store.folder)
    return store


def _sweep(store: Store) -> None:
    report, there = store.folder / REPORT, None
    with suppress(OSError, ValueError):
        there = read_json(report)
    if there != store.report():
        write_json(report, store.report())
    for file in (store.folder / SHARDS).iterdir():
        match = _SHARD_FILE.fullmatch(file.name)
        if match and int(match[1]) not in store.parts:
            file.unlink()
    remove_unfinished(store.folder)


def needs_mending(store: Store) -> bool:
    """Returns whether a store's folder has more files than its table names, or another report."""
    shards = store.folder / SHARDS
    try:
        unfinished = any(
            _UNFINISHED.fullmatch(file.name) for place in (store.folder, shards) for file in place.iterdir()
        )
        more = not set(_numbers(shards)) <= set(store.parts)
        return unfinished or more or read_json(store.folder / REPORT) != store.report()
    except (OSError, ValueError):
        return True


def remove_outdated(place: Path, folder: Path) -> None:
    """Removes earlier stores of the same data and settings that no process uses."""
    for other in cached_stores(place):
        if other != folder:
            with suppress(BusyError, OSError), hold_folder(other, wait=False):
                (other / TABLE).unlink()  # first, so that leftovers are not taken for a store
                shutil.rmtree(other, ignore_errors=True)


def open_in_use(folder: Path) -> Store:
    """Opens a store as `open_store`; a store in the cache is not removed while this process has it open."""
    if folder.resolve().parent != cache_folder().resolve():
        return open_store(folder)
    try:
        held = hold_folder(folder, wait=False, shared=True)
    except BusyError:
        raise UserError(f"{folder}: is just being removed from the cache; start again") from None
    except OSError:  # it does not exist, or may not be read
        return open_store(folder)
    try:
        store = open_store(folder)
    except BaseException:
        held.close()
        raise
    weakref.finalize(store, held.close)
    return store


def open_of_run(folder: Path, content: str | None) -> Store:
    """Opens the store that a run was started with, as `open_in_use`; raises UserError if it is gone, or has another
    content now. A `content` of None is not compared."""
    try:
        store = open_in_use(folder)
    except UserError as error:
        if is_store(folder):
            raise
        raise UserError(
            f"{folder}: the motion that this run was started with is gone; start the run again with --resume"
        ) from error
    if content and store.content != content:
        raise UserError(
            f"{folder}: was prepared again or added to since this run was started, and holds other motion now; start "
            "the run again with --resume"
        )
    return store


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time make, add to or mend the store at a place, whatever cache each process uses."""
    place = folder.resolve()
    with hold_in_cache(hashlib.sha256(os.fsencode(place)).hexdigest()[:24]):
        if place.parent == cache_folder().resolve():
            yield
            return
        with _locked_beside(place.with_name(f"{hidden_name(place.name)}{_LOCKED}")):
            yield


@contextmanager
def _locked_beside(folder: Path) -> Iterator[None]:
    """Holds a folder that exists only while it is held; after a kill it stays, and the next command removes it."""
    held = _held_beside(folder)
    try:
        yield
    finally:
        if held is not None:
            removed = _remove_empty(folder)  # while it is held, so that waiting processes see that it is gone
            held.close()
            if not removed:  # a lease was in it; now it is empty, unless another process has a lease there
                _remove_empty(folder)


def _held_beside(folder: Path) -> HeldFolder | None:
    """Makes and holds a folder; returns None if nothing can be written there, so that no store can be made either."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        with suppress(FileNotFoundError):  # another process just removed it
            try:
                held = hold_folder(folder, wait=True)
            except BusyError as error:  # held by another user, whose lease cannot be waited for
                raise UserError(f"{folder}: {error.holder} writes the store; wait until it ends") from None
            if held.is_there(folder):
                return held
            held.close()


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def hold_in_cache(name: str, *, wait: bool = True) -> HeldFolder:
    """Holds a name against other processes that use the same cache.

    Raises:
        BusyError: another process holds it, and `wait` is False.
        OSError: the cache cannot be written.
    """
    folder = cache_folder() / "locks" / name
    folder.mkdir(parents=True, exist_ok=True)
    return hold_folder(folder, wait=wait)


def stores_there(place: Path, out: Path | None) -> Iterator[Store]:
    """Yields the stores at a place that can be opened: the one in `out`, or those in the cache."""
    for folder in cached_stores(place) if out is None else [place]:
        with suppress(UserError):
            yield open_in_use(folder)


def say_what_is_damaged(place: Path, out: Path | None) -> None:
    """Warns of each store at a place that is damaged."""
    for folder in cached_stores(place) if out is None else [place]:
        try:
            open_store(folder).report()
        except DamagedStoreError as error:
            logger.warning("%s: damaged (%s), so it is made anew", folder, error.reason)
        except UserError:  # no store, or one of another version
            continue


def folder_to_build_in(folder: Path) -> Path:
    """Returns the folder beside a store in which a new one is built; the complete store is then renamed."""
    return folder.parent / f"{hidden_name(folder.name)}{_BUILDING}"


def begin(building: Path, key: str, others: Mapping[str, str | None]) -> None:
    """Makes the folder in which a store is built; anything built there with another plan is removed.

    Shards that stay there know the content of their own files; `others` is the content of all other files.
    """
    plan = {"key": key, "others": hash_of(others)}
    try:
        found = read_json(building / _PLAN)
    except (OSError, ValueError):
        found = None
    if found != plan:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        write_json(building / _PLAN, plan)


def other_settings(store: Store, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields the keys in which a store's settings differ from `settings`, with both values.

    The rules of reading come first. By the rules of version 0.2 and earlier, no axis means y.
    """
    for key in dict.fromkeys(("reading_version", *settings, *store.settings)):
        there, asked = store.settings.get(key), settings.get(key)
        is_y = key == "up_axis" and store.settings["reading_version"] == 1 and {there, asked} == {"y", None}
        if there != asked and not is_y:
            yield key, there, asked


def check_appendable(store: Store, settings: Mapping[str, Any]) -> None:
    """Raises UserError if motion with these settings cannot be added to a store; names the first that differs."""
    for key, there, asked in other_settings(store, settings):
        if key == "reading_version":
            rules = "the rules of version 0.2 and earlier" if there == 1 else "the rules of today"
            raise UserError(
                f"{store.folder}: its files were read by {rules} (rvqvae.data.{key} {there}, see docs/data.md); append "
                f"with --set rvqvae.data.{key}={there}, or prepare the store again"
            )
        if key != "format":
            was, now = said(there), said(asked)
            raise UserError(
                f"{store.folder}: was prepared with rvqvae.data.{key} {was}, not {now}; append with the same value"
            )


def replaced_notes(folder: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns notes for the user if a store with these settings replaces one that was read by other rules."""
    try:
        there = open_store(folder).settings["reading_version"]
    except UserError:  # no store, or a damaged one
        return ()
    if there == settings["reading_version"]:
        return ()
    rules = "the rules of version 0.2 and earlier" if there == 1 else "the rules of today"
    return (
        f"this replaces a store whose files were read by {rules}; to continue, runs trained on it need one that "
        f"is prepared with --set rvqvae.data.reading_version={there}",
    )
