"""Motion files to codes files."""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.data.formats.finding import FoundFile, is_regular, is_whole
from ds_rvqvae.data.formats.writing import PACKED, open_motion_file
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, LeftOut, check_finite
from ds_rvqvae.tokenizer.body import BodyTokenizer
from ds_rvqvae.tokenizer.clips import ClipTokenizer, as_clip_tokenizer
from ds_rvqvae.tokenizer.codes import Codes, read_parts, write_codes
from ds_rvqvae.tokenizer.convert import WORKERS, Converted, Report, checked_levels, convert_files, reason_of
from ds_rvqvae.tokenizer.folder import reading_config
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
    """Encodes motion files into codes files (`code_files`) of the same names and folders.

    A codes file that is whole, of this tokenizer, of as many levels and younger than its motion is skipped.

    Args:
        tokenizer: takes its columns by name, wherever they stand in a file.
        paths: BEAT2 npz, BVH, packed npz (a folder with a file a clip), `.npy` matrices, and folders of them.
        out: folder of the codes files.
        levels: the first so many; all by default.
        overwrite: also what is done already, and files that hold something else.

    Raises:
        UserError: nothing to encode, two files with one name in `out`, or a folder that cannot be written.
    """
    return convert_files(_Encoder(as_clip_tokenizer(tokenizer), out, levels, overwrite), paths, workers)


class _Encoder:
    suffixes: tuple[str, ...] = (".npz", ".npy", ".bvh")

    def __init__(self, tokenizer: ClipTokenizer, out: Path, levels: int | None, overwrite: bool) -> None:
        self.tokenizer, self.out, self.overwrite = tokenizer, out, overwrite
        checked_levels(levels, tokenizer.parts)
        self.levels = {part: levels or own.model.config.num_quantizers for part, own in tokenizer.parts.items()}
        self.fingerprints = {part: own.fingerprint for part, own in tokenizer.parts.items()}
        self.model_lock = threading.Lock()
        self.claimed: dict[Path, str] = {}

    def start(self, found: Sequence[FoundFile]) -> None:
        """Nothing to prepare."""

    def convert(self, found: FoundFile) -> Iterator[Converted | LeftOut]:
        """A file is one clip, but a packed npz has a folder of them."""
        config = reading_config(self.tokenizer.details, self.tokenizer.fps, str(found.file))
        reader = open_motion_file(found.file, config)
        names = reader.clip_names()
        if reader.key != PACKED:
            output = self.out / found.relative.with_suffix(".npz")
            yield self._encode(reader, names[0], found.file, str(found.file), output)
            return
        for name in names:
            file = f"{found.file}: {name}"
            try:
                output = self.out / found.relative.with_suffix("") / f"{_file_name(name, names)}.npz"
                yield self._encode(reader, name, found.file, file, output)
            except Exception as error:  # one clip, whatever is wrong with it, does not stop the others
                yield LeftOut(file, reason_of(error, found.file))

    def _encode(self, reader: Reader, name: str, path: Path, file: str, output: Path) -> Converted:
        # A clip packed in task.npz and a file task/clip.npz have one output.
        other = self.claimed.setdefault(output, file)
        if other != file:
            raise ClipError(f"{output} is already that of {other}")
        if self._is_done(output, path):
            return Converted(file, str(output), skipped=True)
        clip = reader.read(name)
        check_finite(clip.motion)
        with self.model_lock:
            codes = self.tokenizer.encode_clip(clip)
        results = {
            part: Codes(
                codes[part][:, : self.levels[part]],
                fps=own.fps,
                code_rate=own.code_rate,
                frames=len(clip.motion),
                fingerprint=self.fingerprints[part],
                source=str(path.absolute()),
                format=reader.key,
            )
            for part, own in self.tokenizer.parts.items()
        }
        write_codes(output, results)
        return Converted(file, str(output), len(clip.motion) / self.tokenizer.fps, notes=reader.notes)

    def _is_done(self, output: Path, path: Path) -> bool:
        """Whether `output` holds these codes; raises ClipError where it holds what is not to be written over."""
        if self.overwrite or not os.path.lexists(output):
            return False
        try:
            there = read_parts(output)
        except UserError:
            if is_whole(output):
                raise ClipError(f"{output} is there and holds no codes; --overwrite replaces it") from None
            return False
        source = Path(next(iter(there.values())).source)
        if source != path.absolute() and is_regular(source):
            raise ClipError(f"{output} holds the codes of {source}; --overwrite replaces them")
        same = {part: own.fingerprint for part, own in there.items()} == self.fingerprints
        same = same and {part: own.levels for part, own in there.items()} == self.levels
        return same and output.stat().st_mtime_ns >= path.stat().st_mtime_ns


def _file_name(name: str, names: Sequence[str]) -> str:
    """The name of a packed clip, which may have folders; raises ClipError where it cannot be a file's."""
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(not part or part.startswith(".") for part in parts):
        raise ClipError("the clip's name cannot be a file's")
    if names.count(name) > 1:
        raise ClipError("the clip's name stands twice")
    return name
