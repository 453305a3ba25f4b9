"""The codes file: the npz of one clip's codes, which `ds-rvqvae encode` writes and `ds-rvqvae decode` reads.

| key | holds |
|---|---|
| `codes` | int32 `[ceil(frames / stride), levels]`: index into each level's codebook; -1 drops a level but the first |
| `fps` | frame rate of the motion when it was encoded |
| `code_rate` | codes per second |
| `frames` | number of frames of the motion when it was encoded; decoding cuts to it |
| `fingerprint` | of the tokenizer; for another tokenizer the codes have no meaning |
| `source` | absolute path of the motion file, as it was found; may be empty |
| `format` | format of the source, a value of `rvqvae.data.format`: `beat2`, `features` (a `.npy` matrix), `packed`, … |
| `source_content` | identifies that file's content: its size and its xxh3_128 hash; may be missing |
| `reading` | JSON: the tokenizer's settings by which the file was read; may be missing |
| `source_fps`, `source_frames` | frame rate and number of frames of the file itself; may be missing |
| `version` | version of this table: 1 |

A body's tokenizer writes `codes`, `code_rate` and `fingerprint` once per part, with the part in the key:
`codes_upper`, `codes_hands`, `codes_lower_trans`, `code_rate_upper` and so on, and no `codes`. The other keys
hold for all parts.

For a clip of a packed npz, `source` is the packed file. Codes are int32 and not int16, which silently overflows when
users add `level * nb_code`; the file is compressed, so the size hardly differs. Reading returns int64, the type that
torch indexes with.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import is_part_name
from ds_rvqvae.config.names import FORMATS
from ds_rvqvae.data.formats.base import load_npz, npz_keys
from ds_rvqvae.data.formats.finding import check_regular
from ds_rvqvae.data.formats.npz import write_npz
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.clip import ClipError

VERSION = 1
ONLY_PART = ""
"""The part of a single tokenizer; its keys have no part in their names."""

_LARGEST_TEXT = 2**18
"""Maximum bytes of each array except the codes: these are numbers, a path, and settings of the reader."""

_SHARED = ("version", "fps", "frames", "source", "format")
_OPTIONAL = ("source_content", "reading")
_TIMING = ("source_fps", "source_frames")
_OF_A_PART = ("codes", "code_rate", "fingerprint")
_PREFIXES = tuple(f"{name}_" for name in _OF_A_PART)


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of one clip, or of one part of it, and where they come from; the module's table explains the fields."""

    codes: NDArray[np.int64]
    """int64 `[ceil(frames / stride), levels]`."""
    fps: float
    code_rate: float
    frames: int
    fingerprint: str
    source: str = ""
    format: str = "features"
    source_content: str = ""
    """Empty in older files, which do not have it."""
    reading: str = ""
    source_fps: float = 0.0
    """0 in files that do not have it."""
    source_frames: int = 0

    @property
    def levels(self) -> int:
        return int(self.codes.shape[1])

    @property
    def seconds(self) -> float:
        """The length of the motion."""
        return self.frames / self.fps


def write_codes(file: str | Path, codes: Codes | Mapping[str, Codes]) -> None:
    """Writes a codes npz, atomically.

    Args:
        codes: of a single tokenizer; or of a body's tokenizer, by part, all of one clip.

    Raises:
        ValueError: codes that reading would refuse.
        OSError: the file cannot be written.
    """
    content = _written({ONLY_PART: codes} if isinstance(codes, Codes) else dict(codes))
    with whole_file(Path(file)) as unfinished:
        unfinished.write(content)


def _written(parts: Mapping[str, Codes]) -> bytes:
    """Returns the bytes of the npz; raises ValueError."""
    if parts.keys() != {ONLY_PART} and not (parts and all(map(is_part_name, parts))):
        raise ValueError(f"codes are named {list(parts)}: these are not names of body parts")
    first = next(iter(parts.values()))
    for part, own in parts.items():
        for name in ("fps", "frames", "source", "format", *_OPTIONAL, *_TIMING):
            if getattr(own, name) != getattr(first, name):
                found = f"{getattr(first, name)} and, for {part}, {getattr(own, name)}"
                raise ValueError(f"codes are not of one clip: {name} is {found}")
    arrays = {_key("codes", part): np.asarray(own.codes) for part, own in parts.items()}
    arrays["fps"] = np.array(first.fps, np.float64)
    arrays |= {_key("code_rate", part): np.array(own.code_rate, np.float64) for part, own in parts.items()}
    arrays["frames"] = np.array(first.frames, np.int64)
    arrays |= {_key("fingerprint", part): np.array(own.fingerprint) for part, own in parts.items()}
    arrays |= {"source": np.array(first.source), "format": np.array(first.format), "version": np.array(VERSION)}
    arrays |= {name: np.array(text) for name in _OPTIONAL if (text := getattr(first, name))}
    if first.source_fps and first.source_frames:
        arrays |= {"source_fps": np.array(first.source_fps, np.float64)}
        arrays |= {"source_frames": np.array(first.source_frames, np.int64)}
    try:
        for part in parts:
            _codes_of(arrays, part)
    except ClipError as error:
        raise ValueError(str(error)) from None
    for part in parts:
        arrays[_key("codes", part)] = arrays[_key("codes", part)].astype(np.int32)
    written = io.BytesIO()
    write_npz(written, arrays, compressed=True)
    return written.getvalue()


def is_as_written(file: Path, codes: Mapping[str, Codes]) -> bool:
    """Returns whether a file has exactly the bytes that `write_codes` writes for the codes that were read from it.

    An archive can often be read although some of its bytes were damaged.
    """
    try:
        return file.read_bytes() == _written(codes)
    except (OSError, ValueError):
        return False


def read_codes(file: str | Path) -> Codes:
    """Reads the codes npz of a single tokenizer.

    Raises:
        UserError: names the file and the problem.
    """
    parts = read_parts(file)
    if ONLY_PART not in parts:
        raise UserError(f"{file}: holds codes of a body's parts ({', '.join(parts)}); read it with read_body_codes")
    return parts[ONLY_PART]


def read_body_codes(file: str | Path) -> dict[str, Codes]:
    """Reads the codes npz of a body's tokenizer, by part; `fps`, `frames`, `source` and `format` are the same in all.

    Raises:
        UserError: names the file and the problem.
    """
    parts = read_parts(file)
    if ONLY_PART in parts:
        raise UserError(f"{file}: holds codes of a single tokenizer, not of a body's; read it with read_codes")
    return parts


def read_parts(file: str | Path) -> dict[str, Codes]:
    """Reads either kind of codes npz: a body's by part, a single tokenizer's under `ONLY_PART`.

    Raises:
        UserError: names the file and the problem.
    """
    file = Path(file)
    try:
        check_regular(file)
        parts = _parts_of(npz_keys(file))
        required = (*_SHARED, *(_key(name, part) for part in parts for name in _OF_A_PART))
        codes = [_key("codes", part) for part in parts]
        small = [key for key in required if key not in codes]
        arrays = load_npz(file, codes) | load_npz(file, small, (*_OPTIONAL, *_TIMING), largest=_LARGEST_TEXT)
        return {part: _codes_of(arrays, part) for part in parts}
    except ClipError as error:
        raise UserError(f"{file}: {error}") from None


def _key(name: str, part: str) -> str:
    return f"{name}_{part}" if part else name


def _parts_of(keys: Sequence[str]) -> list[str]:
    """Returns the parts of a codes npz with these keys; raises ClipError."""
    if "codes" in keys:
        return [ONLY_PART]
    # All keys of a part count, so that a part whose codes are missing is found, and refused later.
    found = [(key, key.removeprefix(prefix)) for key in keys for prefix in _PREFIXES if key.startswith(prefix)]
    for key, part in found:
        if not is_part_name(part):
            raise ClipError(f"{key}: {part!r} cannot be the name of a body part")
    return list(dict.fromkeys(part for _, part in found)) or [ONLY_PART]


def _codes_of(arrays: dict[str, NDArray[Any]], part: str) -> Codes:
    """Checks and returns the codes of a part; raises ClipError."""
    version = _number(arrays, "version", "iu")
    if version != VERSION:
        raise ClipError(f"is a codes file of version {version:g}; this release reads version {VERSION}")
    key = _key("codes", part)
    codes = arrays[key]
    if codes.dtype.kind not in "iu" or codes.ndim != 2 or not codes.size:
        raise ClipError(f"{key} are {codes.dtype} {list(codes.shape)}, not integers [time, levels]")
    if codes.min() < -1 or codes[:, 0].min() < 0 or codes.max() > np.iinfo(np.int32).max:
        raise ClipError(f"{key} are {codes.min()} to {codes.max()}; codes count from 0, and -1 is a dropped level")
    fps, code_rate, frames = (_number(arrays, name) for name in ("fps", _key("code_rate", part), "frames"))
    stride = round(fps / code_rate)
    if frames != int(frames) or -(-int(frames) // max(stride, 1)) != len(codes):
        raise ClipError(f"{len(codes)} {key} of {stride} frames each do not make {frames:g} frames")
    kind = _text(arrays, "format")
    if kind not in FORMATS:
        raise ClipError(f"format is {kind!r}, not one of {', '.join(FORMATS)}")
    fingerprint, source = _text(arrays, _key("fingerprint", part)), _text(arrays, "source")
    if "\0" in source:
        raise ClipError("source is not a file's path")
    content, reading = (_text(arrays, name) if name in arrays else "" for name in _OPTIONAL)
    source_fps, source_frames = (_number(arrays, name) if name in arrays else 0.0 for name in _TIMING)
    return Codes(
        codes.astype(np.int64),
        fps,
        code_rate,
        int(frames),
        fingerprint,
        source,
        kind,
        content,
        reading,
        source_fps,
        int(source_frames),
    )


def _number(arrays: dict[str, NDArray[Any]], key: str, kinds: str = "fiu") -> float:
    values = arrays[key]
    if values.shape != () or values.dtype.kind not in kinds or not 0 < float(values) < 1e15:
        raise ClipError(f"{key} is {str(values)[:40]}, not a positive number")
    return float(values)


def _text(arrays: dict[str, NDArray[Any]], key: str) -> str:
    values = arrays[key]
    if values.shape != () or values.dtype.kind != "U":
        raise ClipError(f"{key} holds {values.dtype} {list(values.shape)}, not text")
    return str(values)
