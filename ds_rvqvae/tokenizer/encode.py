"""Encode motion files into codes files."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ds_rvqvae.data.files import whole_clip
from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.finding import FoundFile, is_regular, is_whole
from ds_rvqvae.data.formats.writing import PACKED, open_motion_file
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import content_of
from ds_rvqvae.motion.clip import ClipError, LeftOut
from ds_rvqvae.tokenizer.body import BodyTokenizer
from ds_rvqvae.tokenizer.clips import ClipTokenizer, as_clip_tokenizer
from ds_rvqvae.tokenizer.codes import Codes, is_as_written, read_parts, write_codes
from ds_rvqvae.tokenizer.convert import WORKERS, Converted, Report, checked_levels, convert_files, reason_of
from ds_rvqvae.tokenizer.folder import reading_config, reading_of
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer


def encode_files(
    tokenizer: MotionTokenizer | BodyTokenizer,
    paths: Sequence[Path],
    out: Path,
    *,
    levels: int | None = None,
    overwrite: bool = False,
    workers: int = WORKERS,
) -> Report:
    """Encodes motion files into codes files (see `ds_rvqvae.tokenizer.codes`) with the same names and folders.

    A codes file is skipped if it is complete, of this tokenizer, has as many levels and was made from the same content;
    all motion files are read to check that.

    Args:
        tokenizer: takes its columns by name, wherever they are in a file.
        paths: motion files of any format, and folders of them; a packed npz becomes a folder with one file per clip.
        out: folder of the codes files.
        levels: how many levels to write, from the first; all by default.
        overwrite: also encode files that are done already, and replace files that hold something else.

    Raises:
        UserError: nothing to encode, two files with the same name in `out`, or a folder that cannot be written.
    """
    return convert_files(_Encoder(as_clip_tokenizer(tokenizer), out, levels, overwrite), paths, workers)


class _Encoder:
    suffixes: tuple[str, ...] = (".npz", ".npy", ".bvh")

    def __init__(self, tokenizer: ClipTokenizer, out: Path, levels: int | None, overwrite: bool) -> None:
        self.tokenizer, self.out, self.overwrite = tokenizer, out, overwrite
        checked_levels(levels, tokenizer.parts)
        self.levels = {part: levels or own.model.config.num_quantizers for part, own in tokenizer.parts.items()}
        self.fingerprints = {part: own.fingerprint for part, own in tokenizer.parts.items()}
        own = list(tokenizer.parts.values())
        if any(part.kind == "angle" for one in own for part in one.layout):
            self.suffixes += (".csv",)  # other motion may have tables of text or emotions beside it
        self.wanted = own[0].layout if len(own) == 1 else None
        self.model_lock = threading.Lock()
        self.claimed: dict[Path, str] = {}

    def start(self, found: Sequence[FoundFile]) -> None:
        """Nothing to prepare."""

    def convert(self, found: FoundFile) -> Iterator[Converted | LeftOut]:
        """Encodes a file's one clip, or all clips of a packed npz into a folder."""
        config = reading_config(self.tokenizer.details, self.tokenizer.fps, str(found.file))
        content = content_of(found.file) or ""  # first, so that a file which changes meanwhile is encoded again later
        reader = open_motion_file(found.file, config, self.wanted)
        names = reader.clip_names()
        if reader.key != PACKED:
            output = self.out / found.relative.with_suffix(".npz")
            yield self._encode(reader, names[0], content, str(found.file), output)
            return
        for name in names:
            file = f"{found.file}: {name}"
            try:
                output = self.out / found.relative.with_suffix("") / f"{_file_name(name, names)}.npz"
                yield self._encode(reader, name, content, file, output)
            except Exception as error:  # no problem with one clip may stop the others
                yield LeftOut(file, reason_of(error, found.file))

    def _encode(self, reader: Reader, name: str, content: str, file: str, output: Path) -> Converted:
        """Encodes one clip of a file of this content; raises ClipError."""
        # A clip packed in task.npz and a file task/clip.npz have the same output.
        other = self.claimed.setdefault(output, file)
        if other != file:
            raise ClipError(f"{output} is already the output of {other}")
        reading = _reading(reader)
        there = self._there(output, reader.path)
        is_done = {(own.source_content, own.reading) for own in there.values()} == {(content, reading)}
        if is_done and is_as_written(output, there):
            return Converted(file, str(output), skipped=True)
        clip, take, notes = whole_clip(reader, name)
        with self.model_lock:
            codes = self.tokenizer.encode_clip(clip)
        results = {
            part: Codes(
                codes[part][:, : self.levels[part]],
                fps=own.fps,
                code_rate=own.code_rate,
                frames=len(clip.motion),
                fingerprint=self.fingerprints[part],
                source=str(reader.path.absolute()),
                format=reader.key,
                source_content=content,
                reading=reading,
                source_fps=take.fps,
                source_frames=len(take.motion),
            )
            for part, own in self.tokenizer.parts.items()
        }
        if is_done and any(not np.array_equal(there[part].codes, own.codes) for part, own in results.items()):
            raise ClipError(f"{output} was changed after it was encoded; --overwrite replaces it")
        write_codes(output, results)
        before = any(not own.source_content for own in there.values())
        notes += ("encoded again, because an older version did not record the content of its source",) if before else ()
        return Converted(file, str(output), len(clip.motion) / self.tokenizer.fps, notes=notes)

    def _there(self, output: Path, path: Path) -> dict[str, Codes]:
        """Returns the codes in `output`, by part, if all are of this tokenizer and these levels; else none.

        Raises:
            ClipError: `output` must not be overwritten.
        """
        if self.overwrite or not os.path.lexists(output):
            return {}
        try:
            there = read_parts(output)
        except UserError:
            if is_whole(output):
                raise ClipError(f"{output} exists and is not a codes file; --overwrite replaces it") from None
            return {}
        source = Path(next(iter(there.values())).source)
        if source != path.absolute() and is_regular(source):
            raise ClipError(f"{output} holds the codes of {source}; --overwrite replaces them")
        same = {part: own.fingerprint for part, own in there.items()} == self.fingerprints
        return there if same and {part: own.levels for part, own in there.items()} == self.levels else {}


def _reading(reader: Reader) -> str:
    """Returns, in JSON, the settings and facts by which a reader reads its file."""
    config, facts = reader.config, reader.reading_facts()
    settings = reading_of(config.model_dump(mode="json"))
    return json.dumps(settings | ({"facts": facts} if facts else {}), sort_keys=True)


def _file_name(name: str, names: Sequence[str]) -> str:
    """Returns a packed clip's name, which may have folders; raises ClipError if it cannot be a file's name."""
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(not part or part.startswith(".") for part in parts):
        raise ClipError("the clip's name cannot be a file's name")
    if names.count(name) > 1:
        raise ClipError("the clip's name occurs twice in the file")
    return name
