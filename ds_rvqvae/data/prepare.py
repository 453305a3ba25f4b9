"""Motion files into a packed store: streamed clip by clip, built once, by one process."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from ds_rvqvae.data.clips import Clip, LeftOut, Reader
from ds_rvqvae.data.layout import Layout
from ds_rvqvae.data.readers import open_reader
from ds_rvqvae.data.splits import ClipLength, Segment, split_clips
from ds_rvqvae.data.statistics import RunningStatistics
from ds_rvqvae.data.store import FRAMES, MEAN, STD, TABLE, VERSION, Store, is_store, open_store, write_table
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import DataConfig

_BUILDING = ".building-"


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
    if config.path is None:
        raise UserError(
            "no motion to read: give --data_path, or set DS_RVQVAE_DATA, or try --demo, which makes its own"
        )
    path = Path(config.path).expanduser()
    if is_store(path):
        return _prepared(path, config)
    reader = open_reader(path, config)
    settings = {"fps": config.fps, "split": config.split, "speakers": config.speakers}
    fingerprint = _fingerprint(reader, settings)
    try:
        folder = _cached_folder(path, settings, fingerprint) if out is None else Path(out)
        if not _may_replace(folder):
            raise UserError(f"{folder}: exists and is no store; name a new folder")
        store = _matching(folder, fingerprint)
        if store is None:
            with _locked(folder):
                store = _matching(folder, fingerprint)  # another process may just have built it
                if store is None:
                    _build(reader, folder, settings, fingerprint, progress)
                    store = open_store(folder)
                    if out is None:
                        _remove_outdated(folder)
    except OSError as error:
        where = out or f"{cache_folder()} (DS_RVQVAE_CACHE moves it)"
        raise UserError(f"the packed store cannot be written to {where}: {error.strerror or error}") from None
    return store


def _prepared(path: Path, config: DataConfig) -> Store:
    """A store given as the data, which must have been made with the settings now asked for."""
    store = open_store(path)
    for key, asked, default in (("split", config.split, "auto"), ("speakers", config.speakers, None)):
        if asked not in (default, store.settings.get(key)):
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
    files = {file.name for file in folder.iterdir()}
    return not files or (TABLE in files and files <= {TABLE, FRAMES, MEAN, STD})


def _remove_outdated(folder: Path) -> None:
    """Frees the space of earlier stores of the same data and settings; a process that has one mapped keeps it."""
    for other in folder.parent.glob(f"{escape(folder.name.rpartition('-')[0])}-*"):
        if other != folder and is_store(other):
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock lies in the cache, so that nothing stays beside the store."""
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
    with FileLock(locks / f"{name}.lock"):
        yield


def _matching(folder: Path, fingerprint: str) -> Store | None:
    if not is_store(folder):
        return None
    try:
        store = open_store(folder)
    except UserError:
        return None
    return store if store.fingerprint == fingerprint else None


def _build(reader: Reader, folder: Path, settings: dict[str, Any], fingerprint: str, progress: bool) -> None:
    """Builds beside the final place and renames, so that a store is whole or not there. The caller holds the lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.parent.glob(f".{escape(folder.name)}{_BUILDING}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}{_BUILDING}", dir=folder.parent))
    try:
        content = building / "new"
        content.mkdir()
        _write(reader, content, settings, fingerprint, progress)
        if folder.exists():
            folder.rename(building / "old")
        content.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(reader: Reader, folder: Path, settings: dict[str, Any], fingerprint: str, progress: bool) -> None:
    packed = _Packer(reader)
    with (folder / FRAMES).open("wb") as file:
        packed.write(file, progress)
        os.fsync(file.fileno())
    segments = split_clips(packed.clips, settings["split"])
    frames = np.load(folder / FRAMES, mmap_mode="r", allow_pickle=False)
    mean, std = reader.statistics() or _statistics(frames, packed, segments)
    if mean.shape != std.shape or mean.shape != frames.shape[1:]:
        raise UserError(
            f"{reader.path}: Mean.npy and Std.npy have {mean.size} and {std.size} columns, the motion {frames.shape[1]}"
        )
    np.save(folder / MEAN, mean)
    np.save(folder / STD, std)
    write_table(
        folder,
        layout=packed.layout,
        fps=reader.config.fps,
        clips=[(clip.name, stop) for clip, stop in zip(packed.clips, packed.stops, strict=True)],
        segments=segments,
        has_body_parts=reader.has_body_parts,
        left_out=packed.left_out,
        settings=settings,
        fingerprint=fingerprint,
    )


def _statistics(frames: np.ndarray, packed: "_Packer", segments: list[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """Of the training split, or of all frames where nothing trains (a test set to be scored)."""
    first_rows = {clip.name: stop - clip.frames for clip, stop in zip(packed.clips, packed.stops, strict=True)}
    running = RunningStatistics(frames.shape[1])
    for segment in [segment for segment in segments if segment.split == "train"] or segments:
        first = first_rows[segment.name]
        running.add(frames[first + segment.start : first + segment.stop])
    return running.mean_and_std()


class _Packer:
    """Appends clips to `frames.npy` as they are read, and notes what went in and what did not."""

    def __init__(self, reader: Reader):
        self._reader = reader
        self.clips: list[ClipLength] = []
        self.stops: list[int] = []
        self.left_out: list[LeftOut] = []
        self.layout: Layout = ()

    def write(self, file: BinaryIO, progress: bool) -> None:
        """Writes a whole `.npy` file; raises UserError where no clip is left."""
        names = self._reader.clip_names()
        if not names:
            raise UserError(f"{self._reader.path}: holds no clips ({self._reader.format})")
        seen: set[str] = set()
        bar = tqdm(
            zip(names, self._reader.clips(), strict=True),
            desc="preparing motion",
            total=len(names),
            unit="clip",
            disable=False if progress else None,
        )
        for name, clip in bar:
            reason = self._refusal(clip, seen)
            if reason:
                self.left_out.append(LeftOut(self._reader.file_of(name), reason))
                continue
            seen.add(clip.name)
            self._append(file, clip)
        if not self.clips:
            file_name, reason = self.left_out[0]
            more = f" (and {len(self.left_out) - 1} more left out)" if len(self.left_out) > 1 else ""
            raise UserError(f"{self._reader.path}: no usable clip; {file_name}: {reason}{more}")
        self._write_header(file)

    def _refusal(self, clip: Clip | LeftOut, seen: set[str]) -> str | None:
        if isinstance(clip, LeftOut):
            return clip.reason
        if clip.name in seen:
            return "the name stands twice; the first is kept"
        if self.layout and clip.layout != self.layout:
            return f"its {clip.motion.shape[1]} columns are not laid out as those of the clips before it"
        return None

    def _append(self, file: BinaryIO, clip: Clip) -> None:
        if not self.clips:
            self.layout = clip.layout
            self._write_header(file)
        np.ascontiguousarray(clip.motion, np.float32).tofile(file)
        self.stops.append((self.stops[-1] if self.stops else 0) + len(clip.motion))
        self.clips.append(ClipLength(clip.name, len(clip.motion), clip.split))

    def _write_header(self, file: BinaryIO) -> None:
        """Numpy pads the header so that it keeps its length while the first axis grows."""
        shape = (self.stops[-1] if self.stops else 0, self.layout[-1].stop)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
