"""Codes files to motion files."""

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

from ds_rvqvae.data.files import Rate, Timing, check_rate, other_rate, retimed, timing_of
from ds_rvqvae.data.formats.beat2 import CLIP_FOLDER
from ds_rvqvae.data.formats.finding import FoundFile, is_regular, is_whole
from ds_rvqvae.data.formats.writing import (
    BEAT2,
    BVH,
    read_beat2_source,
    rest_source,
    write_beat2,
    write_bvh,
    write_matrix,
)
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
"""In a folder of decoded motion: a line when a file is begun, and one when it is there, with what it was made from."""
_OLD_RECORD = ".decoded.json"
"""What versions up to 0.2 had in its place: of what all files of the folder were decoded with."""
_NOT_OURS = "is there and was not decoded into this folder; --overwrite replaces it"
_KINDS = {BEAT2: "a BEAT2 npz", BVH: "a BVH file"}
_LARGEST_SOURCE = 16 * GIB
_SUFFIXES = (".npz", ".npy", ".bvh")
"""Of files of decoded motion."""


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
    """Decodes codes files: of BEAT2 clips into BEAT2 npz files, of BVH files into such where these are still there, of
    others into `.npy` matrices of the tokenizer's columns; of a body's, all of its layout.

    Args:
        tokenizer: that the codes are of. Codes of only some of a body's parts say as much as they cover.
        paths: codes files, and folders of them.
        out: folder of the motion files.
        source: a BEAT2 or BVH file, or a folder of them with the codes' names, from which a clip takes what the
            tokenizer does not cover; by default the file that was encoded, if it is still there. Without one that is at
            rest, and there is no hierarchy to write a BVH file with.
        levels: the first so many; all that a file has by default.
        overwrite: also what is done already.
        any_tokenizer: decode codes of another tokenizer too.
        matrices: write `.npy` matrices whatever was encoded.
        fps: frames a second of the files, or "source" for those of what was encoded; by default the tokenizer's.

    Raises:
        UserError: as `encode_files`; or `source` is not there, or one file for several clips.
    """
    decoder = _Decoder(as_clip_tokenizer(tokenizer), out, levels, overwrite, source, any_tokenizer, matrices, fps)
    try:
        return convert_files(decoder, paths, workers)
    finally:
        if decoder.record is not None:
            decoder.record.close()


class _Record:
    """What files of a folder were decoded from, and what came of it. It is there after a kill, too.

    An entry has `output`, the file in the folder; `made`, what it was decoded from and with; `source`, the content of
    the file that the rest was taken from; and `content`, its own. Without the last it was begun, or decoded by a
    version that noted less.

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
        """Lets notes be made; raises OSError."""
        self._lines = AppendedLines(self.folder / _RECORD)
        old = self.folder / _OLD_RECORD
        if old.is_file():
            for file in self.folder.rglob("*"):
                if file.suffix in _SUFFIXES and file.relative_to(self.folder).as_posix() not in self._entries:
                    self.note(file, before=True)
            old.unlink()

    def of(self, output: Path) -> dict[str, Any] | None:
        """The newest entry of a file."""
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
        """Makes an entry; raises OSError where it cannot be written."""
        assert self._lines is not None
        entry = {"output": output.relative_to(self.folder).as_posix(), **facts}
        with self._lock:
            kept = self._lines.write(json.dumps(entry).encode() + b"\n")
            self._entries[entry["output"]] = entry
        if kept:
            raise OSError(errno.ENOSPC, kept, str(self.folder / _RECORD))

    def close(self) -> None:
        """No more notes can be made; those that were are on the disk, as far as it says."""
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
        """Opens the folder's record; raises UserError where files would be replaced that were not decoded into it."""
        if self.source is not None and self.source.is_file() and len(found) > 1:
            raise UserError(f"--source {self.source}: one file for {len(found)} clips; name a folder")
        record = _Record(self.out)
        if record.is_new and not self.overwrite:
            outputs = (self.out / file.relative.with_suffix(suffix) for file in found for suffix in _SUFFIXES)
            in_the_way = next((output for output in outputs if os.path.lexists(output)), None)
            if in_the_way is not None:
                raise UserError(f"{in_the_way}: {_NOT_OURS}")
        record.open()
        self.record = record

    def convert(self, found: FoundFile) -> Iterator[Converted]:
        codes_content = content_of(found.file)  # first: codes that are changed meanwhile are decoded again
        parts = read_parts(found.file)
        self._check(parts)
        codes = next(iter(parts.values()))  # of any part: what is asked of it below is the same in all
        source = None if self.matrices else self._source(codes, found)
        suffix = self._suffix(codes, source)
        output = self.out / found.relative.with_suffix(suffix)
        for original in filter(None, (source, Path(codes.source) if codes.source else None)):
            if os.path.realpath(original) == os.path.realpath(output):
                raise ClipError(f"{output} is its source, which is never written over; name another folder")
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
        if suffix == ".npz":
            notes = self._write_beat2(output, motion, layout, source, fps)
        elif suffix == ".bvh" and source is not None:
            notes = self._write_bvh(output, motion, layout, source, fps)
        else:
            write_matrix(output, motion)
            notes = self._notes_of_matrix(codes, motion, layout, fps)
        self.record.note(output, made=made, source=source_content, content=content_of(output))
        if self.source is None and codes.source_content not in ("", source_content) and source_content is not None:
            changed = (
                "its source was changed since it was encoded, so its codes are of other motion than what was taken"
            )
            notes = (*notes, f"{changed} from the source; encode it again")
        if entry is not None and entry.get("before"):
            notes = (*notes, "decoded again, since its folder did not say of what content it was made")
        yield Converted(str(found.file), str(output), codes.seconds, notes=notes)

    def _suffix(self, codes: Codes, source: Path | None) -> str:
        """Of the file that a clip is written to."""
        if codes.format == BEAT2 and not self.matrices:
            return ".npz"
        return ".npy" if source is None else ".bvh"

    def _check(self, parts: Mapping[str, Codes]) -> None:
        """Raises ClipError where these are no codes of this tokenizer."""
        if not parts.keys() <= self.tokenizer.parts.keys():
            this = _named(self.tokenizer.parts)
            raise ClipError(f"codes of {_named(parts)}, and this is {this}; name the tokenizer that they are of")
        for part, codes in parts.items():
            try:
                self._check_part(codes, self.tokenizer.parts[part], self.fingerprints[part])
            except ClipError as error:
                raise ClipError(f"{part}: {error}" if part else str(error)) from None

    def _check_part(self, codes: Codes, tokenizer: MotionTokenizer, fingerprint: str) -> None:
        config = tokenizer.model.config
        if codes.fingerprint != fingerprint and not self.any_tokenizer:
            raise ClipError(
                f"codes of another tokenizer ({codes.fingerprint[:12]}, this one is {fingerprint[:12]}); "
                "--any_tokenizer decodes them all the same"
            )
        if codes.levels > config.num_quantizers or codes.codes.max() >= config.nb_code:
            raise ClipError(
                f"codes up to {codes.codes.max()} on {codes.levels} levels; this tokenizer has {config.nb_code} codes "
                f"on {config.num_quantizers} levels"
            )
        if self.levels is not None and codes.levels < self.levels:
            raise ClipError(f"holds {codes.levels} levels, --levels asks for {self.levels}")
        if abs(codes.fps / tokenizer.fps - 1) > 1e-6 or abs(codes.code_rate / tokenizer.code_rate - 1) > 1e-6:
            raise ClipError(
                f"{codes.code_rate:g} codes a second of motion at {codes.fps:g} frames a second; this tokenizer has "
                f"{tokenizer.code_rate:g} at {tokenizer.fps:g}"
            )

    def _source(self, codes: Codes, found: FoundFile) -> Path | None:
        """The file that what is not in the codes comes from; None for a format that is not written."""
        if codes.format not in (BEAT2, BVH):
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
        """What a file is decoded from and with, but for its source."""
        details = self.tokenizer.details
        settings = {"levels": self.levels, "matrices": self.matrices, "reading": details.get("reading") or {}}
        settings |= {} if self.fps is None else {"fps": self.fps}
        return {"codes": codes_content, "tokenizer": self.fingerprint, **settings}

    def _is_done(self, output: Path, made: Mapping[str, Any], source_content: str | None) -> bool:
        """Whether `output` is what would be decoded; raises ClipError where it is what is not to be written over."""
        if self.overwrite or not os.path.lexists(output):
            return False
        entry = None if self.record is None else self.record.of(output)
        if entry is None:
            raise ClipError(f"{output}: {_NOT_OURS}")
        if "content" not in entry:
            return False
        if content_of(output) != entry["content"]:
            if is_whole(output) if output.suffix != ".bvh" else output.stat().st_size:
                raise ClipError(f"{output} was changed since it was decoded; --overwrite replaces it")
            return False
        # Where its source is gone, it holds more than could be decoded now.
        return entry.get("made") == made and source_content in (entry.get("source"), None)

    def _timing(self, codes: Codes, file: Path | None) -> Timing | None:
        """The frame rate and frames of a file, or as the codes say; raises ClipError where they must but do not."""
        if file is not None:
            with self._reading(file, _KINDS[codes.format]):
                return timing_of(file, reading_config(self.tokenizer.details, self.tokenizer.fps, str(file)))
        if codes.source_fps:
            return Timing(codes.source_fps, codes.source_frames)
        if self.fps == "source":
            taken = codes.format in _KINDS
            how = ", and no source file is there: --source names it, --fps N a rate" if taken else ": --fps N says one"
            raise ClipError(f"says nothing of its source's frame rate{how}, or encode it again with --overwrite")
        return None

    def _write_beat2(
        self, output: Path, motion: NDArray[np.float32], layout: Layout, file: Path | None, fps: float
    ) -> tuple[str, ...]:
        """Writes the clip and tells what there is to say about it."""
        if file is None:
            write_beat2(output, motion, layout, fps, rest_source(len(motion), fps))
            return ("no source file, so that what the tokenizer does not cover is at rest (--source names one)",)
        config = reading_config(self.tokenizer.details, self.tokenizer.fps, str(file))
        with self._reading(file, _KINDS[BEAT2]):
            source = read_beat2_source(file, config)
            write_beat2(output, motion, layout, fps, source)
        notes = [f"{key} holds Python objects and was left out" for key in source.left_out]
        if self.source is None and notes:
            notes = ["arrays of Python objects in the source were left out"]
        return (*notes, *self._other_rate(source.fps, fps))

    def _write_bvh(
        self, output: Path, motion: NDArray[np.float32], layout: Layout, source: Path, fps: float
    ) -> tuple[str, ...]:
        """Writes the clip and tells what there is to say about it."""
        config = reading_config(self.tokenizer.details, fps, str(source))
        with self._reading(source, _KINDS[BVH]):
            source_fps = write_bvh(output, motion, layout, source, config)
        return self._other_rate(source_fps, fps)

    def _other_rate(self, source_fps: float, fps: float) -> tuple[str, ...]:
        """A note where a file is written at another frame rate than its source's."""
        return other_rate(source_fps, fps, "--fps source" if self.fps is None else "")

    @contextmanager
    def _reading(self, source: Path, kind: str) -> Iterator[None]:
        """Names the source in what is wrong with it. Where the codes name it, which can name any file, nothing of its
        content is quoted."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            if isinstance(error, UnfitError) or (isinstance(error, ClipError) and self.source is not None):
                raise ClipError(f"source {source}: {error}") from None
            if self.source is not None:
                raise
            line = re.match(r"(?:line|frame) \d+", str(error))
            where = f" ({line[0]})" if line else ""
            raise ClipError(
                f"source {source}: cannot be read as {kind}{where}; --source {source} says what is wrong"
            ) from None

    def _notes_of_matrix(
        self, codes: Codes, motion: NDArray[np.float32], layout: Layout, fps: float
    ) -> tuple[str, ...]:
        notes = []
        if codes.format == BVH and not self.matrices:
            notes.append("no source file, so that there is no hierarchy for a BVH file (--source names one)")
        if sum(own.width for own in layout) < motion.shape[1]:
            notes.append("columns of no part that has codes are at rest")
        return (*notes, *self._other_rate(codes.source_fps, fps))


def _content_of_source(source: Path) -> str | None:
    """`content_of` a source; raises ClipError for one that is too large to be motion, as codes can name any file."""
    with suppress(OSError):
        if (size := source.stat().st_size) > _LARGEST_SOURCE:
            raise ClipError(f"source {source}: {gibibytes(size, '.0f')}, more than any motion file has")
    return content_of(source)


def _named(parts: Iterable[str]) -> str:
    """What the tokenizer of these parts is called."""
    names = ", ".join(part for part in parts if part != ONLY_PART)
    return f"a body's tokenizer ({names})" if names else "a single tokenizer"
