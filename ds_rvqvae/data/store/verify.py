"""Checks that a store is intact: reads every byte of every shard once, on several threads."""

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.npz import HEADER_BYTES, is_header
from ds_rvqvae.data.store.shards import ShardFacts
from ds_rvqvae.data.store.store import REPORT, Store
from ds_rvqvae.data.store.summary import clips_of_rows, some
from ds_rvqvae.data.store.table import NUMBER_FORMATS, SHARDS, Shard, shard_files
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_json
from ds_rvqvae.motion.clip import spans
from ds_rvqvae.process.bars import Bar

_BLOCK = 4 << 20
"""Bytes read at a time, so that the data are still in the processor's cache when the values are checked."""
_BFLOAT16_EXPONENT = 0x7F80


@dataclass
class Damage:
    """The damage of one file of a store."""

    file: str
    """Relative to the store."""
    problems: list[str]
    clips: list[str] = field(default_factory=list)
    """Names of the clips whose frames are in the file."""

    def __str__(self) -> str:
        clips = f" ({len(self.clips)} clips: {some(self.clips)})" if len(self.clips) > 1 else ""
        one = f" (clip {self.clips[0]})" if len(self.clips) == 1 else ""
        return f"{self.file}: {'; '.join(self.problems)}{clips or one}"


class _StoppedError(Exception):
    """Another thread failed, or the user interrupted."""


def verify_store(store: Store, progress: bool = False) -> list[Damage]:
    """Checks all of a store: checksums, shapes, NaN and infinite values, and that its files agree with its table.

    Args:
        store: opened with `check_files=False`, so that a store with missing or truncated files can be checked too.
        progress: draw a bar on stderr.

    Returns:
        The damaged files, in the order of the shards; empty for an intact store.
    """
    stop = threading.Event()
    sizes = sum(shard.rows * _row_bytes(store) + HEADER_BYTES for shard in store.shards)
    workers = min(len(os.sched_getaffinity(0)), len(store.shards))
    bar = Bar(
        desc="checking", total=sizes, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress, leave=False
    )
    with bar, ThreadPoolExecutor(workers) as threads:
        jobs = [threads.submit(_check_shard, store, shard, bar.update, stop) for shard in store.shards]
        try:
            found = [job.result() for job in jobs]
        except BaseException:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    found += [_check_facts(store, index) for index in store.parts]
    found.append(_check_report(store))
    return [damage for damage in found if damage is not None]


def _row_bytes(store: Store) -> int:
    return len(store.mean) * NUMBER_FORMATS[store.dtype].stored.itemsize


def _check_shard(store: Store, shard: Shard, advance: Callable[[int], object], stop: threading.Event) -> Damage | None:
    """Checks a shard's header, length, numbers and checksum."""
    problems: list[str] = []
    clips = clips_of_rows(store, shard.first, shard.first + shard.rows)
    row = _row_bytes(store)
    try:
        with (store.folder / shard.file).open("rb", buffering=0) as content:
            size = os.fstat(content.fileno()).st_size
            wanted = HEADER_BYTES + shard.rows * row
            if size != wanted:
                problems.append(f"{size:,} bytes, {abs(size - wanted):,} too {'few' if size < wanted else 'many'}")
            header = content.read(HEADER_BYTES)
            advance(len(header))
            if not is_header(header, NUMBER_FORMATS[store.dtype].stored, shard.rows, len(store.mean)):
                problems.append(f"does not begin as an array of {shard.rows:,} x {len(store.mean)} {store.dtype}")
            digest = hashlib.sha256(header)
            bad = _read_rows(content, digest, store, row, shard.rows, advance, stop)
            if bad.size:
                problems.append(_where(store, shard, bad))
            if digest.hexdigest() != shard.sha256:
                problems.append("its checksum differs from the one in the table")
    except OSError as error:
        problems.append(f"cannot be read: {error.strerror or error}")
    return Damage(shard.file, problems, clips) if problems else None


def _read_rows(
    content: FileIO,
    digest: "hashlib._Hash",
    store: Store,
    row: int,
    rows: int,
    advance: Callable[[int], object],
    stop: threading.Event,
) -> NDArray[np.intp]:
    """Feeds the rest of a file to `digest`; returns the rows, int64, that hold NaN or infinite values."""
    stored = NUMBER_FORMATS[store.dtype].stored
    buffer = bytearray(max(_BLOCK // row, 1) * row)
    bad, first = [], 0
    while True:
        if stop.is_set():
            raise _StoppedError
        count = _fill(content, buffer)
        block = memoryview(buffer)[:count]
        digest.update(block)
        advance(count)
        numbers = np.frombuffer(block[: count // row * row], stored).reshape(-1, len(store.mean))
        bad.append(first + np.flatnonzero(~_is_finite(numbers, store.dtype).all(axis=1)))
        first += len(numbers)
        if count < len(buffer):
            found = np.concatenate(bad)
            return found[found < rows]


def _fill(content: FileIO, buffer: bytearray) -> int:
    """Reads until `buffer` is full or the file ends; returns the number of bytes read."""
    count, view = 0, memoryview(buffer)
    while count < len(buffer) and (read := content.readinto(view[count:])):
        count += read
    return count


def _is_finite(numbers: NDArray[Any], dtype: str) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = (
        (numbers & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT if dtype == "bfloat16" else np.isfinite(numbers)
    )
    return finite


def _where(store: Store, shard: Shard, bad: NDArray[np.intp]) -> str:
    """Returns words that name the frames and clips with NaN or infinite values."""
    rows = shard.first + bad
    clips = np.searchsorted(store.starts, rows, side="right") - 1
    names, counts = np.unique(clips, return_counts=True)
    first = rows[clips == names[0]] - store.starts[names[0]]
    text = f"NaN or infinite values in frames {spans(first)} of {store.clip_names[names[0]]}"
    return text + (f" and {len(bad) - counts[0]} frames of {len(names) - 1} more clips" if len(names) > 1 else "")


def _check_facts(store: Store, index: int) -> Damage | None:
    """Checks that a shard's `.json`, which appending relies on, agrees with the table."""
    frames_file, facts_file = (str(file) for file in shard_files(Path(SHARDS), index))
    try:
        facts = ShardFacts.read(store.folder / facts_file)
    except OSError as error:
        return Damage(facts_file, [f"cannot be read: {error.strerror or error}"])
    except ValueError as error:
        return Damage(facts_file, [f"damaged: {error}"])
    shard = next((shard for shard in store.shards if shard.file == frames_file), None)
    names = clips_of_rows(store, shard.first, shard.first + shard.rows) if shard else []
    lengths = [stop - start for start, stop in map(store.rows, names)]
    clips = [(name, frames) for name, frames, _ in facts.clips]
    if clips != list(zip(names, lengths, strict=True)) or (shard and facts.sha256 != shard.sha256):
        return Damage(facts_file, ["does not agree with the store's table"])
    return None


def _check_report(store: Store) -> Damage | None:
    file = store.folder / REPORT
    try:
        if read_json(file) != store.report():
            return Damage(REPORT, ["differs from the report in the store's table; ds-rvqvae prepare writes it again"])
    except OSError as error:
        return Damage(REPORT, [f"cannot be read: {error.strerror or error}"])
    except ValueError as error:
        return Damage(REPORT, [f"damaged: {error}"])
    except UserError as error:
        return Damage(REPORT, [str(error).removeprefix(f"{file}: ")])
    return None
