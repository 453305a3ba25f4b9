"""The columns of a body part, normalised once and kept in the cache, and fast copies of windows from them.

Selecting 78 of 433 columns and normalising them at every access takes many times as long as copying a window. So both
are done once for all frames if the result fits the memory. Then a window is one copy from pages that all processes of
a machine share.
"""

import hashlib
import json
import logging
import mmap
import os
import shutil
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.npz import HEADER_BYTES, map_matrix, write_header
from ds_rvqvae.data.store.places import cache_folder, hash_of, hold_in_cache
from ds_rvqvae.data.store.store import Store
from ds_rvqvae.files import read_json, sync, whole_file, whole_folder
from ds_rvqvae.host import Host
from ds_rvqvae.locks import BusyError, hold_folder
from ds_rvqvae.text import GIB, gibibytes

KEPT = 8
"""Selections that the cache keeps, the last used ones: enough for two data sets in four body parts."""
SPARE_BYTES = GIB
"""Bytes left free on the disk, for checkpoints and logs."""
_VERSION = 1
_FRAMES, _TABLE, _BUILDING = "frames.npy", "selection.json", ".building"
_BLOCK_BYTES = 8 << 20
_READ_AHEAD_BYTES = 1 << 20
"""Bytes per call: the kernel reads no more than about this much ahead, even if asked for more."""

logger = logging.getLogger("ds_rvqvae")


def selected_frames(
    store: Store, columns: NDArray[np.int64], mean: NDArray[np.float32], std: NDArray[np.float32]
) -> NDArray[np.float32] | None:
    """Returns some columns of all frames of a store as `(frames - mean) / std`, from the cache; builds it if needed.

    One process builds it while others wait; all of them map the same file. Every number equals, bit for bit, the one
    from normalising a window alone.

    Args:
        columns: int64 `[C]`.
        mean, std: float32 `[C]`.

    Returns:
        A read-only memory map, float32 `[store.num_frames, C]`, with the rows of the store. None if it would take
        more than half of the available memory, or cannot be written (a warning says why); windows are then read from
        the store itself.
    """
    selection = _Selection(store, columns, mean, std)
    try:
        frames = selection.open()
        if frames is not None:
            read_ahead([selection.folder / _FRAMES])
        elif _fits(selection.nbytes):
            frames = selection.build()
        else:
            logger.info("%s in use: too large for the memory, so windows are read from the store", selection.words)
    except OSError as error:
        reason = error.strerror or error
        logger.warning(
            "%s in use: cannot be kept in %s: %s; training reads the store", selection.words, _root(), reason
        )
        read_ahead([store.folder / shard.file for shard in store.shards])
        return None
    return frames


def gather(
    frames: NDArray[np.float32], starts: NDArray[np.int64], size: int, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Copies windows of `size` rows into `out`.

    It is one call of numpy, during which other threads run; a loop would take the interpreter's lock for each window.
    It is fastest if `out` comes from `np.empty`, which asks for huge pages.

    Args:
        frames: `[rows, C]`.
        starts: int64 `[windows]`, the first row of each.
        out: `[windows, size, C]` of the same dtype, contiguous.

    Raises:
        IndexError: a window reaches beyond the rows.
    """
    # The bounds are checked here; mode="clip" only saves numpy a buffer.
    if len(starts) and not 0 <= starts.min() <= starts.max() <= len(frames) - size:
        raise IndexError(f"windows of {size} rows from {starts.min()} to {starts.max()}, of {len(frames)} rows")
    return np.take(frames, starts[:, None] + np.arange(size), axis=0, out=out, mode="clip")


def will_need(store: Store, starts: NDArray[np.int64], size: int) -> None:
    """Asks the disk for several windows of a store at once, before they are read one after the other.

    Without this, each page that is not in memory is waited for alone, at a tenth of the disk's speed.
    """
    firsts = np.array([shard.first for shard in store.shards], np.int64)
    for start in starts.tolist():
        index = int(np.searchsorted(firsts, start, side="right")) - 1
        frames = store.shard_frames(index)
        row = frames.strides[0]
        first = HEADER_BYTES + (start - store.shards[index].first) * row
        page = first - first % mmap.PAGESIZE
        _map_of(frames).madvise(mmap.MADV_WILLNEED, page, first + size * row - page)


def read_ahead(files: Sequence[Path]) -> None:
    """Starts to read files into memory, once and in order, if they fit half of it; does not wait for the end."""
    with suppress(OSError):  # it only saves time
        sizes = [file.stat().st_size for file in files]
        if _fits(sum(sizes)):
            threading.Thread(target=_read_ahead, args=(list(zip(files, sizes, strict=True)),), daemon=True).start()


def _read_ahead(files: list[tuple[Path, int]]) -> None:
    with suppress(OSError):
        for file, size in files:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                for offset in range(0, size, _READ_AHEAD_BYTES):
                    os.posix_fadvise(descriptor, offset, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


def _fits(nbytes: int) -> bool:
    return nbytes <= Host.read().memory_bytes // 2


def _map_of(frames: NDArray[np.float32]) -> mmap.mmap:
    """Returns the memory map that an array is a view of."""
    base: object = frames
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    return base


def _root() -> Path:
    return cache_folder() / "selected"


class _Selection:
    """Some columns of a store, their normalisation, and their folder in the cache: `frames.npy`, `selection.json`."""

    def __init__(
        self, store: Store, columns: NDArray[np.int64], mean: NDArray[np.float32], std: NDArray[np.float32]
    ) -> None:
        self.store, self.columns, self.mean, self.std = store, columns.astype(np.int64), mean, std
        self.shape = (store.num_frames, len(columns))
        self.nbytes = store.num_frames * len(columns) * 4
        # With checksums, because another version may have packed the same files differently.
        parts = [_VERSION, store.fingerprint, [shard.sha256 for shard in store.shards]]
        self.content = hash_of(parts)
        key = hashlib.sha256(self.content.encode())
        for values in (self.columns, mean, std):
            key.update(f"{values.dtype.str}{values.shape}".encode() + values.tobytes())
        self.folder = _root() / f"{store.folder.resolve().name[:40]}-{key.hexdigest()[:24]}"

    @property
    def words(self) -> str:
        return f"{self.store.folder}: {self.shape[1]} columns of {self.shape[0]:,} frames ({gibibytes(self.nbytes)})"

    def open(self) -> NDArray[np.float32] | None:
        """Returns the frames if they exist and are complete; marks them as just used, and as in use while mapped."""
        try:
            held = hold_folder(self.folder, wait=False, shared=True)
        except (BusyError, OSError):  # it is being removed, or does not exist
            return None
        try:
            frames: NDArray[np.float32] = map_matrix(self.folder / _FRAMES, np.dtype("<f4"), *self.shape)
        except (OSError, ValueError):
            held.close()
            return None
        weakref.finalize(_map_of(frames), held.close)
        with suppress(OSError):  # for example in another user's cache
            os.utime(self.folder / _TABLE)
        return frames

    def build(self) -> NDArray[np.float32] | None:
        """Builds the frames beside their place and renames them, unless another process did so; raises OSError."""
        root = self.folder.parent
        root.mkdir(parents=True, exist_ok=True)
        with hold_in_cache(self.folder.name):
            frames = self.open()
            if frames is not None:
                return frames
            _remove_unused(self)
            free = shutil.disk_usage(root).free
            if free < self.nbytes + SPARE_BYTES:
                raise OSError(f"{gibibytes(free)} free on its disk")
            logger.info("%s: being normalised once, for this run and later ones", self.words)
            if self.folder.exists():
                logger.warning("%s: damaged, so it is made anew", self.folder)
            with whole_folder(self.folder, root / f".{self.folder.name}{_BUILDING}") as unfinished:
                with (unfinished / _FRAMES).open("wb") as file:
                    self._write(file)
                sync(unfinished / _FRAMES)
                table = {"store": str(self.store.folder.resolve()), "content": self.content, "columns": self.shape[1]}
                with whole_file(unfinished / _TABLE, synced=True) as content:
                    content.write(json.dumps(table).encode() + b"\n")
            return self.open()

    def _write(self, file: BinaryIO) -> None:
        """Writes the `.npy` file while reading the store once, from its first row to its last."""
        write_header(file, np.dtype("<f4"), *self.shape)
        rows = max(1, _BLOCK_BYTES // (4 * max(self.shape[1], len(self.store.mean))))
        block = np.empty((rows, self.shape[1]), np.float32)
        for first, last in pairwise(self.store.starts.tolist()):
            for start in range(first, last, rows):
                stop = min(start + rows, last)
                part = block[: stop - start]
                np.take(self.store.read(start, stop), self.columns, axis=1, out=part, mode="clip")
                part -= self.mean
                part /= self.std
                file.write(part.data)


def _remove_unused(new: _Selection) -> None:
    """Makes room for a selection; selections that other processes use stay.

    It removes selections of stores that no longer exist, selections of the same store's earlier content, the least
    recently used ones beyond `KEPT`, and unfinished ones of killed processes.
    """
    store, used = str(new.store.folder.resolve()), {}
    for folder in new.folder.parent.iterdir():
        if folder == new.folder or not folder.is_dir():
            continue
        if folder.name.endswith(_BUILDING):
            with suppress(BusyError), hold_in_cache(folder.name[1 : -len(_BUILDING)], wait=False):
                shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            table = read_json(folder / _TABLE)
            outdated = not Path(table["store"]).is_dir() or (
                table["store"] == store and table["content"] != new.content
            )
            if not outdated:
                used[folder] = (folder / _TABLE).stat().st_mtime
                continue
        except (OSError, ValueError, TypeError, KeyError):
            pass  # damaged, or just removed by another process
        _remove(folder)
    for folder in sorted(used, key=used.__getitem__, reverse=True)[KEPT - 1 :]:
        _remove(folder)


def _remove(folder: Path) -> None:
    with suppress(BusyError, OSError), hold_folder(folder, wait=False):
        shutil.rmtree(folder, ignore_errors=True)
