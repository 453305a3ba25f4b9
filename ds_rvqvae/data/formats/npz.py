"""Reading NumPy files that nobody vouches for.

What a file declares is held against the bytes that it has, and against a limit, before memory is taken for it. Nothing
is unpickled. An npz is a zip archive with one `.npy` file an array (NumPy's NEP 1).
"""

import copy
import io
import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import to_say
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.rotations import same_rate
from ds_rvqvae.text import GIB, gibibytes

FPS_KEYS = ("mocap_frame_rate", "mocap_framerate", "fps", "mocap_fps", "frame_rate")
"""The keys of an npz that may say its frame rate."""
HEADER_BYTES = 128
"""Of the header that `write_header` writes, which numpy pads so that it keeps its length while the first axis grows."""
LARGEST = GIB
"""Bytes that an array may take, unless the caller says otherwise."""
_LONGEST_HEADER = 10_000
_MOST_ARRAYS = 10_000
_LOCAL_HEADER = 30
"""Bytes before a zip member's name; its data come after that."""
_DEFLATE = 1032
"""How many bytes deflate makes of one, at most."""
_BOMB, _BOMB_RATIO = 2**26, 100
"""Bytes of an array, and how many times the whole archive's, beyond which it is none of motion: such a file would take
gigabytes for its zeros."""
_CHUNK = 2**20
_HeaderReader = Callable[[BinaryIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]
"""Shape, whether in Fortran's order, and dtype; numpy leaves its own without types."""
NO_PICKLE = "no NumPy file of plain arrays; pickled Python objects are never loaded"


class RefusedError(ValueError):
    """Why a file or an array is not read."""


class Header(NamedTuple):
    """What an array's file declares."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    start: int
    """Bytes before the numbers."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_matrix(self) -> bool:
        """Whether it is real numbers in rows and columns."""
        return len(self.shape) == 2 and self.dtype.kind in "fiu"


class Npz:
    """The arrays of an npz archive, by key; closes with the file."""

    def __init__(self, stream: BinaryIO) -> None:
        """Raises RefusedError, or what zipfile raises on a damaged archive."""
        magic = stream.read(6)
        if magic == np.lib.format.MAGIC_PREFIX:
            raise RefusedError("a single array under the name of an npz archive")
        if magic and not magic.startswith(b"PK"):
            raise RefusedError(NO_PICKLE)
        self._archive = zipfile.ZipFile(stream)
        self._size = stream.seek(0, io.SEEK_END)
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._archive.infolist():
            key = member.filename.removesuffix(".npy")
            if key in self._members:
                raise RefusedError(f"damaged: {key[:40]} stands twice in the archive")
            self._members[key] = member
        self._check_places()

    @property
    def keys(self) -> list[str]:
        return list(self._members)

    def header(self, key: str) -> Header:
        """What an array declares; raises RefusedError."""
        with self._open(self._members[key]) as content:
            return _read_header(content)

    def read(self, key: str, largest: int = LARGEST) -> NDArray[Any]:
        """An array; raises RefusedError."""
        member = self._members[key]
        if member.file_size > largest + _LONGEST_HEADER + 12:
            raise RefusedError(_too_large(key, member.file_size, largest))
        if member.file_size > max(_BOMB, _BOMB_RATIO * self._size):
            raise RefusedError(f"{key} takes {member.file_size:,} bytes and its archive {self._size:,}: a zip bomb")
        with self._open(member) as content:
            array = _read_array(content, member.file_size, key, largest)
            if content.read(1):  # which also has zipfile look at the checksum
                raise RefusedError(f"damaged: {key} has more bytes than the archive says")
            return array

    def _open(self, member: zipfile.ZipInfo) -> IO[bytes]:
        name = member.filename[:40]
        if member.flag_bits & 0x41:
            raise RefusedError(f"{name} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RefusedError(f"{name} is compressed in a way that NumPy does not write")
        ratio = 1 if member.compress_type == zipfile.ZIP_STORED else _DEFLATE
        if not member.compress_size <= member.file_size + _CHUNK or member.file_size > ratio * member.compress_size:
            raise RefusedError(f"damaged: {name} cannot have {member.file_size} bytes in {member.compress_size}")
        longer = copy.copy(member)
        longer.file_size += 1  # so that a byte too many is seen
        return self._archive.open(longer)

    def _check_places(self) -> None:
        """Raises RefusedError where members share bytes, as those of a zip bomb do, or lie outside the file."""
        if len(self._members) > _MOST_ARRAYS:
            raise RefusedError(f"{len(self._members)} arrays in one archive, more than {_MOST_ARRAYS}")
        members = sorted(self._members.values(), key=lambda member: member.header_offset)
        starts = [*(member.header_offset for member in members), self._archive.start_dir]
        for member, start, following in zip(members, starts, starts[1:], strict=False):
            if start < 0 or start + _LOCAL_HEADER + member.compress_size > following:
                raise RefusedError(f"damaged: {member.filename[:40]} overlaps what follows it in the archive")


@contextmanager
def open_npz(file: Path) -> Iterator[Npz]:
    """The arrays of an npz; raises RefusedError, OSError, or what zipfile raises on a damaged archive."""
    with open_regular(file) as stream:
        yield Npz(stream)


def read_npy(file: Path, largest: int = LARGEST) -> NDArray[Any]:
    """The array of a `.npy` file; raises RefusedError or OSError."""
    with open_regular(file) as stream:
        return _read_array(stream, file.stat().st_size, "the array", largest)


def npy_header(file: Path) -> Header:
    """What a `.npy` file declares; raises RefusedError or OSError."""
    with open_regular(file) as stream:
        return _read_header(stream)


def open_regular(file: Path) -> BinaryIO:
    """A file opened for reading; raises RefusedError for a folder, a pipe or a device, which are not opened."""
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode):
        raise RefusedError("a folder, not a file" if stat.S_ISDIR(mode) else "no regular file")
    return file.open("rb")


def _read_header(stream: IO[bytes]) -> Header:
    magic = stream.read(8)
    if magic.startswith(b"PK"):
        raise RefusedError("an npz archive under the name of a single array")
    if magic and not magic.startswith(np.lib.format.MAGIC_PREFIX):
        raise RefusedError(NO_PICKLE)
    if len(magic) < 8 or magic[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise RefusedError("damaged or cut short: no NumPy header")
    size_bytes = 2 if magic[6] == 1 else 4
    size = stream.read(size_bytes)
    length = int.from_bytes(size, "little")
    if length > _LONGEST_HEADER:
        raise RefusedError(f"damaged: a header of {length} bytes")
    text = stream.read(length)
    if len(size) < size_bytes or len(text) < length:
        raise RefusedError("damaged or cut short: no whole NumPy header")
    read: _HeaderReader = np.lib.format.read_array_header_2_0
    if magic[6] == 1:
        read = np.lib.format.read_array_header_1_0
    shape, fortran_order, dtype = read(io.BytesIO(size + text))
    return Header(shape, dtype, fortran_order, 8 + size_bytes + length)


def _read_array(stream: IO[bytes], size: int, what: str, largest: int) -> NDArray[Any]:
    """The array in a stream that should have `size` bytes."""
    header = _read_header(stream)
    if header.dtype.hasobject:
        raise RefusedError(f"{what}: pickled Python objects are never loaded")
    if header.dtype.kind == "V" or not header.dtype.itemsize:
        raise RefusedError(f"{what} holds {str(header.dtype)[:40]}, not numbers")
    if any(not 0 <= length <= 2**48 for length in header.shape):
        raise RefusedError(f"damaged: {what} has shape {str(list(header.shape))[:60]}")
    if header.nbytes > largest:
        raise RefusedError(_too_large(what, header.nbytes, largest))
    if header.nbytes != size - header.start:
        words = f"declares {header.nbytes} bytes of numbers and has {size - header.start}"
        raise RefusedError(f"damaged or cut short: {what} {words}")
    content = np.empty(header.nbytes, np.uint8)  # memory is only taken as it is written to
    done = 0
    while done < header.nbytes:
        chunk = stream.read(min(_CHUNK, header.nbytes - done))
        if not chunk:
            raise RefusedError(f"damaged or cut short: {what} ends after {done} of {header.nbytes} bytes")
        content[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
        done += len(chunk)
    if (
        header.dtype.kind == "U"
        and (content.view(np.dtype("u4").newbyteorder(header.dtype.byteorder)) > 0x10FFFF).any()
    ):
        raise RefusedError(f"damaged: {what} holds what is no text")  # which NumPy would make strings of all the same
    values = content.view(header.dtype)
    return values.reshape(header.shape[::-1]).T if header.fortran_order else values.reshape(header.shape)


def _too_large(what: str, nbytes: int, largest: int) -> str:
    return f"{what} takes {gibibytes(nbytes, '.3g')}, more than the {gibibytes(largest, '.3g')} that an array may"


def write_header(content: BinaryIO, dtype: np.dtype[Any], rows: int, columns: int) -> None:
    """Writes what a `.npy` file of a matrix begins with. numpy pads it to one length for any number of rows."""
    write: Callable[[BinaryIO, dict[str, object]], None] = np.lib.format.write_array_header_1_0
    write(content, {"descr": dtype.str, "fortran_order": False, "shape": (rows, columns)})


def is_header(header: bytes, dtype: np.dtype[Any], rows: int, columns: int) -> bool:
    """Whether these are the bytes that `write_header` writes; with any numbers of spaces, as of other versions."""
    entries = {"descr": dtype.str, "fortran_order": False, "shape": (rows, columns)}
    literal = "{" + "".join(f"'{key}': {value!r}, " for key, value in entries.items()) + "}"
    text = header[10:].decode("latin-1").strip()
    return len(header) == HEADER_BYTES and header[:8] == b"\x93NUMPY\x01\x00" and text == literal


def map_matrix(
    file: str | Path, dtype: np.dtype[Any], rows: int, columns: int, folder: int | None = None
) -> NDArray[Any]:
    """A memory map of a `.npy` file that `write_header` began, `[rows, columns]`, read-only.

    Nothing that the file declares is believed: it has to be of this shape and dtype, and as long.

    Args:
        folder: descriptor of the folder that `file` is relative to.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is another one.
    """
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)  # a pipe would be waited on
    with os.fdopen(handle, "rb", buffering=0) as content:
        size, wanted = os.fstat(handle).st_size, HEADER_BYTES + rows * columns * dtype.itemsize
        if size != wanted:
            raise ValueError(f"has {size:,} bytes, not those of {rows:,} frames")
        if not is_header(content.read(HEADER_BYTES), dtype, rows, columns):
            raise ValueError(f"does not begin as an array of {rows:,} x {columns} {dtype}")
        # A plain view of the map: slicing np.memmap itself costs several times as much.
        return np.asarray(np.memmap(content, dtype, "r", HEADER_BYTES, (rows, columns)))


def write_npz(content: BinaryIO, arrays: Mapping[str, NDArray[Any]], compressed: bool = False) -> None:
    """Writes an npz as `np.savez` does, but under any key and the same bytes for the same arrays.

    Raises:
        ValueError: arrays of Python objects, which are never pickled.
    """
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(content, "w", method) as archive:
        for key, values in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy")
            entry.compress_type = method
            with archive.open(entry, "w", force_zip64=True) as member:
                np.save(member, values, allow_pickle=False)


def frame_rate(values: NDArray[Any], key: str) -> float:
    """The one positive number in `values`; raises ClipError."""
    if values.dtype.kind not in "fiu":
        raise ClipError(f"{key} holds {str(values.dtype)[:40]}, not a number of frames a second")
    if values.size != 1 or not 0 < float(values.reshape(-1)[0]) < 1e5:
        raise ClipError(f"{key} is {str(values)[:40]}, not a number of frames a second")
    return float(values.reshape(-1)[0])


def rate_of(arrays: Mapping[str, NDArray[Any]]) -> float | None:
    """Frames a second by those of `FPS_KEYS` that are there, as numbers or as text (`b"30"`); None where none is.

    29.97 and 30 are read alike, so they agree.

    Raises:
        ClipError: no frame rate, or two keys that disagree.
    """
    rates = {key: frame_rate(_as_number(arrays[key]), key) for key in FPS_KEYS if key in arrays}
    key, rate = next(iter(rates.items()), ("", None))
    for other, fps in rates.items():
        if rate is not None and not same_rate(fps, rate):
            source_fps = to_say("source_fps", "N")
            raise ClipError(f"{key} is {rate:g} and {other} is {fps:g} frames a second; {source_fps} says which")
    return rate


def other_rate(said: float | None, source_fps: float | None) -> tuple[str, ...]:
    """A note where a file says another frame rate than `rvqvae.data.source_fps`, which is taken."""
    if said is None or source_fps is None or same_rate(said, source_fps):
        return ()
    return (f"the file says {said:g} frames a second, but rvqvae.data.source_fps {source_fps:g} is taken",)


def _as_number(values: NDArray[Any]) -> NDArray[Any]:
    """The number that a text of it stands for; all else as it is."""
    if values.dtype.kind in "SU" and values.size == 1:
        with suppress(ValueError):
            return values.astype(np.float64)
    return values
