"""Makes a packed store from motion files: built once, by one process at a time, complete or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.facts import DataFacts, keys_that
from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.described import described, said
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.builder import StoreBuilder, counted_files, quarantine_of
from ds_rvqvae.data.store.figures import check_upright
from ds_rvqvae.data.store.packing import Packed, PackerKilledError, facts_of, first_layout, same_after
from ds_rvqvae.data.store.places import (
    begin,
    cache_folder,
    cached_folder,
    cached_place,
    check_appendable,
    check_nothing_is_lost,
    folder_to_build_in,
    hash_of,
    locked,
    may_replace,
    mend,
    needs_mending,
    open_in_use,
    other_settings,
    place_shards,
    put_in_place,
    remove_outdated,
    replaced_notes,
    say_what_is_damaged,
    stores_there,
)
from ds_rvqvae.data.store.shards import ShardFacts, plan_shards
from ds_rvqvae.data.store.store import VERSION, Store, is_store, open_store
from ds_rvqvae.data.store.table import SHARDS, shard_files
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import content_of, contents_of
from ds_rvqvae.motion.clip import Quarantined, whole_name
from ds_rvqvae.motion.rotations import same_rate
from ds_rvqvae.process.home import expanded

_NEW = "new"
_SETTINGS = keys_that(DataConfig, DataFacts, lambda facts: facts.store == "setting")
_FORMATS_BEFORE = {"smpl": "SMPL-X or SMPL-H npz"}
"""Words of earlier versions for a format, kept in fingerprints, so that stores still match."""
_IF_SET = keys_that(DataConfig, DataFacts, lambda facts: facts.store == "setting if set")
"""Keys that a store depends on; it keeps the second ones only if they are set."""


class Prepared(NamedTuple):
    """A store, and the work of making it."""

    store: Store
    packed: Packed | None
    """None if the store existed already."""
    notes: tuple[str, ...] = ()
    """Notes that are not in the store's report."""


def prepare_store(config: DataConfig, out: Path | None = None, progress: bool = False) -> Store:
    """Returns the store of the data that `config` names; it is built only if none matches the files and settings.

    Args:
        out: the store's folder; by default, one in the cache folder. A store there that no longer matches is replaced;
            any other folder that is not empty is an error.
        progress: draw the bar even if stderr is not a terminal.

    Raises:
        UserError: no usable clip, or the store cannot be written. Single clips left out are in `Store.left_out`.
    """
    return prepare(config, out, progress=progress).store


def prepare(
    config: DataConfig,
    out: Path | None = None,
    *,
    append: bool = False,
    strict: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Prepared:
    """Prepares a store as `prepare_store`, and returns it with the work of making it.

    Args:
        append: add to the store at `out` the clips whose names it does not have.
        strict: leave nothing out: the first file or span that a rule finds is an error.
        workers: processes that pack; None: one for each core that this process may use.
    """
    if config.path is None:
        words = "no motion to read: give --data_path, set DS_RVQVAE_DATA, or try --demo, which makes its own motion"
        raise UserError(words)
    path = expanded(config.path)
    if is_store(path):
        if out is not None:
            raise UserError(f"{path}: is a prepared store already; name the motion files that it was made from")
        return Prepared(_as_asked(path, config), None)
    # Before reading: if the file changes while it is read, the next check will see another content.
    contents = {path: content_of(path)}
    job = _Job(open_reader(path, config), contents, strict, workers or len(os.sched_getaffinity(0)), progress)
    try:
        if append:
            assert out is not None
            with locked(out):
                return _append(job, out)
        return _build_once(job, path, out)
    except OSError as error:
        where = out or f"{cache_folder()} (DS_RVQVAE_CACHE moves it)"
        raise UserError(f"the packed store cannot be written to {where}: {error.strerror or error}") from None


class _Job:
    """The motion to pack, and the options for it."""

    def __init__(
        self, reader: Reader, contents: dict[Path, str | None], strict: bool, workers: int, progress: bool
    ) -> None:
        self.reader, self.strict, self.workers, self.progress = reader, strict, workers, progress
        self.settings = settings_of(reader.config)
        self._contents = contents

    def contents(self, files: Iterable[Path]) -> dict[Path, str | None]:
        """Returns `content_of` each source file; every file is read once per job."""
        files = list(files)
        self._contents |= contents_of(file for file in files if file not in self._contents)
        return {file: self._contents[file] for file in files}

    def content_of_clip(self, name: str) -> str | None:
        """Returns `content_of` the file that a clip comes from, if it was read already."""
        source = self.reader.source_of(name)
        return None if source is None else self._contents.get(source)

    def fingerprint(self, packed: Sequence[ShardFacts] = ()) -> str:
        """Returns a hash of the format, the settings, and every source file's name and content.

        Args:
            packed: facts of shards, which know the content of their files when they were packed.
        """
        reader, sources = self.reader, self.reader.sources()
        known = {reader.source_of(file.name): file.content for facts in packed for file in facts.files}
        contents = self.contents(source for source in sources if source not in known) | known
        names = [os.path.relpath(source, reader.path) for source in sources]
        parts = [VERSION, _FORMATS_BEFORE.get(reader.key, reader.format), self.settings]
        return hash_of([*parts, *([name, contents[source]] for name, source in zip(names, sources, strict=True))])

    def others(self, names: Iterable[str]) -> dict[str, str | None]:
        """Returns, by name, the content of the source files that hold none of these clips, such as lists of splits."""
        of_clips = {self.reader.source_of(name) for name in names}
        others = self.contents(source for source in self.reader.sources() if source not in of_clips)
        return {os.path.relpath(source, self.reader.path): content for source, content in others.items()}


def settings_of(config: DataConfig) -> dict[str, Any]:
    """Returns the settings that a store depends on, as JSON objects."""
    settings = config.model_dump(mode="json", include={*_SETTINGS, *_IF_SET})
    return {key: value for key, value in settings.items() if key in _SETTINGS or value is not None}


def _as_asked(path: Path, config: DataConfig) -> Store:
    """Opens a store that is given as the data; raises UserError if it was made with other settings than these."""
    store = open_store(path)
    defaults = settings_of(DataConfig())
    for key, there, asked in other_settings(store, settings_of(described(config))):
        # `fps` is compared with the tokenizer's or the run's where it is used; common joints are a list in a store.
        if not (key == "fps" or asked == defaults.get(key) or (asked == "common" and there is not None)):
            how = f", with --set rvqvae.data.{key}={asked} and another --out" if key == "reading_version" else ""
            where, was, new = f"rvqvae.data.{key}: {path}", said(there), said(asked)
            raise UserError(f"{where} was prepared with {was}, not {new}; prepare it again from the motion files{how}")
    return store


def _build_once(job: _Job, path: Path, out: Path | None) -> Prepared:
    place = cached_place(path, job.settings) if out is None else Path(out)
    if out is not None and not may_replace(place):
        raise UserError(f"{place}: exists and is not a store; name a new folder")
    store, packed = _matching(job, place, out), None
    notes: tuple[str, ...] = ()
    if store is None or needs_mending(store) or folder_to_build_in(place).exists():
        with locked(place):
            store = _matching(job, place, out)  # another process may have built it meanwhile
            if store is not None:
                store = mend(store)
                shutil.rmtree(folder_to_build_in(place), ignore_errors=True)
            else:
                if out is not None:
                    check_nothing_is_lost(place)
                    notes = replaced_notes(place, job.settings)
                say_what_is_damaged(place, out)
                folder, packed = _build(job, place, out)
                store = open_in_use(folder)
                if out is None:
                    remove_outdated(place, folder)
    if job.strict and packed is None:
        _refuse_quarantine(job, [Quarantined(**entry) for entry in store.report()["quarantine"]])
    return Prepared(store, packed, notes)


def _matching(job: _Job, place: Path, out: Path | None) -> Store | None:
    """Returns the store that exists already for these files, as they are now, and these settings."""
    for store in stores_there(place, out):
        with suppress(UserError):
            store.report()  # if a store of an earlier version lost it, the store is made again from its own shards
            # The settings come first, so that files are read only for a store that may match.
            if store.settings == job.settings and store.fingerprint == job.fingerprint():
                return store
    return None


def _build(job: _Job, place: Path, out: Path | None) -> tuple[Path, Packed]:
    """Builds beside the final place and renames; continues what a killed run left. The caller holds the lock.

    Returns:
        the store's folder, and the result of packing.
    """
    names, refused = _usable_names(job.reader, set())
    if not names:
        raise UserError(f"{job.reader.path}: holds no clips ({job.reader.format})")
    layout, others = first_layout(job.reader, names), job.others(names)
    building = folder_to_build_in(place)
    builder = StoreBuilder(job.reader, layout, building / _NEW, job.settings)
    begin(building, builder.packing_key(), others)
    earlier = next(stores_there(place, out), None)
    kept = {} if earlier is None else _unchanged(job, earlier, builder.packing_key())
    with _removed_after_refusal(building):
        builder.own_statistics()  # an error in them is raised now, not after hours of packing
        packed = _pack(job, builder, names, refused, kept=kept, earlier=earlier)
        if not any(facts.rows for facts in packed.facts):
            raise UserError(_nothing_left(job.reader, quarantine_of(packed.facts)))
        fingerprint = job.fingerprint(packed.facts)
        counts = counted_files(job.reader, packed.facts, (place, building))
        builder.finish(packed.facts, fingerprint, [str(job.reader.path)], [counts])
    folder = place if out is not None else cached_folder(place, fingerprint)
    put_in_place(building / _NEW, folder)
    shutil.rmtree(building, ignore_errors=True)
    return folder, packed


def _unchanged(job: _Job, store: Store, key: str) -> dict[str, int]:
    """Returns the clips whose files have not changed since a store was packed, with their shards there."""
    job.contents(job.reader.sources())
    found = {}
    for index in store.parts:
        try:
            facts = ShardFacts.read(shard_files(store.folder / SHARDS, index)[1])
        except (OSError, ValueError):  # damaged, so its files are read again
            continue
        for file in facts.files if facts.key == key else ():
            if same_after(file, job.content_of_clip(file.name), job.reader.split_of(file.name)):
                found[file.name] = index
    return found


def _append(job: _Job, folder: Path) -> Prepared:
    """Adds clips to a store: their shards first, then the table that names them. The caller holds the lock."""
    store = mend(open_store(folder))
    check_appendable(store, job.settings)
    if not same_rate(job.reader.fps, store.fps):
        raise UserError(
            f"{job.reader.path}: {job.reader.fps:g} fps, but {folder} has {store.fps:g}; all motion in a store must "
            "have the same frame rate"
        )
    there = facts_of(store)
    known, notes = _known_names(job, store, there)
    names, refused = _usable_names(job.reader, known)
    check_upright(job.reader, names)
    others = job.others(names)
    building = folder_to_build_in(folder)
    beside = StoreBuilder(job.reader, store.layout, building / _NEW, store.settings)
    begin(building, beside.packing_key(), {**others, "": store.fingerprint})
    with _removed_after_refusal(building):
        packed = _pack(job, beside, names, refused, store.parts.stop)
        _refuse_other_columns(job, store, packed)
    new = set(quarantine_of(packed.facts)) - set(quarantine_of(there))
    if not new and not any(facts.rows for facts in packed.facts):
        shutil.rmtree(building, ignore_errors=True)
        return Prepared(store, packed, notes)
    place_shards(building / _NEW / SHARDS, folder / SHARDS)  # after a kill here, everything to start again is left
    source = str(job.reader.path)
    sources = store.sources if source in store.sources else [*store.sources, source]
    fingerprint = hash_of([store.fingerprint, job.fingerprint(packed.facts)])
    builder = StoreBuilder(job.reader, store.layout, folder, store.settings, store.first_part)
    before = store.report().get("file_counts")
    if before is None:
        job.reader.notes += ("only the added files are counted: the store was made by version 0.2 or earlier",)
    counts = [*(before or ()), counted_files(job.reader, packed.facts, (folder, building))]
    builder.finish([*there, *packed.facts], fingerprint, sources, counts, store)
    shutil.rmtree(building, ignore_errors=True)
    return Prepared(open_store(folder), packed, notes)


def _refuse_other_columns(job: _Job, store: Store, packed: Packed) -> None:
    """Raises UserError if no clip has the columns of the store to which it would be added."""
    other = next((entry for entry in quarantine_of(packed.facts) if entry.rule == "layout"), None)
    if other is not None and not any(facts.rows for facts in packed.facts):
        where = f"{job.reader.path}: no clip has the columns of {store.folder}"
        raise UserError(f"{where}; {other.file}: {other.reason}; prepare another store from them")


def _known_names(job: _Job, store: Store, there: Sequence[ShardFacts]) -> tuple[set[str], tuple[str, ...]]:
    """Returns the names of clips that a store has already, and notes about them.

    Raises:
        UserError: the store has other content under one of the names.
    """
    reader, packed = job.reader, {file.name: file.content for facts in there for file in facts.files}
    names = [name for name in reader.clip_names() if reader.source_of(name) is not None]
    in_store = {whole_name(name) for name in store.clip_names}
    job.contents(source for name in names if name in packed and (source := reader.source_of(name)) is not None)
    same = {name for name in names if packed.get(name) is not None and packed[name] == job.content_of_clip(name)}
    changed = [name for name in names if name in in_store and packed.get(name) and name not in same]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{store.folder}: has other content under the name of {reader.file_of(changed[0])}{more}; prepare the "
            "store again, which packs only changed files, or rename one of the files to have both"
        )
    unknown = sum(name in in_store and not packed.get(name) for name in {*names, *reader.clip_names()})
    if not unknown:
        return in_store | same, ()
    return in_store | same, (
        f"{unknown} clips of the store were compared by name only: the store does not know the content of their files",
    )


@contextmanager
def _removed_after_refusal(building: Path) -> Iterator[None]:
    """Removes a folder after an error in the data; after a full disk or a kill it stays, and packing can continue."""
    try:
        yield
    except PackerKilledError:
        raise
    except UserError:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _usable_names(reader: Reader, known: set[str]) -> tuple[list[str], list[Quarantined]]:
    """Returns the clips to pack, without those that a store has, and those left out because of a duplicate name."""
    names: dict[str, None] = {}
    refused = []
    every = reader.clip_names()
    wholes = set(every)
    for name in every:
        if name in names:
            reason = "the name occurs twice; the first is kept"
            refused.append(Quarantined(reader.file_of(name), "name", None, reason))
        elif whole_name(name) != name and whole_name(name) in wholes:
            reason = f"its name is that of a piece of {whole_name(name)}"
            refused.append(Quarantined(reader.file_of(name), "name", None, reason))
        elif whole_name(name) not in known:
            names[name] = None
    reader.check(list(names))
    return list(names), refused


def _pack(
    job: _Job,
    builder: StoreBuilder,
    names: list[str],
    refused: list[Quarantined],
    first: int = 0,
    *,
    kept: Mapping[str, int] | None = None,
    earlier: Store | None = None,
) -> Packed:
    """Packs clips into shards numbered from `first`; `kept` gives the shards of an earlier store to copy clips from."""
    plans = plan_shards(names, [job.reader.weight(name) for name in names], first)
    if plans:
        plans[0] = replace(plans[0], refused=refused)
    if kept and earlier is not None:
        plans = [replace(plan, kept={name: kept[name] for name in plan.names if name in kept}) for plan in plans]
    packed = builder.pack(plans, job.workers, job.progress, None if earlier is None else earlier.folder / SHARDS)
    if job.strict:
        _refuse_quarantine(job, quarantine_of(packed.facts))
    return packed


def _refuse_quarantine(job: _Job, quarantined: list[Quarantined]) -> None:
    if quarantined:
        first = quarantined[0]
        more = f" (and {len(quarantined) - 1} more)" if len(quarantined) > 1 else ""
        rules = ", ".join(sorted({entry.rule for entry in quarantined}))
        raise UserError(
            f"{job.reader.path}: --strict: {first.file}: {first.reason}{more}; rules: {rules}. Mend or move the files, "
            "turn a rule off (--set rvqvae.data.rules…), or remove --strict: then these frames and files are left out"
        )


def _nothing_left(reader: Reader, quarantined: list[Quarantined]) -> str:
    first = quarantined[0]
    more = f" (and {len(quarantined) - 1} more left out)" if len(quarantined) > 1 else ""
    return f"{reader.path}: no usable clip; {first.file}: {first.reason}{more}"
