"""Decode codes files into motion files."""

import errno
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.files import SUFFIXES, Rate, Timing, check_rate, other_rate, retimed, timing_of
from ds_rvqvae.data.formats.finding import FoundFile, is_regular, is_whole
from ds_rvqvae.data.formats.smpl.beat2 import CLIP_FOLDER
from ds_rvqvae.data.formats.writing import WRITERS
from ds_rvqvae.data.formats.written import Writer, write_matrix
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import AppendedLines, content_of, parse_json, sync
from ds_rvqvae.motion.clip import ClipError, UnfitError, check_finite
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.text import GIB, gibibytes
from ds_rvqvae.tokenizer.body import BodyTokenizer
from ds_rvqvae.tokenizer.clips import ClipTokenizer, as_clip_tokenizer
from ds_rvqvae.tokenizer.codes import ONLY_PART, Codes, read_parts
from ds_rvqvae.tokenizer.convert import WORKERS, Converted, Report, checked_levels, convert_files
from ds_rvqvae.tokenizer.folder import reading_config
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

_RECORD = ".decoded.jsonl"
"""File in a folder of decoded motion: one line when a motion file is begun, and one when it is complete, with its
inputs."""
_OLD_RECORD = ".decoded.json"
"""The record of versions up to 0.2: one entry for all files of the folder."""
_NOT_OURS = "exists and was not decoded into this folder; --overwrite replaces it"
_LARGEST_SOURCE = 16 * GIB


def decode_files(
    tokenizer: MotionTokenizer | BodyTokenizer,
    paths: Sequence[Path],
    out: Path,
    *,
    source: Path | None = None,
    levels: int | None = None,
    overwrite: bool = False,
    any_tokenizer: bool = False,
    matrices: bool = False,
    fps: Rate | None = None,
    workers: int = WORKERS,
) -> Report:
    """Decodes codes files into files of the format that was encoded, if `WRITERS` has it; else into `.npy` matrices of
    the tokenizer's columns (for a body, all columns of its layout). A BVH file is written if the encoded file still
    exists.

    Args:
        tokenizer: the tokenizer that made the codes. A codes file may hold only some of a body's parts.
        paths: codes files, and folders of them.
        out: folder of the motion files.
        source: a file of that format, or a folder of them with the codes' names; a clip takes from it the columns that
            the tokenizer does not cover. By default the encoded file, if it still exists. Without a source these
            columns are at rest, and no BVH file can be written, for it needs the hierarchy.
        levels: how many levels to decode, from the first; by default all in the file.
        overwrite: also decode files that are done already.
        any_tokenizer: decode codes of another tokenizer too.
        matrices: always write `.npy` matrices.
        fps: frame rate of the files, or "source" for that of the encoded file; by default the tokenizer's.

    Raises:
        UserError: as in `encode_files`; `source` does not exist, or is one file for several clips.
    """
    decoder = _Decoder(as_clip_tokenizer(tokenizer), out, levels, overwrite, source, any_tokenizer, matrices, fps)
    try:
        return convert_files(decoder, paths, workers)
    finally:
        if decoder.record is not None:
            decoder.record.close()


class _Record:
    """The record of a folder: the inputs and the content of each decoded file. It survives a kill.

    An entry has `output`, the file in the folder; `made`, its codes and the settings; `source`, the content of the file
    that the other columns came from; and `content`, the output's own content. An entry without `content` is of a file
    that was begun and not completed, or that an older version decoded.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock = folder, threading.Lock()
        self.is_new = not (folder / _RECORD).is_file() and not (folder / _OLD_RECORD).is_file()
        self._entries: dict[str, dict[str, Any]] = {}
        self._lines: AppendedLines | None = None
        self._read()

    def open(self) -> None:
        """Opens the record for writing; raises OSError."""
        self._lines = AppendedLines(self.folder / _RECORD)
        old = self.folder / _OLD_RECORD
        if old.is_file():
            for file in self.folder.rglob("*"):
                if file.suffix in SUFFIXES and file.relative_to(self.folder).as_posix() not in self._entries:
                    self.note(file, before=True)
            old.unlink()

    def of(self, output: Path) -> dict[str, Any] | None:
        """Returns the newest entry of a file."""
        name = output.relative_to(self.folder).as_posix()
        if name not in self._entries and os.path.lexists(output):
            self._read()  # another process may decode into the same folder
        return self._entries.get(name)

    def _read(self) -> None:
        found: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            for line in (self.folder / _RECORD).read_bytes().splitlines():
                with suppress(ValueError, TypeError, KeyError):
                    entry = parse_json(line)
                    found[entry["output"]] = entry
        self._entries = found

    def note(self, output: Path, **facts: Any) -> None:
        """Adds an entry; raises OSError if it cannot be written."""
        assert self._lines is not None
        entry = {"output": output.relative_to(self.folder).as_posix(), **facts}
        with self._lock:
            kept = self._lines.write(json.dumps(entry).encode() + b"\n")
            self._entries[entry["output"]] = entry
        if kept:
            raise OSError(errno.ENOSPC, kept, str(self.folder / _RECORD))

    def close(self) -> None:
        """Closes the record and syncs it, if the file system can."""
        if self._lines is not None:
            self._lines.close()
            with suppress(OSError):
                sync(self.folder / _RECORD)


class _Decoder:
    suffixes: tuple[str, ...] = (".npz",)
    record: _Record | None = None

    def __init__(
        self,
        tokenizer: ClipTokenizer,
        out: Path,
        levels: int | None,
        overwrite: bool,
        source: Path | None,
        any_tokenizer: bool,
        matrices: bool,
        fps: Rate | None,
    ) -> None:
        if source is not None and not source.exists():
            raise UserError(f"--source {source}: no such file or folder")
        if fps is not None:
            check_rate(fps)
        self.tokenizer, self.out, self.overwrite = tokenizer, out, overwrite
        self.source, self.any_tokenizer, self.matrices, self.fps = source, any_tokenizer, matrices, fps
        self.levels = checked_levels(levels, tokenizer.parts)
        self.fingerprints = {part: own.fingerprint for part, own in tokenizer.parts.items()}
        self.fingerprint = tokenizer.fingerprint  # a body's is computed at each call
        self.model_lock = threading.Lock()

    def start(self, found: Sequence[FoundFile]) -> None:
        """Opens the folder's record; raises UserError if a file that was not decoded into the folder is in the way."""
        if self.source is not None and self.source.is_file() and len(found) > 1:
            raise UserError(f"--source {self.source}: one file for {len(found)} clips; name a folder")
        record = _Record(self.out)
        if record.is_new and not self.overwrite:
            outputs = (self.out / file.relative.with_suffix(suffix) for file in found for suffix in SUFFIXES)
            in_the_way = next((output for output in outputs if os.path.lexists(output)), None)
            if in_the_way is not None:
                raise UserError(f"{in_the_way}: {_NOT_OURS}")
        record.open()
        self.record = record

    def convert(self, found: FoundFile) -> Iterator[Converted]:
        codes_content = content_of(found.file)  # first, so that codes which change meanwhile are decoded again
        parts = read_parts(found.file)
        self._check(parts)
        codes = next(iter(parts.values()))  # any part: the fields used below are the same in all
        source = None if self.matrices else self._source(codes, found)
        writer = self._writer(codes, source)
        output = self.out / found.relative.with_suffix(".npy" if writer is None else writer.suffix)
        for original in filter(None, (source, Path(codes.source) if codes.source else None)):
            if os.path.realpath(original) == os.path.realpath(output):
                raise ClipError(f"{output} is its source, which is never overwritten; name another folder")
        made = self._made(codes_content)
        read = source or (None if self.fps is None or codes.source_fps else self._source(codes, found))
        source_content = None if read is None else _content_of_source(read)
        if self._is_done(output, made, source_content):
            yield Converted(str(found.file), str(output), skipped=True)
            return
        with self.model_lock:
            indices = {part: own.codes[:, : self.levels] for part, own in parts.items()}
            motion, layout = self.tokenizer.decode_clip(indices, codes.frames)
        check_finite(motion)
        fps = self.tokenizer.fps
        if self.fps is not None:
            motion, fps = retimed(motion, layout, fps, self.fps, self._timing(codes, read))
        assert self.record is not None
        entry = self.record.of(output)
        self.record.note(output)
        if writer is None:
            write_matrix(output, motion)
            notes = self._notes_of_matrix(codes, motion, layout, fps)
        else:
            notes = self._write(writer, output, motion, layout, fps, source)
        self.record.note(output, made=made, source=source_content, content=content_of(output))
        if self.source is None and codes.source_content not in ("", source_content) and source_content is not None:
            changed = "its source changed after it was encoded, so its codes do not match the columns from the source"
            notes = (*notes, f"{changed}; encode it again")
        if entry is not None and entry.get("before"):
            notes = (*notes, "decoded again, because an older version did not record its inputs")
        yield Converted(str(found.file), str(output), codes.seconds, notes=notes)

    def _writer(self, codes: Codes, source: Path | None) -> Writer | None:
        """Returns the writer of a clip's file; None for a matrix."""
        writer = None if self.matrices else WRITERS.get(codes.format)
        return None if writer is None or (writer.needs_source and source is None) else writer

    def _check(self, parts: Mapping[str, Codes]) -> None:
        """Raises ClipError if these are not codes of this tokenizer."""
        if not parts.keys() <= self.tokenizer.parts.keys():
            this = _named(self.tokenizer.parts)
            raise ClipError(f"holds codes of {_named(parts)}, but this is {this}; name the tokenizer that made them")
        for part, codes in parts.items():
            try:
                self._check_part(codes, self.tokenizer.parts[part], self.fingerprints[part])
            except ClipError as error:
                raise ClipError(f"{part}: {error}" if part else str(error)) from None

    def _check_part(self, codes: Codes, tokenizer: MotionTokenizer, fingerprint: str) -> None:
        config = tokenizer.model.config
        if codes.fingerprint != fingerprint and not self.any_tokenizer:
            raise ClipError(
                f"holds codes of another tokenizer ({codes.fingerprint[:12]}, this one is {fingerprint[:12]}); "
                "--any_tokenizer decodes them anyway"
            )
        if codes.levels > config.num_quantizers or codes.codes.max() >= config.nb_code:
            raise ClipError(
                f"holds codes up to {codes.codes.max()} on {codes.levels} levels; this tokenizer has {config.nb_code} "
                f"codes on {config.num_quantizers} levels"
            )
        if self.levels is not None and codes.levels < self.levels:
            raise ClipError(f"holds {codes.levels} levels, --levels asks for {self.levels}")
        if abs(codes.fps / tokenizer.fps - 1) > 1e-6 or abs(codes.code_rate / tokenizer.code_rate - 1) > 1e-6:
            raise ClipError(
                f"holds {codes.code_rate:g} codes per second of motion at {codes.fps:g} fps; this tokenizer has "
                f"{tokenizer.code_rate:g} at {tokenizer.fps:g} fps"
            )

    def _source(self, codes: Codes, found: FoundFile) -> Path | None:
        """Returns the file that columns without codes come from, if any; None for a format that is not written."""
        if codes.format not in WRITERS:
            return None
        name = Path(codes.source).name or found.file.name
        if self.source is None:
            places = [Path(codes.source)]
        elif self.source.is_dir():
            relative = found.relative.with_suffix(Path(name).suffix)
            places = [self.source / relative, self.source / name, self.source / CLIP_FOLDER / name]
        else:
            places = [self.source]
        return next((place for place in places if is_regular(place)), None)

    def _made(self, codes_content: str | None) -> dict[str, Any]:
        """Returns a file's codes and the settings that it is decoded with; the source is recorded separately."""
        details = self.tokenizer.details
        settings = {"levels": self.levels, "matrices": self.matrices, "reading": details.get("reading") or {}}
        settings |= {} if self.fps is None else {"fps": self.fps}
        return {"codes": codes_content, "tokenizer": self.fingerprint, **settings}

    def _is_done(self, output: Path, made: Mapping[str, Any], source_content: str | None) -> bool:
        """Returns whether `output` is already the result; raises ClipError if it must not be overwritten."""
        if self.overwrite or not os.path.lexists(output):
            return False
        entry = None if self.record is None else self.record.of(output)
        if entry is None:
            raise ClipError(f"{output}: {_NOT_OURS}")
        if "content" not in entry:
            return False
        if content_of(output) != entry["content"]:
            if is_whole(output) if output.suffix in (".npz", ".npy") else output.stat().st_size:
                raise ClipError(f"{output} was changed after it was decoded; --overwrite replaces it")
            return False
        # Without its source a new file would hold less than this one.
        return entry.get("made") == made and source_content in (entry.get("source"), None)

    def _timing(self, codes: Codes, file: Path | None) -> Timing | None:
        """Returns frame rate and frames of a file, else those in the codes; raises ClipError if needed and missing."""
        if file is not None:
            with self._reading(file, WRITERS[codes.format].kind):
                return timing_of(file, reading_config(self.tokenizer.details, self.tokenizer.fps, str(file)))
        if codes.source_fps:
            return Timing(codes.source_fps, codes.source_frames)
        if self.fps == "source":
            taken = codes.format in WRITERS
            how = ", and has no source file: name it by --source, or a rate by --fps N" if taken else ": give --fps N"
            raise ClipError(f"does not say its source's frame rate{how}, or encode it again with --overwrite")
        return None

    def _write(
        self,
        writer: Writer,
        output: Path,
        motion: NDArray[np.float32],
        layout: Layout,
        fps: float,
        source: Path | None,
    ) -> tuple[str, ...]:
        """Writes the clip and returns notes about it."""
        config = reading_config(self.tokenizer.details, self.tokenizer.fps, str(source or output))
        with self._reading(source, writer.kind):
            written = writer.write(output, motion, layout, fps, source, config)
        # If only the codes name the source, its content is not quoted.
        notes = written.details if self.source is not None and written.details else written.notes
        return (*notes, *self._other_rate(written.source_fps, fps))

    def _other_rate(self, source_fps: float, fps: float) -> tuple[str, ...]:
        """Returns a note if a file is written at another frame rate than its source's."""
        return other_rate(source_fps, fps, "--fps source" if self.fps is None else "")

    @contextmanager
    def _reading(self, source: Path | None, kind: str) -> Iterator[None]:
        """Adds the source's name to errors about it. If only the codes name the source, its content is not quoted:
        codes can name any file."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            if source is None:
                raise
            if isinstance(error, UnfitError) or (isinstance(error, ClipError) and self.source is not None):
                raise ClipError(f"source {source}: {error}") from None
            if self.source is not None:
                raise
            line = re.match(r"(?:line|frame) \d+", str(error))
            where = f" ({line[0]})" if line else ""
            raise ClipError(
                f"source {source}: cannot be read as {kind}{where}; --source {source} gives the reason"
            ) from None

    def _notes_of_matrix(
        self, codes: Codes, motion: NDArray[np.float32], layout: Layout, fps: float
    ) -> tuple[str, ...]:
        notes = []
        if codes.format in WRITERS and not self.matrices:
            kind = WRITERS[codes.format].kind
            notes.append(f"no source file, so there is no hierarchy for {kind} (--source names one)")
        if sum(own.width for own in layout) < motion.shape[1]:
            notes.append("columns of parts without codes are at rest")
        return (*notes, *self._other_rate(codes.source_fps, fps))


def _content_of_source(source: Path) -> str | None:
    """Returns `content_of` a source; raises ClipError if it is too large to be motion, for codes can name any file."""
    with suppress(OSError):
        if (size := source.stat().st_size) > _LARGEST_SOURCE:
            raise ClipError(f"source {source}: has {gibibytes(size, '.0f')}, more than any motion file")
    return content_of(source)


def _named(parts: Iterable[str]) -> str:
    """Returns how messages name the tokenizer of these parts."""
    names = ", ".join(part for part in parts if part != ONLY_PART)
    return f"a body's tokenizer ({names})" if names else "a single tokenizer"
