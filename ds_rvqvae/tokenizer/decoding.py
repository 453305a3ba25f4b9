"""Codes files to motion files."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ds_rvqvae.data.beat2 import CLIP_FOLDER, fps_of
from ds_rvqvae.data.clips import ClipError, check_finite
from ds_rvqvae.data.files import FoundFile, is_regular, is_whole, whole_file
from ds_rvqvae.data.motion_files import BEAT2, read_beat2_source, rest_source, same_rate, write_beat2, write_matrix
from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.code_files import Codes, read_codes
from ds_rvqvae.tokenizer.conversion import WORKERS, Converted, Report, checked_levels, convert_files
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

_RECORD = ".decoded.json"
"""In a folder of decoded motion: what it was decoded with. A file younger than it was decoded like that."""


def decode_files(
    tokenizer: MotionTokenizer,
    paths: Sequence[Path],
    out: Path,
    *,
    source: Path | None = None,
    levels: int | None = None,
    overwrite: bool = False,
    any_tokenizer: bool = False,
    workers: int = WORKERS,
) -> Report:
    """Decodes codes files: of BEAT2 clips into BEAT2 npz files, of others into `.npy` matrices.

    Args:
        paths: codes files, and folders of them.
        out: folder of the motion files.
        source: a BEAT2 file, or a folder of them with the codes' names, from which a clip takes what the tokenizer does
            not cover; by default the file that was encoded, if it is still there. Without one that is at rest.
        levels: the first so many; all that a file has by default.
        overwrite: also what is done already.
        any_tokenizer: decode codes of another tokenizer too.

    Raises:
        UserError: as `encode_files`; or `source` is not there, or one file for several clips.
    """
    decoder = _Decoder(tokenizer, out, levels, overwrite, source, any_tokenizer)
    return convert_files(decoder, paths, workers)


class _Decoder:
    suffixes = (".npz",)

    def __init__(
        self,
        tokenizer: MotionTokenizer,
        out: Path,
        levels: int | None,
        overwrite: bool,
        source: Path | None,
        any_tokenizer: bool,
    ):
        if source is not None and not source.exists():
            raise UserError(f"--source {source}: no such file or folder")
        self.tokenizer, self.out, self.overwrite = tokenizer, out, overwrite
        self.source, self.any_tokenizer = source, any_tokenizer
        self.levels = checked_levels(levels, tokenizer)
        self.fingerprint = tokenizer.fingerprint
        self.model_lock = threading.Lock()
        self.since = 0

    def start(self, found: Sequence[FoundFile]) -> None:
        """Notes in the folder what it is decoded with, so that the next run knows what is done."""
        if self.source is not None and self.source.is_file() and len(found) > 1:
            raise UserError(f"--source {self.source}: one file for {len(found)} clips; name a folder")
        record = self.out / _RECORD
        settings = {
            "fingerprint": self.fingerprint,
            "levels": self.levels,
            "source": None if self.source is None else str(self.source.absolute()),
        }
        try:
            there = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            there = None
        if there is None and not self.overwrite:
            outputs = (self.out / file.relative.with_suffix(suffix) for file in found for suffix in (".npz", ".npy"))
            in_the_way = next((output for output in outputs if os.path.lexists(output)), None)
            if in_the_way is not None:
                raise UserError(f"{in_the_way}: is there and was not decoded into this folder; --overwrite replaces it")
        if there != settings:
            with whole_file(record) as content:
                content.write(json.dumps(settings).encode())
        self.since = record.stat().st_mtime_ns

    def convert(self, found: FoundFile) -> Iterator[Converted]:
        codes = read_codes(found.file)
        self._check(codes)
        output = self.out / found.relative.with_suffix(".npz" if codes.format == BEAT2 else ".npy")
        source = self._source(codes, found) if codes.format == BEAT2 else None
        for original in filter(None, (source, Path(codes.source) if codes.source else None)):
            if os.path.realpath(original) == os.path.realpath(output):
                raise ClipError(f"{output} is its source, which is never written over; name another folder")
        if self._is_done(output, [found.file, *filter(None, [source])]):
            yield Converted(str(found.file), str(output), skipped=True)
            return
        with self.model_lock:
            motion = self.tokenizer.decode(codes.codes[:, : self.levels], codes.frames)
        check_finite(motion)
        notes: tuple[str, ...] = ()
        if codes.format == BEAT2:
            notes = self._write_beat2(output, motion, source)
        else:
            write_matrix(output, motion)
        yield Converted(str(found.file), str(output), codes.seconds, notes=notes)

    def _check(self, codes: Codes) -> None:
        """Raises ClipError where these are no codes of this tokenizer."""
        config = self.tokenizer.model.config
        if codes.fingerprint != self.fingerprint and not self.any_tokenizer:
            raise ClipError(
                f"codes of another tokenizer ({codes.fingerprint[:12]}, this one is {self.fingerprint[:12]}); "
                "--any_tokenizer decodes them all the same"
            )
        if codes.levels > config.num_quantizers or codes.codes.max() >= config.nb_code:
            raise ClipError(
                f"codes up to {codes.codes.max()} on {codes.levels} levels; this tokenizer has {config.nb_code} codes "
                f"on {config.num_quantizers} levels"
            )
        if self.levels is not None and codes.levels < self.levels:
            raise ClipError(f"holds {codes.levels} levels, --levels asks for {self.levels}")
        if abs(codes.fps / self.tokenizer.fps - 1) > 1e-6 or abs(codes.code_rate / self.tokenizer.code_rate - 1) > 1e-6:
            raise ClipError(
                f"{codes.code_rate:g} codes a second of motion at {codes.fps:g} frames a second; this tokenizer has "
                f"{self.tokenizer.code_rate:g} at {self.tokenizer.fps:g}"
            )

    def _source(self, codes: Codes, found: FoundFile) -> Path | None:
        name = Path(codes.source).name or found.file.name
        if self.source is None:
            places = [Path(codes.source)]
        elif self.source.is_dir():
            places = [self.source / found.relative, self.source / name, self.source / CLIP_FOLDER / name]
        else:
            places = [self.source]
        return next((place for place in places if is_regular(place)), None)

    def _is_done(self, output: Path, inputs: Sequence[Path]) -> bool:
        if self.overwrite or not output.is_file():
            return False
        newest = max(self.since, *(file.stat().st_mtime_ns for file in inputs))
        return output.stat().st_mtime_ns >= newest and is_whole(output)

    def _write_beat2(self, output: Path, motion: np.ndarray, file: Path | None) -> tuple[str, ...]:
        """Writes the clip and tells what there is to say about it."""
        fps = self.tokenizer.fps
        if file is None:
            write_beat2(output, motion, self.tokenizer.layout, fps, rest_source(len(motion), fps))
            return ("no source file, so that what the tokenizer does not cover is at rest (--source names one)",)
        try:
            source = read_beat2_source(file)
            write_beat2(output, motion, self.tokenizer.layout, fps, source)
        except ClipError as error:
            raise ClipError(f"source {file}: {error}") from None
        notes = [f"{key} holds Python objects and was left out" for key in source.left_out]
        if not same_rate(fps_of(source.arrays), fps):
            notes.append(f"source at {fps_of(source.arrays):g} frames a second, written at {fps:g}")
        return tuple(notes)
