"""The npz of one clip's codes, what `ds-rvqvae encode` writes and `ds-rvqvae decode` reads.

| key | holds |
|---|---|
| `codes` | int32 `[ceil(frames / stride), levels]`: index into each level's codebook; -1 drops a level but the first |
| `fps` | frames a second of the motion as it was encoded |
| `code_rate` | codes a second |
| `frames` | frames of the motion as it was encoded, which decoding cuts to |
| `fingerprint` | the tokenizer's: codes mean nothing to another |
| `source` | absolute path of the motion file, as it was found; may be empty |
| `format` | what the source was: `beat2`, `features` (a `.npy` matrix) or `packed` |
| `version` | of this table: 1 |

A clip of a packed npz has the file's name. int32 rather than int16, which overflows without a word where somebody adds
`level * nb_code`; the file is compressed, so that it hardly matters. `read_codes` gives int64, what torch indexes with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ds_rvqvae.data.clips import ClipError, load_npz
from ds_rvqvae.data.files import check_regular, whole_file, write_npz
from ds_rvqvae.errors import UserError

VERSION = 1
SourceFormat = Literal["beat2", "features", "packed"]
_KEYS = ("version", "codes", "fps", "code_rate", "frames", "fingerprint", "source", "format")


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of one clip, and what they are codes of; the fields are the module's table."""

    codes: np.ndarray
    """int64 `[ceil(frames / stride), levels]`."""
    fps: float
    code_rate: float
    frames: int
    fingerprint: str
    source: str = ""
    format: SourceFormat = "features"

    @property
    def levels(self) -> int:
        return self.codes.shape[1]

    @property
    def seconds(self) -> float:
        """How long the motion lasts."""
        return self.frames / self.fps


def write_codes(file: str | Path, codes: Codes) -> None:
    """Writes a codes npz, whole or not at all.

    Raises:
        ValueError: codes that `read_codes` would refuse.
        OSError: the file cannot be written.
    """
    arrays = {
        "codes": np.asarray(codes.codes),
        "fps": np.array(codes.fps, np.float64),
        "code_rate": np.array(codes.code_rate, np.float64),
        "frames": np.array(codes.frames, np.int64),
        "fingerprint": np.array(codes.fingerprint),
        "source": np.array(codes.source),
        "format": np.array(codes.format),
        "version": np.array(VERSION),
    }
    try:
        _codes_of(arrays)
    except ClipError as error:
        raise ValueError(str(error)) from None
    arrays["codes"] = arrays["codes"].astype(np.int32)
    with whole_file(Path(file)) as content:
        write_npz(content, arrays, compressed=True)


def read_codes(file: str | Path) -> Codes:
    """Reads a codes npz.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    file = Path(file)
    try:
        check_regular(file)
        return _codes_of(load_npz(file, _KEYS))
    except ClipError as error:
        raise UserError(f"{file}: {error}") from None


def _codes_of(arrays: dict[str, np.ndarray]) -> Codes:
    """Checks what a codes npz holds; raises ClipError."""
    version = _number(arrays, "version", "iu")
    if version != VERSION:
        raise ClipError(f"a codes file of version {version:g}, known here: {VERSION}")
    codes = arrays["codes"]
    if codes.dtype.kind not in "iu" or codes.ndim != 2 or not codes.size:
        raise ClipError(f"codes are {codes.dtype} {list(codes.shape)}, not integers [time, levels]")
    if codes.min() < -1 or codes[:, 0].min() < 0 or codes.max() > np.iinfo(np.int32).max:
        raise ClipError(f"codes from {codes.min()} to {codes.max()}: they count from 0, -1 being a dropped level")
    fps, code_rate, frames = (_number(arrays, key) for key in ("fps", "code_rate", "frames"))
    stride = round(fps / code_rate)
    if frames != int(frames) or -(-int(frames) // max(stride, 1)) != len(codes):
        raise ClipError(f"{len(codes)} codes of {stride} frames do not stand for {frames:g} frames")
    kind = _text(arrays, "format")
    if kind not in get_args(SourceFormat):
        raise ClipError(f"format is {kind!r}, none of {', '.join(get_args(SourceFormat))}")
    fingerprint, source = _text(arrays, "fingerprint"), _text(arrays, "source")
    return Codes(codes.astype(np.int64), fps, code_rate, int(frames), fingerprint, source, kind)


def _number(arrays: dict[str, np.ndarray], key: str, kinds: str = "fiu") -> float:
    values = arrays[key]
    if values.shape != () or values.dtype.kind not in kinds or not 0 < float(values) < 1e15:
        raise ClipError(f"{key} is {str(values)[:40]}, not a positive number")
    return float(values)


def _text(arrays: dict[str, np.ndarray], key: str) -> str:
    values = arrays[key]
    if values.shape != () or values.dtype.kind != "U":
        raise ClipError(f"{key} holds {values.dtype} {list(values.shape)}, not text")
    return str(values)
