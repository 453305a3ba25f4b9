"""Reads untrusted NumPy files, and writes NumPy files.

The size that a file declares is compared with its real size and with a limit before memory is allocated. Nothing is
unpickled. An npz is a zip archive with one `.npy` file per array (NumPy's NEP 1).
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
"""Length of the header that `write_header` writes; numpy pads it, so it stays the same while the first axis grows."""
LARGEST = GIB
"""The most bytes that an array may take, unless the caller sets another limit."""
_LONGEST_HEADER = 10_000
_MOST_ARRAYS = 10_000
_LOCAL_HEADER = 30
"""Bytes before a zip member's name; its data come after the name."""
_DEFLATE = 1032
"""The largest ratio of compression that deflate can reach."""
_BOMB, _BOMB_RATIO = 2**26, 100
"""An array of more bytes than the first, and than the second times the archive's, cannot be motion: it would fill
gigabytes of memory with zeros."""
_CHUNK = 2**20
_HeaderReader = Callable[[BinaryIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]
"""The type of numpy's functions that read a header, which it does not annotate: shape, Fortran order, dtype."""
NO_PICKLE = "not a NumPy file of plain arrays; pickled Python objects are never loaded"


class RefusedError(ValueError):
    """A file or an array is not read, for the reason given."""


class Header(NamedTuple):
    """The header of an array's file."""

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
        """Whether the array is a matrix of real numbers."""
        return len(self.shape) == 2 and self.dtype.kind in "fiu"


class Npz:
    """The arrays of an npz archive, by key, usable while the file is open."""

    def __init__(self, stream: BinaryIO) -> None:
        """Reads the directory of the archive.

        Raises:
            RefusedError: it is not an npz, or is damaged. For some damage, zipfile's own errors are raised.
        """
        magic = stream.read(6)
        if magic == np.lib.format.MAGIC_PREFIX:
            raise RefusedError("a single array with the suffix of an npz archive")
        if magic and not magic.startswith(b"PK"):
            raise RefusedError(NO_PICKLE)
        self._archive = zipfile.ZipFile(stream)
        self._size = stream.seek(0, io.SEEK_END)
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._archive.infolist():
            key = member.filename.removesuffix(".npy")
            if key in self._members:
                raise RefusedError(f"damaged: {key[:40]} occurs twice in the archive")
            self._members[key] = member
        self._check_places()

    @property
    def keys(self) -> list[str]:
        return list(self._members)

    def header(self, key: str) -> Header:
        """Reads an array's header; raises RefusedError."""
        with self._open(self._members[key]) as content:
            return _read_header(content)

    def read(self, key: str, largest: int = LARGEST) -> NDArray[Any]:
        """Reads an array; raises RefusedError."""
        member = self._members[key]
        if member.file_size > largest + _LONGEST_HEADER + 12:
            raise RefusedError(_too_large(key, member.file_size, largest))
        if member.file_size > max(_BOMB, _BOMB_RATIO * self._size):
            raise RefusedError(f"{key} takes {member.file_size:,} bytes and its archive {self._size:,}: a zip bomb")
        with self._open(member) as content:
            array = _read_array(content, member.file_size, key, largest)
            if content.read(1):  # this read also makes zipfile check the checksum
                raise RefusedError(f"damaged: {key} has more bytes than the archive says")
            return array

    def _open(self, member: zipfile.ZipInfo) -> IO[bytes]:
        name = member.filename[:40]
        if member.flag_bits & 0x41:
            raise RefusedError(f"{name} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RefusedError(f"{name} is compressed by a method that NumPy does not use")
        ratio = 1 if member.compress_type == zipfile.ZIP_STORED else _DEFLATE
        if not member.compress_size <= member.file_size + _CHUNK or member.file_size > ratio * member.compress_size:
            raise RefusedError(f"damaged: {name} cannot have {member.file_size} bytes in {member.compress_size}")
        longer = copy.copy(member)
        longer.file_size += 1  # so that a surplus byte is noticed
        return self._archive.open(longer)

    def _check_places(self) -> None:
        """Raises RefusedError if members overlap, as in a zip bomb, or lie outside the file."""
        if len(self._members) > _MOST_ARRAYS:
            raise RefusedError(f"{len(self._members)} arrays in one archive, more than {_MOST_ARRAYS}")
        members = sorted(self._members.values(), key=lambda member: member.header_offset)
        starts = [*(member.header_offset for member in members), self._archive.start_dir]
        for member, start, following in zip(members, starts, starts[1:], strict=False):
            if start < 0 or start + _LOCAL_HEADER + member.compress_size > following:
                raise RefusedError(f"damaged: {member.filename[:40]} overlaps what follows it in the archive")


@contextmanager
def open_npz(file: Path) -> Iterator[Npz]:
    """Opens an npz; raises RefusedError, OSError, or zipfile's errors for a damaged archive."""
    with open_regular(file) as stream:
        yield Npz(stream)


def read_npy(file: Path, largest: int = LARGEST) -> NDArray[Any]:
    """Reads the array of a `.npy` file; raises RefusedError or OSError."""
    with open_regular(file) as stream:
        return _read_array(stream, file.stat().st_size, "the array", largest)


def npy_header(file: Path) -> Header:
    """Reads the header of a `.npy` file; raises RefusedError or OSError."""
    with open_regular(file) as stream:
        return _read_header(stream)


def open_regular(file: Path) -> BinaryIO:
    """Opens a file for reading; raises RefusedError for a folder, a pipe or a device, which are not opened."""
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode):
        raise RefusedError("a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")
    return file.open("rb")


def _read_header(stream: IO[bytes]) -> Header:
    magic = stream.read(8)
    if magic.startswith(b"PK"):
        raise RefusedError("an npz archive with the suffix of a single array")
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
        raise RefusedError("damaged or cut short: the NumPy header is incomplete")
    read: _HeaderReader = np.lib.format.read_array_header_2_0
    if magic[6] == 1:
        read = np.lib.format.read_array_header_1_0
    shape, fortran_order, dtype = read(io.BytesIO(size + text))
    return Header(shape, dtype, fortran_order, 8 + size_bytes + length)


def _read_array(stream: IO[bytes], size: int, what: str, largest: int) -> NDArray[Any]:
    """Reads the array in a stream that should have `size` bytes."""
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
    content = np.empty(header.nbytes, np.uint8)  # the system gives the memory only when it is written to
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
        raise RefusedError(f"damaged: {what} holds invalid text")  # NumPy would make strings from it all the same
    values = content.view(header.dtype)
    return values.reshape(header.shape[::-1]).T if header.fortran_order else values.reshape(header.shape)


def _too_large(what: str, nbytes: int, largest: int) -> str:
    return f"{what} takes {gibibytes(nbytes, '.3g')}, more than the {gibibytes(largest, '.3g')} allowed per array"


def write_header(content: BinaryIO, dtype: np.dtype[Any], rows: int, columns: int) -> None:
    """Writes the header of a matrix's `.npy` file. numpy pads it to the same length for any number of rows."""
    write: Callable[[BinaryIO, dict[str, object]], None] = np.lib.format.write_array_header_1_0
    write(content, {"descr": dtype.str, "fortran_order": False, "shape": (rows, columns)})


def is_header(header: bytes, dtype: np.dtype[Any], rows: int, columns: int) -> bool:
    """Returns whether these are the bytes of `write_header`, with any padding, since numpy's versions differ in it."""
    entries = {"descr": dtype.str, "fortran_order": False, "shape": (rows, columns)}
    literal = "{" + "".join(f"'{key}': {value!r}, " for key, value in entries.items()) + "}"
    text = header[10:].decode("latin-1").strip()
    return len(header) == HEADER_BYTES and header[:8] == b"\x93NUMPY\x01\x00" and text == literal


def map_matrix(
    file: str | Path, dtype: np.dtype[Any], rows: int, columns: int, folder: int | None = None
) -> NDArray[Any]:
    """Returns a read-only memory map `[rows, columns]` of a `.npy` file with a header from `write_header`.

    The header is not trusted: it must have exactly this shape and dtype, and the file the length for them.

    Args:
        folder: descriptor of the folder that `file` is relative to.

    Raises:
        OSError: the file cannot be opened.
        ValueError: its length or header is another one.
    """
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)  # do not block on a pipe
    with os.fdopen(handle, "rb", buffering=0) as content:
        size, wanted = os.fstat(handle).st_size, HEADER_BYTES + rows * columns * dtype.itemsize
        if size != wanted:
            raise ValueError(f"has {size:,} bytes, not those of {rows:,} frames")
        if not is_header(content.read(HEADER_BYTES), dtype, rows, columns):
            raise ValueError(f"does not begin as an array of {rows:,} x {columns} {dtype}")
        # A plain array view: slicing np.memmap itself takes several times as long.
        return np.asarray(np.memmap(content, dtype, "r", HEADER_BYTES, (rows, columns)))


def write_npz(content: BinaryIO, arrays: Mapping[str, NDArray[Any]], compressed: bool = False) -> None:
    """Writes an npz like `np.savez`, but with any names as keys, and the same arrays always give the same bytes.

    Raises:
        ValueError: an array holds Python objects, which are never pickled.
    """
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(content, "w", method) as archive:
        for key, values in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy")
            entry.compress_type = method
            with archive.open(entry, "w", force_zip64=True) as member:
                np.save(member, values, allow_pickle=False)


def frame_rate(values: NDArray[Any], key: str) -> float:
    """Returns the one number in `values` if it can be a frame rate; else raises ClipError."""
    if values.dtype.kind not in "fiu":
        raise ClipError(f"{key} holds {str(values.dtype)[:40]}, not a frame rate")
    if values.size != 1 or not 0 < float(values.reshape(-1)[0]) < 1e5:
        raise ClipError(f"{key} is {str(values)[:40]}, not a frame rate")
    return float(values.reshape(-1)[0])


def rate_of(arrays: Mapping[str, NDArray[Any]]) -> float | None:
    """Returns the frame rate by the keys of `FPS_KEYS`, as numbers or as text (`b"30"`); None if there is no such key.

    29.97 and 30 count as equal, as they are read alike.

    Raises:
        ClipError: a key is not a frame rate, or two keys differ.
    """
    rates = {key: frame_rate(_as_number(arrays[key]), key) for key in FPS_KEYS if key in arrays}
    key, rate = next(iter(rates.items()), ("", None))
    for other, fps in rates.items():
        if rate is not None and not same_rate(fps, rate):
            source_fps = to_say("source_fps", "N")
            raise ClipError(f"{key} is {rate:g}, but {other} is {fps:g}; {source_fps} sets the frame rate")
    return rate


def other_rate(said: float | None, source_fps: float | None) -> tuple[str, ...]:
    """Returns a note if the frame rate of a file differs from `rvqvae.data.source_fps`, which is used."""
    if said is None or source_fps is None or same_rate(said, source_fps):
        return ()
    return (f"the file gives {said:g} fps, but rvqvae.data.source_fps {source_fps:g} is used",)


def _as_number(values: NDArray[Any]) -> NDArray[Any]:
    """Converts a text that is one number; returns all other values unchanged."""
    if values.dtype.kind in "SU" and values.size == 1:
        with suppress(ValueError):
            return values.astype(np.float64)
    return values
