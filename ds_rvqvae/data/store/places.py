"""Where stores are: their folders in the user's cache, the locks on them, what is built beside and added to them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from ds_rvqvae.data.store.store import Store, holds_only_a_store, is_store, open_store, write_json
from ds_rvqvae.errors import UserError
from ds_rvqvae.locks import HeldFolder, hold_folder

_BUILDING, _PLAN = ".building", "plan.json"


def hash_of(value: Any) -> str:
    """Of JSON objects, a sha256 in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Where training keeps its stores: `~/.cache/ds_rvqvae`, or what DS_RVQVAE_CACHE names."""
    return Path(os.environ.get("DS_RVQVAE_CACHE") or "~/.cache/ds_rvqvae").expanduser()


def cached_place(path: Path, settings: dict[str, Any]) -> Path:
    """`NAME-KEY`, what the stores of the same data and settings in the cache are called, before their fingerprints."""
    return cache_folder() / f"{path.resolve().stem[:40]}-{hash_of([str(path.resolve()), settings])[:8]}"


def cached_folder(place: Path, fingerprint: str) -> Path:
    """Where the store at such a place is whose fingerprint this is."""
    return place.with_name(f"{place.name}-{fingerprint[:16]}")


def cached_stores(place: Path) -> list[Path]:
    """The folders of stores at such a place, whatever their state."""
    return sorted(folder for folder in place.parent.glob(f"{escape(place.name)}-*") if is_store(folder))


def may_replace(folder: Path) -> bool:
    """Whether there is nothing in the way but an earlier store."""
    if not folder.is_dir():
        return not folder.exists()
    return not any(folder.iterdir()) or holds_only_a_store(folder)


def remove_outdated(place: Path, folder: Path) -> None:
    """Frees the space of earlier stores of the same data and settings; a process that has one mapped keeps it."""
    for other in cached_stores(place):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock lies in the cache, so that nothing stays beside the store."""
    with hold_in_cache(hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]):
        yield


def hold_in_cache(name: str, *, wait: bool = True) -> HeldFolder:
    """Holds what goes by a name against other processes that use the same cache.

    Raises:
        BusyError: without `wait`, where another process holds it.
        OSError: the cache cannot be written.
    """
    folder = cache_folder() / "locks" / name
    folder.mkdir(parents=True, exist_ok=True)
    return hold_folder(folder, wait=wait)


def stores_there(place: Path, out: Path | None) -> Iterator[Store]:
    """The stores at a place that can be opened: the one in `out`, or those in the cache."""
    for folder in cached_stores(place) if out is None else [place]:
        with suppress(UserError):
            yield open_store(folder)


def folder_to_build_in(folder: Path) -> Path:
    """Beside the place of a store, so that what is whole there can be renamed."""
    return folder.parent / f".{folder.name}{_BUILDING}"


def begin(building: Path, key: str, others: Mapping[str, str | None]) -> None:
    """Makes the folder that a store is built in; what was built there in another way is removed.

    Shards that stay there know the content of their own files; `others` is that of the rest.
    """
    plan = {"key": key, "others": hash_of(others)}
    try:
        found = json.loads((building / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != plan:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        write_json(building / _PLAN, plan)


def other_settings(store: Store, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Keys with the values that a store was made with and those of `settings`, where they differ.

    The rules of reading come first, and by those of versions up to 0.2 no axis means y.
    """
    for key in ("reading_version", *(key for key in settings if key != "reading_version")):
        there, asked = store.settings.get(key), settings[key]
        is_y = key == "up_axis" and store.settings["reading_version"] == 1 and {there, asked} == {"y", None}
        if there != asked and not is_y:
            yield key, there, asked


def check_appendable(store: Store, settings: Mapping[str, Any]) -> None:
    """Raises UserError where motion of these settings cannot be added to a store, naming the first that differs."""
    for key, there, asked in other_settings(store, settings):
        if key == "reading_version":
            rules = "the rules of versions up to 0.2" if there == 1 else "those of today"
            raise UserError(
                f"{store.folder}: its files were read by {rules} (rvqvae.data.{key} {there}, see docs/data.md); append "
                f"with --set rvqvae.data.{key}={there}, or prepare the store again"
            )
        if key != "format":
            was, now = json.dumps(there), json.dumps(asked)
            raise UserError(
                f"{store.folder}: was prepared with rvqvae.data.{key} {was}, not {now}; append with the same"
            )


def replaced_notes(folder: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What there is to say where a store of these settings takes the place of the one that is there."""
    try:
        there = open_store(folder).settings["reading_version"]
    except UserError:  # none, or damaged
        return ()
    if there == settings["reading_version"]:
        return ()
    rules = "the rules of versions up to 0.2" if there == 1 else "those of today"
    return (
        f"in place of a store whose files were read by {rules}; runs that were trained on it go on with one that is "
        f"prepared with --set rvqvae.data.reading_version={there}",
    )
