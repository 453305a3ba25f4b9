"""Damaged motion files by the hundred, the same ones every time."""

import io
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.data.motion import beat2_arrays

FRAMES = 40
BOMB_BYTES = 256 << 20
Arrays = Mapping[str, np.ndarray]


class Damaged(NamedTuple):
    """A file's content."""

    content: bytes
    is_certain: bool = True
    """Whether the damage leaves nothing to use."""


class Marker:
    """Unpickling one makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Format(NamedTuple):
    """A format whose clips are `FRAMES` frames at 30 a second."""

    key: str
    suffix: str
    width: int
    arrays: Callable[[int], dict[str, np.ndarray]]
    """Of a seed: one array a key; a `.npy` has one, under whatever key."""
    folder: str = "."
    """Of the clips, below the data."""

    def content(self, seed: int) -> bytes:
        """A good file."""
        arrays = self.arrays(seed)
        if self.suffix == ".bvh":
            return bvh(arrays["values"])
        return npz(arrays) if self.suffix == ".npz" else npy(*arrays.values())

    def damaged(self, marker: Path) -> dict[str, Damaged]:
        """Damaged files by the stems of their names; none holds a clip of its own where the damage is certain."""
        arrays = self.arrays(0)
        whole = self.content(0)
        rng = np.random.default_rng(sum(self.key.encode()))
        found = {f"bytes_{index:02}": one for index, one in enumerate(broken_bytes(rng, whole, 48))}
        found |= {f"cut_{index:02}": Damaged(cut(rng, whole), self.suffix != ".bvh") for index in range(16)}
        if self.suffix == ".bvh":
            found |= {f"text_{index:02}": one for index, one in enumerate(broken_bvh(whole.decode()))}
            return found
        key = "poses" if "poses" in arrays else next(iter(arrays))
        for name, one in (broken_headers(arrays[key]) | broken_values(arrays[key], marker)).items():
            inside = npz({**arrays, key: one.content}) if self.suffix == ".npz" else one.content
            found[name] = Damaged(inside, one.is_certain)
        if self.suffix == ".npz":
            found |= broken_archives(arrays, key, marker)
        return found


def smplh_arrays(seed: int) -> dict[str, np.ndarray]:
    arrays = beat2_arrays(FRAMES, seed=seed)
    return {"poses": arrays["poses"][:, :156], "trans": arrays["trans"], "mocap_framerate": np.array(30.00004577)}


def matrix_arrays(width: int, seed: int) -> dict[str, np.ndarray]:
    return {"motion": np.random.default_rng(seed).normal(size=(FRAMES, width)).astype(np.float32)}


def bvh_arrays(seed: int) -> dict[str, np.ndarray]:
    return {"values": np.random.default_rng(seed).normal(scale=0.5, size=(FRAMES, 9)).cumsum(axis=0) + 20}


FORMATS = {
    "beat2": Format("beat2", ".npz", 433, lambda seed: beat2_arrays(FRAMES, seed=seed), "smplxflame_30"),
    "smpl": Format("smpl", ".npz", 315, smplh_arrays),
    "npy": Format("features", ".npy", 12, lambda seed: matrix_arrays(12, seed)),
    "npz": Format("features", ".npz", 12, lambda seed: {**matrix_arrays(12, seed), "fps": np.array(30)}),
    "humanml3d": Format("humanml3d", ".npy", 263, lambda seed: matrix_arrays(263, seed), "new_joint_vecs"),
    "bvh": Format("bvh", ".bvh", 15, bvh_arrays),
}


def npy(values: np.ndarray, pickles: bool = False) -> bytes:
    content = io.BytesIO()
    np.save(content, values, allow_pickle=pickles)
    return content.getvalue()


def npz(arrays: Mapping[str, np.ndarray | bytes], method: int = zipfile.ZIP_STORED, **lies: int) -> bytes:
    """An npz with arrays, or the bytes of their files; `lies` stand in its directory for what is true of the first."""
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", method) as archive:
        warnings.simplefilter("ignore")
        for key, values in arrays.items():
            member = zipfile.ZipInfo(key if "." in key else f"{key}.npy")  # which has no time of its own
            archive.writestr(member, values if isinstance(values, bytes) else npy(values), method)
        for field, value in lies.items():
            setattr(archive.filelist[0], field, value)
    return content.getvalue()


def bvh(values: np.ndarray) -> bytes:
    lines = [" ".join(f"{value:.4f}" for value in row) for row in values]
    return ("\n".join([_FIGURE, "MOTION", f"Frames: {len(values)}", "Frame Time: 0.0333333", *lines]) + "\n").encode()


_FIGURE = """HIERARCHY
ROOT Hips
{
\tOFFSET 0.0 90.0 0.0
\tCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
\tJOINT Chest
\t{
\t\tOFFSET 0.0 60.0 0.0
\t\tCHANNELS 3 Zrotation Xrotation Yrotation
\t\tEnd Site
\t\t{
\t\t\tOFFSET 0.0 20.0 0.0
\t\t}
\t}
}"""


def cut(rng: np.random.Generator, whole: bytes) -> bytes:
    """Up to a random place, which is often near the start or the end."""
    places = (rng.integers(0, 30), rng.integers(0, len(whole)), len(whole) - rng.integers(1, 300))
    return whole[: places[rng.integers(3)]]


def broken_bytes(rng: np.random.Generator, whole: bytes, count: int) -> Iterator[Damaged]:
    """Bytes changed, put in, taken out or moved: at times where they do not matter."""
    for index in range(count):
        content = bytearray(whole)
        start, end = (0, len(whole)) if index % 3 == 0 else (0, 300) if index % 3 == 1 else (len(whole) - 600, len(whole))
        at = int(rng.integers(start, end))
        if index % 8 < 4:
            for place in rng.integers(start, end, int(rng.integers(1, 5))):
                content[place] ^= int(rng.integers(1, 256))
        elif index % 8 == 4:
            content[at:at] = rng.bytes(int(rng.integers(1, 200)))
        elif index % 8 == 5:
            del content[at : at + int(rng.integers(1, 200))]
        elif index % 8 == 6:
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        else:
            content[at:at] = content[at : at + 500]
        yield Damaged(bytes(content), False)


def header(shape: str, descr: str = "'<f4'", order: str = "False", more: str = "") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}".encode()


def npy_of(text: bytes, numbers: bytes, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    """A `.npy` file with a header of one's own."""
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + version + size + text + numbers


def broken_headers(values: np.ndarray) -> dict[str, Damaged]:
    """`.npy` files of which the numbers are good and the header is not."""
    rows, columns = values.shape
    numbers = values.tobytes()
    shapes = {
        **{"negative": f"({-rows}, {-columns})", "one_negative": f"({-rows}, {columns})", "huge": f"({2**62}, 165)"},
        **{"wide": f"(1, {2**47})", "overflow": f"({2**32}, {2**32})", "none": "()", "flat": f"({rows * columns},)"},
        **{"five": f"(1, 1, 1, {rows}, {columns})", "empty": f"(0, {columns})", "zeros": "(0,) * 9", "text": "'40'"},
        **{"floats": f"({rows}.0, {columns})", "names": "(rows, columns)", "list": f"[{rows}, {columns}]"},
        **{"many": f"({', '.join(['1'] * 70)},)", "swapped": f"({columns}, {rows})", "long": f"({'9' * 6000}, 1)"},
    }
    descrs = {
        **{"object": "'|O'", "void": "'|V4'", "strings": "'<U1'", "bytes": "'|S4'", "times": "'<M8[ns]'"},
        **{"complex": "'<c8'", "bools": "'|b1'", "unknown": "'<q7'", "number": "4", "nothing": "None", "no_size": "'|S0'"},
        **{"fields": "[('x', '<f4')]", "objects": "[('x', '|O')]", "nested": "[('x', [('y', '<f4', (2, 2))])]"},
        **{"part": "('<f4', (1000000000,))", "comma": "'f4,f4'", "code": "__import__('os').mkdir('made')"},
    }
    found = {f"shape_{name}": npy_of(header(shape), numbers) for name, shape in shapes.items()}
    found |= {f"descr_{name}": npy_of(header(f"({rows}, {columns})", descr), numbers) for name, descr in descrs.items()}
    text = header(f"({rows}, {columns})")
    found |= {
        "header_code": npy_of(b"__import__('os').mkdir('made')", numbers),
        "header_call": npy_of(header("().__class__.__base__.__subclasses__()"), numbers),
        "header_deep": npy_of(b"(" * 9000, numbers),
        "header_minus": npy_of(b"-" * 9000 + b"1", numbers),
        "header_long": npy_of(text.ljust(60_000), numbers),
        "header_lies": npy_of(text, numbers, length=60_000),
        "header_2gb": npy_of(text, numbers, b"\x02\x00", 2**31),
        "header_version": npy_of(text, numbers, b"\x09\x00"),
        "header_order": npy_of(header(f"({rows}, {columns})", order="'C'"), numbers),
        "header_more": npy_of(header(f"({rows}, {columns})", more="'x': 1"), numbers),
        "header_binary": npy_of(bytes(range(256)), numbers),
        "header_nul": npy_of(text + b"\0", numbers),
        "numbers_short": npy_of(text, numbers[:-4]),
        "numbers_long": npy_of(text, numbers + b"1"),
    }
    good = {"fortran": npy_of(header(f"({rows}, {columns})", order="True"), numbers)}  # a matrix, if an odd one
    return {name: Damaged(content) for name, content in found.items()} | {
        name: Damaged(content, False) for name, content in good.items()
    }


def broken_values(values: np.ndarray, marker: Path) -> dict[str, Damaged]:
    """`.npy` files of the right form with what is no motion, or no numbers."""
    objects = np.full(values.shape, None, object)
    objects[0, 0] = Marker(marker)
    spoilt = {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf, "zero": 0.0, "over_float32": 1e300}
    found = {f"all_{name}": npy(np.full(values.shape, value)) for name, value in spoilt.items()}
    found |= {
        "pickled": npy(objects, pickles=True),
        "pickled_one": npy(np.array(Marker(marker), object), pickles=True),
        "pickle_alone": npy(np.array(Marker(marker), object), pickles=True)[-200:].partition(b"\x80")[2],
        "words": npy(np.full(values.shape, "a")),
        "complex": npy(values.astype(np.complex64)),
        "narrow": npy(values[:, :-1]),
        "wider": npy(np.zeros((FRAMES, 5000), np.float32)),
        "one_frame": npy(values[:1]),
        "short": npy(values[:15]),
        "many_short": npy(_with(values, slice(None, None, 10), np.nan)),
        "broken_words": npy_of(header(str(values.shape), "'<U1'"), b"\xff" * 4 * values.size),
    }
    some = {
        "some_nan": _with(values, slice(3, 9), np.nan),
        "last_inf": _with(values, slice(-1, None), np.inf),
        "middle_zero": _with(values, slice(20, 22), 0),
        "largest": _with(values, slice(20, None), np.finfo(np.float32).max),
        "float64": values.astype(">f8"),
        "float16": values.astype(np.float16),
        "longdouble": values.astype(np.longdouble),
        "integers": (values * 100).astype(np.int8),
    }
    return {name: Damaged(content) for name, content in found.items()} | {
        name: Damaged(npy(content), False) for name, content in some.items()
    }


def _with(values: np.ndarray, rows: slice, value: float) -> np.ndarray:
    changed = values.copy()
    changed[rows] = value
    return changed


def broken_archives(arrays: Arrays, key: str, marker: Path) -> dict[str, Damaged]:
    """Archives that lie, bombs, and arrays that are missing or of another kind."""
    first = {key: arrays[key], **arrays}
    content = npy(arrays[key])
    deflated = zipfile.ZIP_DEFLATED
    found: dict[str, bytes] = {
        "claims_100_gb": npz(first, deflated, file_size=100 << 30),
        "claims_2_63": npz(first, deflated, file_size=2**63),
        "claims_little": npz(first, deflated, file_size=len(content) - 100),
        "stored_claims": npz(first, file_size=2 * len(content)),
        "packs_little": npz(first, deflated, compress_size=10),
        "packs_much": npz(first, deflated, compress_size=2**40),
        "encrypted": npz(first, flag_bits=1),
        "strongly_encrypted": npz(first, flag_bits=0x40),
        "bzip2": npz(first, zipfile.ZIP_BZIP2),
        "method_99": npz(first, compress_type=99),
        "outside": npz(first, header_offset=2**40),
        "wrong_sum": npz(first, CRC=1),
        "directory_inside": npz({**arrays, f"{key}.npy/": b""} | {key: b""}),
        "key_missing": npz({name: values for name, values in arrays.items() if name != key} | {"other": np.zeros(3)}),
        "zeros_100_gb": npz({**arrays, key: npy_of(header(f"({100 << 20}, 256)"), bytes(1 << 20))}, deflated),
        "bomb": npz({**arrays, key: _bomb(*arrays[key].shape[1:])}, deflated) if key == "never" else b"",
        "no_member": npz({}),
        "nothing": b"",
        "a_folder_of_zeros": bytes(4096),
        "a_pickle": npy(np.array(Marker(marker), object), pickles=True)[-200:].partition(b"\x80")[2],
        "a_single_array": content,
        "twice": npz(arrays) and _twice(arrays, key),
        "overlapping": _overlapping(arrays, key),
        "many_members": npz({f"k{index}": b"" for index in range(10_500)}),
    }
    del found["bomb"]
    return {name: Damaged(content) for name, content in found.items()}


@cache
def _bomb(width: int) -> bytes:
    return b""


def _twice(arrays: Arrays, key: str) -> bytes:
    return npz({**arrays, f"{key}.": b"", f"{key}.npy": npy(arrays[key])})


def _overlapping(arrays: Arrays, key: str) -> bytes:
    return npz(arrays)


def broken_bvh(text: str) -> Iterator[Damaged]:
    yield Damaged(b"")
