"""Packs all shards of a store, on all cores, and continues where a killed run stopped."""

import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.figures import LOOKED_AT, Posture, check_upright, posture_of
from ds_rvqvae.data.store.shards import FileFacts, ShardFacts, ShardPacker, ShardPlan, Work
from ds_rvqvae.data.store.store import Store
from ds_rvqvae.data.store.table import SHARDS, shard_files
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.files import contents_of, remove_unfinished, sha256_of
from ds_rvqvae.motion.clip import SPLITS, ClipError
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.process.bars import Bar
from ds_rvqvae.process.signals import Stopped, leave_signals_to_parent, no_signals_to_new_processes

_WORTH_PROCESSES = 64 << 20
"""For fewer bytes of source files, starting processes takes longer than it saves."""


class PackerKilledError(UserError):
    """A process that packed clips was killed; shards that are packed stay."""


class Packed(NamedTuple):
    """The result of packing."""

    facts: list[ShardFacts]
    """The facts of every shard, including those of an earlier run."""
    work: Work
    """The work of this run, summed over its processes."""
    wall_s: float
    workers: int
    kept_clips: int
    """Files that an earlier, interrupted run had packed."""


def pack_all(packer: ShardPacker, plans: Sequence[ShardPlan], workers: int, progress: bool) -> Packed:
    """Packs the shards that are not yet in the packer's folder, and removes files that do not belong there.

    Raises:
        PackerKilledError: a process that packed clips was killed.
        OSError: the disk is full, or cannot be written.
    """
    started = time.perf_counter()
    reader, folder = packer.reader, packer.folder
    folder.mkdir(parents=True, exist_ok=True)
    done = [plan for plan in plans if _is_packed(packer, plan)]
    finished = {plan.index for plan in done}
    _sweep(folder, finished)
    todo = [plan for plan in plans if plan.index not in finished]
    source_bytes = sum(reader.weight(name) for plan in todo for name in plan.names)
    workers = min(workers, len(todo)) if reader.parallel and source_bytes >= _WORTH_PROCESSES else min(1, len(todo))
    kept = sum(len(plan.names) for plan in done)
    frames = sum(ShardFacts.read(shard_files(folder, index)[1]).rows for index in sorted(finished))
    total = sum(len(plan.names) for plan in plans)
    works: list[Work] = []
    with _Progress(total, kept, frames, reader.fps, progress) as bar:
        jobs = _in_processes if workers > 1 else _in_this_process
        try:
            for work in jobs(packer, todo, workers, bar):
                works.append(work)
        except Stopped as stop:
            packed = kept + sum(work.clips + work.kept for work in works)
            stop.summary = f"{packed:,} of {total:,} files are packed; the same command continues from there"
            raise
    _sweep(folder, {plan.index for plan in plans})
    facts = [ShardFacts.read(shard_files(folder, plan.index)[1]) for plan in plans]
    work = Work(*(sum(column) for column in zip(*works, strict=True))) if works else Work(0, 0, 0.0, 0.0, 0)
    return Packed(facts, work, time.perf_counter() - started, workers, kept)


class _Progress:
    """A bar that counts clips, with hours of motion and the speed relative to real time."""

    def __init__(self, total: int, kept: int, frames: int, fps: float, progress: bool) -> None:
        self._frames, self._new, self._fps = frames, 0, fps
        self._started = time.perf_counter()
        self._bar = Bar(
            desc="preparing motion", total=total, initial=kept, unit="clip", disable=False if progress else None
        )

    def advance(self, clips: int, frames: int) -> None:
        self._frames, self._new = self._frames + frames, self._new + frames
        rate = self._new / self._fps / max(time.perf_counter() - self._started, 1e-3)
        self._bar.set_postfix_str(f"{self._frames / self._fps / 3600:.2f} h, {rate:,.0f} x real time", refresh=False)
        self._bar.update(clips)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _in_this_process(packer: ShardPacker, plans: Sequence[ShardPlan], workers: int, bar: _Progress) -> Iterator[Work]:
    for plan in plans:
        yield packer.pack(plan, lambda frames: bar.advance(1, frames))


def _in_processes(packer: ShardPacker, plans: Sequence[ShardPlan], workers: int, bar: _Progress) -> Iterator[Work]:
    reader = packer.reader
    # Not forked: the preparing process may have threads, or a context on a GPU.
    context = multiprocessing.get_context("spawn")
    earlier = packer.earlier.folder if packer.earlier else None
    parents_end, closing = context.Pipe(duplex=False)
    arguments = (reader.path, reader.config, packer.layout, packer.folder, packer.key, earlier)
    with no_signals_to_new_processes():
        pool = ProcessPoolExecutor(workers, context, _start_worker, (parents_end, *arguments))
        waiting: set[Future[Work]] = {pool.submit(_pack, plan) for plan in plans}
    try:
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                work = future.result()
                bar.advance(work.clips + work.kept, work.frames)
                yield work
    except BrokenProcessPool:
        raise PackerKilledError(
            f"{reader.path}: a process that was packing clips was killed, perhaps for lack of memory; the same command "
            "continues from here, and --workers 1 needs less memory",
            ExitStatus.FAILED,
        ) from None
    except (Stopped, KeyboardInterrupt):
        closing.close()  # ends the processes at once
        pool.shutdown(wait=True, cancel_futures=True)
        remove_unfinished(packer.folder)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        closing.close()
        parents_end.close()


_worker: ShardPacker


def _start_worker(
    parents_end: Connection,
    path: Path,
    config: DataConfig,
    layout: Layout,
    folder: Path,
    key: str,
    earlier: Path | None,
) -> None:
    global _worker
    leave_signals_to_parent()
    threading.Thread(target=_end_with_parent, args=(parents_end,), daemon=True).start()
    _worker = ShardPacker(open_reader(path, config), layout, folder, key, earlier)


def _end_with_parent(parents_end: Connection) -> None:
    """Ends this process with its parent: a pool's processes outlive a killed parent and would continue to write."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel, parents_end])
    os._exit(1)


def _pack(plan: ShardPlan) -> Work:
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():  # plans of a parent that was killed are still in the pipe
        os._exit(1)
    return _worker.pack(plan)


def _is_packed(packer: ShardPacker, plan: ShardPlan) -> bool:
    """Returns whether an earlier run packed a shard from these clips, with their files as they are now.

    After a machine's crash the shard's files may exist and not be complete.
    """
    frames_file, facts_file = shard_files(packer.folder, plan.index)
    reader = packer.reader
    try:
        facts = ShardFacts.read(facts_file)
        same = facts.key == packer.key and [file.name for file in facts.files] == plan.names
        if not same or facts.refused != list(plan.refused):
            return False
        sources = {name: source for name in plan.names if (source := reader.source_of(name)) is not None}
        contents = contents_of(sources.values())
        now = [(contents[sources[name]] if name in sources else None, reader.split_of(name)) for name in plan.names]
        changed = [(file.content, file.split) for file in facts.files] != now
        return not changed and (not facts.rows or sha256_of(frames_file) == facts.sha256)
    except (OSError, ValueError):
        return False


def same_after(file: FileFacts, content: str | None, split: str | None) -> bool:
    """Returns whether facts about a file also hold for a file with this content and split."""
    known = (None, *SPLITS)
    same_split = split == file.split or (split in known and file.split in known)
    return content is not None and content == file.content and same_split


def facts_of(store: Store) -> list[ShardFacts]:
    """Reads the facts of each shard of a store; raises UserError if they are lost."""
    facts = []
    for index in store.parts:
        file = shard_files(store.folder / SHARDS, index)[1]
        try:
            facts.append(ShardFacts.read(file))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{file}: cannot be read: {reason}; without it nothing can be added; delete {store.folder} and prepare "
                "it again"
            ) from None
    return facts


def _sweep(folder: Path, shards: set[int]) -> None:
    """Removes everything except these shards."""
    keep = {file for index in shards for file in shard_files(folder, index)}
    for entry in folder.iterdir():
        if entry not in keep:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def first_layout(reader: Reader, names: Sequence[str]) -> Layout:
    """Returns the layout that most of a sample of clips have, so that one odd clip does not exclude the others.

    Raises:
        UserError: no clip can be read, or most figures lie (`check_upright`).
    """
    found: Counter[Layout] = Counter()
    postures: list[Posture] = []
    first = ""
    spread = list(names[:: -(-len(names) // LOOKED_AT)])
    for position, name in enumerate([*spread, *names]):
        if found and position >= len(spread):
            break
        try:
            take = reader.take(name)
        except ClipError as error:
            first = first or f"{reader.file_of(name)}: {' '.join(str(error).split())}"
        else:
            found[take.layout] += 1
            posture = posture_of(take)
            postures += [posture] if posture is not None else []
    if found:
        check_upright(reader, names, postures)
        return found.most_common(1)[0][0]
    more = f" (and {len(names) - 1} more left out)" if len(names) > 1 else ""
    raise UserError(f"{reader.path}: no usable clip; {first}{more}")
