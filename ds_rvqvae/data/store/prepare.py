"""Motion files into a packed store: built once, by one process at a time, whole or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.facts import DataFacts, keys_that
from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.builder import StoreBuilder, quarantine_of
from ds_rvqvae.data.store.packing import Packed, PackerKilledError, first_layout
from ds_rvqvae.data.store.shards import ShardFacts, plan_shards, shard_files
from ds_rvqvae.data.store.store import SHARDS, VERSION, Store, holds_only_a_store, is_store, open_store, write_json
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import replace_folder
from ds_rvqvae.motion.clip import Quarantined, whole_name

_BUILDING, _PLAN, _NEW = ".building", "plan.json", "new"
_SETTINGS = keys_that(DataConfig, DataFacts, lambda facts: facts.store == "setting")
"""Keys of `rvqvae.data` that a store depends on."""


class Prepared(NamedTuple):
    """A store, and what making it took."""

    store: Store
    packed: Packed | None
    """None where the store was there already."""


def cache_folder() -> Path:
    """Where training keeps its stores: `~/.cache/ds_rvqvae`, or what DS_RVQVAE_CACHE names."""
    return Path(os.environ.get("DS_RVQVAE_CACHE") or "~/.cache/ds_rvqvae").expanduser()


def prepare_store(config: DataConfig, out: Path | None = None, progress: bool = False) -> Store:
    """The store of the data that `config` names; built only where none matches the files and settings.

    Args:
        out: the store's folder; without it, one in the cache folder. A store there that no longer matches is
            replaced, any other folder with something in it refused.
        progress: draw the bar even where stderr is no terminal.

    Raises:
        UserError: no usable clip, or the store cannot be written. Clips left out singly are in `Store.left_out`.
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
    """As `prepare_store`, with what it took.

    Args:
        append: add the clips that the store at `out` does not have, by name, to it.
        strict: leave nothing out: the first file or span that a rule finds is an error.
        workers: processes that pack; None: one a core that this one may use.
    """
    if config.path is None:
        raise UserError(
            "no motion to read: give --data_path, or set DS_RVQVAE_DATA, or try --demo, which makes its own"
        )
    path = Path(config.path).expanduser()
    if is_store(path):
        if out is not None:
            raise UserError(f"{path}: is a prepared store already; name the motion files that it was made of")
        return Prepared(_as_asked(path, config), None)
    reader = open_reader(path, config)
    job = _Job(reader, strict, workers or len(os.sched_getaffinity(0)), progress)
    try:
        if append:
            assert out is not None
            with _locked(out):
                return _append(job, out)
        return _build_once(job, path, out)
    except OSError as error:
        where = out or f"{cache_folder()} (DS_RVQVAE_CACHE moves it)"
        raise UserError(f"the packed store cannot be written to {where}: {error.strerror or error}") from None


class _Job:
    """What is to be packed, and how."""

    def __init__(self, reader: Reader, strict: bool, workers: int, progress: bool) -> None:
        self.reader, self.strict, self.workers, self.progress = reader, strict, workers, progress
        self.settings = settings_of(reader.config)
        self.fingerprint = _fingerprint(reader, self.settings)


def settings_of(config: DataConfig) -> dict[str, Any]:
    """The settings that a store depends on, as JSON objects."""
    return config.model_dump(mode="json", include=set(_SETTINGS))


def _as_asked(path: Path, config: DataConfig) -> Store:
    """A store given as the data, which must have been made with the settings now asked for."""
    store = open_store(path)
    defaults = settings_of(DataConfig())
    for key, asked in settings_of(config).items():
        # `fps` is checked where it is used, against the tokenizer's or the run's.
        if key != "fps" and asked not in (defaults[key], store.settings.get(key)):
            raise UserError(
                f"rvqvae.data.{key}: {path} was prepared with {json.dumps(store.settings.get(key))}, not "
                f"{json.dumps(asked)}; prepare it again from the motion files"
            )
    return store


def _fingerprint(reader: Reader, settings: dict[str, Any]) -> str:
    """A hash of the format, the settings, and every source file's name, size and time of change."""
    parts: list[Any] = [VERSION, reader.format, settings]
    for file in reader.sources():
        try:
            status = file.stat()
        except OSError:  # a dangling link: its clip is left out
            continue
        parts.append([os.path.relpath(file, reader.path), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _cached_folder(path: Path, settings: dict[str, Any], fingerprint: str) -> Path:
    """`NAME-KEY-FINGERPRINT`: stores of the same data and settings share all but the last."""
    key = hashlib.sha256(json.dumps([str(path.resolve()), settings], sort_keys=True).encode()).hexdigest()[:8]
    return cache_folder() / f"{path.resolve().stem[:40]}-{key}-{fingerprint[:16]}"


def _may_replace(folder: Path) -> bool:
    """Whether there is nothing in the way but an earlier store."""
    if not folder.is_dir():
        return not folder.exists()
    return not any(folder.iterdir()) or holds_only_a_store(folder)


def _remove_outdated(folder: Path) -> None:
    """Frees the space of earlier stores of the same data and settings; a process that has one mapped keeps it."""
    family = escape(folder.name.rpartition("-")[0])
    for other in folder.parent.glob(f"{family}-*"):
        if other != folder and is_store(other):
            shutil.rmtree(other, ignore_errors=True)
    for unfinished in folder.parent.glob(f".{family}-*{_BUILDING}"):
        try:
            with _locked(folder.parent / unfinished.name[1 : -len(_BUILDING)], timeout=0):
                shutil.rmtree(unfinished, ignore_errors=True)
        except Timeout:  # somebody is at it
            continue


@contextmanager
def _locked(folder: Path, timeout: float = -1) -> Iterator[None]:
    """One process at a time; the lock lies in the cache, so that nothing stays beside the store."""
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
    with FileLock(locks / f"{name}.lock", timeout=timeout):
        yield


def _matching(folder: Path, fingerprint: str) -> Store | None:
    if not is_store(folder):
        return None
    try:
        store = open_store(folder)
    except UserError:
        return None
    return store if store.fingerprint == fingerprint else None


def _build_once(job: _Job, path: Path, out: Path | None) -> Prepared:
    folder = _cached_folder(path, job.settings, job.fingerprint) if out is None else Path(out)
    if not _may_replace(folder):
        raise UserError(f"{folder}: exists and is no store; name a new folder")
    store, packed = _matching(folder, job.fingerprint), None
    if store is None:
        with _locked(folder):
            store = _matching(folder, job.fingerprint)  # another process may just have built it
            if store is None:
                _keep_what_was_appended(folder)
                packed = _build(job, folder)
                store = open_store(folder)
                if out is None:
                    _remove_outdated(folder)
    if job.strict and packed is None:
        _refuse_quarantine(job, [Quarantined(**entry) for entry in store.report()["quarantine"]])
    return Prepared(store, packed)


def _keep_what_was_appended(folder: Path) -> None:
    """Raises UserError where replacing a store would lose clips of other data."""
    try:
        sources = open_store(folder).sources
    except UserError:  # none, damaged, or of another version: nothing to lose
        return
    if len(sources) > 1:
        raise UserError(
            f"{folder}: holds clips of {len(sources)} data sets ({', '.join(sources[:3])}); add to it with --append, "
            "or name a new folder"
        )


def _build(job: _Job, folder: Path) -> Packed:
    """Builds beside the final place and renames. The caller holds the lock; what a kill leaves is gone on from."""
    names, refused = _usable_names(job.reader, set())
    if not names:
        raise UserError(f"{job.reader.path}: holds no clips ({job.reader.format})")
    building = _building_folder(folder, job.fingerprint)
    new = building / _NEW
    with _removed_after_refusal(building):
        builder = StoreBuilder(job.reader, first_layout(job.reader, names), new, job.settings)
        builder.own_statistics()  # refused now, not after hours of packing
        packed = _pack(job, builder, names, refused)
        if not any(facts.rows for facts in packed.facts):
            raise UserError(_nothing_left(job.reader, quarantine_of(packed.facts)))
        builder.finish(packed.facts, job.fingerprint, [str(job.reader.path)])
    replace_folder(new, folder)
    shutil.rmtree(building, ignore_errors=True)
    return packed


def _append(job: _Job, folder: Path) -> Prepared:
    """Adds clips to a store: their shards first, then the table that names them. The caller holds the lock."""
    store = open_store(folder)
    for key, value in job.settings.items():
        if key != "format" and store.settings.get(key) != value:
            raise UserError(
                f"{folder}: was prepared with rvqvae.data.{key} {json.dumps(store.settings.get(key))}, not "
                f"{json.dumps(value)}; append with the same"
            )
    there = [ShardFacts.read(shard_files(folder / SHARDS, index)[1]) for index in range(store.num_parts)]
    fingerprint = hashlib.sha256(f"{store.fingerprint} {job.fingerprint}".encode()).hexdigest()
    names, refused = _usable_names(job.reader, {whole_name(name) for name in store.clip_names})
    building = _building_folder(folder, fingerprint)
    with _removed_after_refusal(building):
        beside = StoreBuilder(job.reader, store.layout, building / _NEW, store.settings)
        packed = _pack(job, beside, names, refused, store.num_parts)
    if not any(facts.rows for facts in packed.facts):
        shutil.rmtree(building, ignore_errors=True)
        return Prepared(store, packed)
    for file in sorted((building / _NEW / SHARDS).iterdir()):
        shutil.copyfile(file, folder / SHARDS / file.name)  # a kill here leaves all that is needed to begin again
    source = str(job.reader.path)
    sources = store.sources if source in store.sources else [*store.sources, source]
    builder = StoreBuilder(job.reader, store.layout, folder, store.settings)
    builder.finish([*there, *packed.facts], fingerprint, sources)
    shutil.rmtree(building, ignore_errors=True)
    return Prepared(open_store(folder), packed)


def _building_folder(folder: Path, fingerprint: str) -> Path:
    """Where a store is built, beside its place; what was built there of other data or settings is removed."""
    building = folder.parent / f".{folder.name}{_BUILDING}"
    plan = {"fingerprint": fingerprint}
    try:
        found = json.loads((building / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != plan:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        write_json(building / _PLAN, plan)
    return building


@contextmanager
def _removed_after_refusal(building: Path) -> Iterator[None]:
    """Data that are refused leave nothing behind; what a full disk or a kill stops is gone on from."""
    try:
        yield
    except PackerKilledError:
        raise
    except UserError:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _usable_names(reader: Reader, known: set[str]) -> tuple[list[str], list[Quarantined]]:
    """Clips to pack, without those that a store has, and those refused for a name that stands twice."""
    names: dict[str, None] = {}
    refused = []
    every = reader.clip_names()
    wholes = set(every)
    for name in every:
        if name in names:
            reason = "the name stands twice; the first is kept"
            refused.append(Quarantined(reader.file_of(name), "name", None, reason))
        elif whole_name(name) != name and whole_name(name) in wholes:
            reason = f"its name is that of a piece of {whole_name(name)}"
            refused.append(Quarantined(reader.file_of(name), "name", None, reason))
        elif whole_name(name) not in known:
            names[name] = None
    reader.check(list(names))
    return list(names), refused


def _pack(job: _Job, builder: StoreBuilder, names: list[str], refused: list[Quarantined], first: int = 0) -> Packed:
    """Packs clips into shards numbered from `first`."""
    plans = plan_shards(names, [job.reader.weight(name) for name in names], first)
    if plans:
        plans[0] = replace(plans[0], refused=refused)
    packed = builder.pack(plans, job.workers, job.progress)
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
            "turn a rule off (--set rvqvae.data.rules…), or leave out --strict, which cuts what the report then lists"
        )


def _nothing_left(reader: Reader, quarantined: list[Quarantined]) -> str:
    first = quarantined[0]
    more = f" (and {len(quarantined) - 1} more left out)" if len(quarantined) > 1 else ""
    return f"{reader.path}: no usable clip; {first.file}: {first.reason}{more}"
