"""Motion files to codes files."""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ds_rvqvae.data.clips import ClipError, LeftOut, Reader, check_finite
from ds_rvqvae.data.files import FoundFile, is_regular, is_whole
from ds_rvqvae.data.motion_files import FORMATS, PACKED, open_motion_file
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import DataConfig
from ds_rvqvae.tokenizer.body import BodyTokenizer
from ds_rvqvae.tokenizer.clip_tokenizer import ClipTokenizer, as_clip_tokenizer
from ds_rvqvae.tokenizer.code_files import Codes, read_parts, write_codes
from ds_rvqvae.tokenizer.conversion import WORKERS, Converted, Report, checked_levels, convert_files, reason_of
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
        tokenizer: of a body, it takes BEAT2 npz only.
        paths: BEAT2 npz, packed npz (a folder with a file a clip), `.npy` matrices, and folders of them.
        out: folder of the codes files.
        levels: the first so many; all by default.
        overwrite: also what is done already, and files that hold something else.

    Raises:
        UserError: nothing to encode, two files with one name in `out`, or a folder that cannot be written.
    """
    return convert_files(_Encoder(as_clip_tokenizer(tokenizer), out, levels, overwrite), paths, workers)


class _Encoder:
    suffixes = (".npz", ".npy")

    def __init__(self, tokenizer: ClipTokenizer, out: Path, levels: int | None, overwrite: bool):
        self.tokenizer, self.out, self.overwrite = tokenizer, out, overwrite
        checked_levels(levels, tokenizer.parts)
        self.levels = {part: levels or own.model.config.num_quantizers for part, own in tokenizer.parts.items()}
        self.fingerprints = {part: own.fingerprint for part, own in tokenizer.parts.items()}
        self.model_lock = threading.Lock()
        self.claimed: dict[Path, str] = {}

    def start(self, found: Sequence[FoundFile]) -> None:
        """Nothing to prepare."""

    def convert(self, found: FoundFile) -> Iterator[Converted | LeftOut]:
        """A BEAT2 file or matrix is one clip, a packed npz has a folder of them."""
        reader = open_motion_file(found.file, DataConfig(path=str(found.file), fps=self.tokenizer.fps))
        kind, names = FORMATS[type(reader)], reader.clip_names()
        if kind not in self.tokenizer.formats:
            raise ClipError(f"motion of the format {kind}; this tokenizer takes {' or '.join(self.tokenizer.formats)}")
        if kind != PACKED:
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
                format=FORMATS[type(reader)],
            )
            for part, own in self.tokenizer.parts.items()
        }
        write_codes(output, results)
        return Converted(file, str(output), len(clip.motion) / self.tokenizer.fps)

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
    """The name of a packed clip; raises ClipError where it cannot be a file's."""
    if not name or name.startswith(".") or not name.isprintable() or Path(name).name != name:
        raise ClipError("the clip's name cannot be a file's")
    if names.count(name) > 1:
        raise ClipError("the clip's name stands twice")
    return name
