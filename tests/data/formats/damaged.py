"""Hundreds of damaged motion files, the same in every run."""

import io
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.data.formats.joints.positions import positions
from tests.data.formats.robots.published import walk
from tests.data.formats.smpl import published
from tests.data.motion import beat2_arrays

FRAMES = 40
_BOMB = 256 << 20
_TEXTS = (".bvh", ".csv")
"""Suffixes of formats in which one changed byte may make another good file."""
_DEFLATED = zipfile.ZIP_DEFLATED
Files = Mapping[str, np.ndarray | bytes]


class Damaged(NamedTuple):
    """The content of a file, and whether nothing in it can be used."""

    content: bytes
    is_certain: bool = True


class Marker:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Format(NamedTuple):
    """A format whose clips have `FRAMES` frames at 30 frames per second."""

    key: str
    suffix: str
    width: int
    arrays: Callable[[int], dict[str, np.ndarray]]
    """Makes the arrays from a seed, one array per key; a `.npy` has one array, under any key."""
    folder: str = "."
    """The folder of the clips, relative to the data."""
    settings: Mapping[str, Any] = {}
    """Settings of `rvqvae.data` that the files need."""

    def content(self, seed: int) -> bytes:
        """Returns a good file."""
        arrays = self.arrays(seed)
        if self.suffix == ".bvh":
            return bvh(arrays["values"])
        if self.suffix == ".csv":
            return csv(arrays["values"])
        return npz(arrays) if self.suffix == ".npz" else npy(*arrays.values())

    def damaged(self, marker: Path) -> dict[str, Damaged]:
        """Returns damaged files by the stems of their names; a file whose damage is certain holds no usable clip."""
        arrays = self.arrays(0)
        whole = self.content(0)
        rng = np.random.default_rng(sum(self.key.encode()))
        found = {f"bytes_{index:02}": one for index, one in enumerate(broken_bytes(rng, whole, 48))}
        found |= {f"cut_{index:02}": Damaged(cut(rng, whole), self.suffix not in _TEXTS) for index in range(16)}
        if self.suffix == ".bvh":
            found |= {f"text_{index:02}": one for index, one in enumerate(broken_bvh(whole.decode()))}
            return found
        if self.suffix == ".csv":
            found = {name: one._replace(is_certain=False) for name, one in found.items()}
            return found | {f"text_{index:02}": one for index, one in enumerate(broken_csv(whole.decode()))}
        key = "poses" if "poses" in arrays else next(iter(arrays))
        for name, one in (broken_headers(arrays[key]) | broken_values(arrays[key], marker)).items():
            inside = npz({**arrays, key: one.content}) if self.suffix == ".npz" else one.content
            found[name] = Damaged(inside, one.is_certain)
        if self.suffix == ".npz":
            found |= broken_archives(arrays, key, marker) | broken_keys(arrays, key, marker)
        return found


def smplh_arrays(seed: int) -> dict[str, np.ndarray]:
    arrays = beat2_arrays(FRAMES, seed=seed)
    return {"poses": arrays["poses"][:, :156], "trans": arrays["trans"], "mocap_framerate": np.array(30.00004577)}


def split_arrays(seed: int) -> dict[str, np.ndarray]:
    """Returns a clip with a key per group of joints, `body_pose` first; its root is a matrix."""
    arrays = published.split_arrays(FRAMES, seed)
    root = published.in_form(arrays["global_orient"].reshape(FRAMES, 1, 3), "matrix").reshape(FRAMES, 9)
    return {"body_pose": arrays["body_pose"], **arrays, "global_orient": root}


def aist_arrays(seed: int) -> dict[str, np.ndarray]:
    arrays = published.aist_arrays(FRAMES, seed)
    return {"smpl_poses": arrays["smpl_poses"], **arrays, "fps": np.array(30)}


def matrix_arrays(width: int, seed: int) -> dict[str, np.ndarray]:
    return {"motion": np.random.default_rng(seed).normal(size=(FRAMES, width)).astype(np.float32)}


def bvh_arrays(seed: int) -> dict[str, np.ndarray]:
    return {"values": np.random.default_rng(seed).normal(scale=0.5, size=(FRAMES, 9)).cumsum(axis=0) + 20}


def position_arrays(seed: int) -> dict[str, np.ndarray]:
    return {"joints": positions(FRAMES, seed=seed)}


def robot_arrays(seed: int) -> dict[str, np.ndarray]:
    motion = walk(FRAMES, seed)
    return {"values": np.concatenate([motion.places, motion.turns.as_quat(), motion.angles], axis=1)}


def retargeted_arrays(seed: int) -> dict[str, np.ndarray]:
    motion = walk(FRAMES, seed)
    return {"dof": motion.angles, "root_pos": motion.places, "root_rot": motion.turns.as_quat(), "fps": np.array(30)}


FORMATS = {
    "beat2": Format("beat2", ".npz", 433, lambda seed: beat2_arrays(FRAMES, seed=seed), "smplxflame_30"),
    "smpl": Format("smpl", ".npz", 315, smplh_arrays),
    "smpl_24": Format("smpl", ".npz", 147, lambda seed: published.smpl_arrays(FRAMES, seed, 30.0)),
    "smpl_split": Format("smpl", ".npz", 333, split_arrays),
    "aist": Format("aist", ".npz", 147, aist_arrays, "motions"),
    "motionx": Format("motionx", ".npy", 371, lambda seed: {"motion": published.motionx_matrix(FRAMES, seed)}),
    "npy": Format("features", ".npy", 12, lambda seed: matrix_arrays(12, seed)),
    "npz": Format("features", ".npz", 12, lambda seed: {**matrix_arrays(12, seed), "fps": np.array(30)}),
    "humanml3d": Format("humanml3d", ".npy", 263, lambda seed: matrix_arrays(263, seed), "new_joint_vecs"),
    "humanml3d_272": Format("humanml3d_272", ".npy", 272, lambda seed: matrix_arrays(272, seed), "motion_data"),
    "joints": Format("joints", ".npy", 66, position_arrays, "new_joints", {"source_fps": 30.0}),
    "joints_npz": Format(
        *("joints", ".npz", 66, lambda seed: {**position_arrays(seed), "fps": np.array(30)}, "new_joints")
    ),
    "bvh": Format("bvh", ".bvh", 15, bvh_arrays),
    "robot_npz": Format("robot_npz", ".npz", 38, retargeted_arrays),
    "robot_csv": Format("robot_csv", ".csv", 38, robot_arrays),
}


def npy(values: np.ndarray, pickles: bool = False) -> bytes:
    content = io.BytesIO()
    np.save(content, values, allow_pickle=pickles)
    return content.getvalue()


def npz(arrays: Files, method: int = zipfile.ZIP_STORED, **lies: int) -> bytes:
    """Returns an npz of arrays, or of their files' bytes; `lies` replace true entries of the last in its directory."""
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", method) as archive:
        warnings.simplefilter("ignore")
        for key, values in arrays.items():
            member = zipfile.ZipInfo(key if "." in key else f"{key}.npy")  # which has no time of its own
            archive.writestr(member, values if isinstance(values, bytes) else npy(values), method)
        for field, value in lies.items():
            setattr(archive.filelist[-1], field, value)
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
\tJOINT LeftArm { OFFSET 20.0 50.0 0.0 }
\tJOINT LeftLeg { OFFSET 10.0 -85.0 0.0 }
}"""


def cut(rng: np.random.Generator, whole: bytes) -> bytes:
    """Cuts a file at a random position, often near the start or the end."""
    return whole[: rng.choice([rng.integers(0, 30), rng.integers(0, len(whole)), len(whole) - rng.integers(1, 300)])]


def broken_bytes(rng: np.random.Generator, whole: bytes, count: int) -> Iterator[Damaged]:
    """Changes, inserts, removes or moves bytes, sometimes where they do not matter."""
    for index in range(count):
        content = bytearray(whole)
        start, end = ((0, len(whole)), (0, 300), (len(whole) - 600, len(whole)))[index % 3]
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
    """Returns a `.npy` file with the given header."""
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + version + size + text + numbers


def broken_headers(values: np.ndarray) -> dict[str, Damaged]:
    """Yields `.npy` files with good numbers and a bad header."""
    rows, columns = len(values), ", ".join(map(str, values.shape[1:]))
    numbers = values.tobytes()
    shapes = {
        "negative": f"({-rows}, -{columns})",
        "one_negative": f"({-rows}, {columns})",
        "huge": f"({2**62}, 165)",
        "wide": f"(1, {2**47})",
        "overflow": f"({2**32}, {2**32})",
        "none": "()",
        "flat": f"({values.size},)",
        "five": f"(1, 1, 1, {rows}, {columns})",
        "empty": f"(0, {columns})",
        "zeros": "(0,) * 9",
        "text": "'40'",
        "floats": f"({rows}.0, {columns})",
        "names": "(rows, columns)",
        "list": f"[{rows}, {columns}]",
        "many": f"({', '.join(['1'] * 70)},)",
        "swapped": f"({columns}, {rows})",
        "long": f"({'9' * 6000}, 1)",
    }
    descrs = {
        "object": "'|O'",
        "void": "'|V4'",
        "strings": "'<U1'",
        "bytes": "'|S4'",
        "times": "'<M8[ns]'",
        "complex": "'<c8'",
        "bools": "'|b1'",
        "unknown": "'<q7'",
        "number": "4",
        "nothing": "None",
        "no_size": "'|S0'",
        "fields": "[('x', '<f4')]",
        "objects": "[('x', '|O')]",
        "nested": "[('x', [('y', '<f4', (2, 2))])]",
        "part": "('<f4', (1000000000,))",
        "comma": "'f4,f4'",
        "code": "__import__('os').mkdir('made')",
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
    fortran = Damaged(npy_of(header(f"({rows}, {columns})", order="True"), numbers), False)  # a matrix, if an odd one
    return {name: Damaged(content) for name, content in found.items()} | {"fortran": fortran}


def broken_values(values: np.ndarray, marker: Path) -> dict[str, Damaged]:
    """Yields `.npy` files in the right format that hold no motion, or no numbers."""
    objects = np.full(values.shape, None, object)
    objects[0, 0] = Marker(marker)
    spoilt = {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf, "over_float32": 1e300}
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
        "all_zero": np.zeros_like(values),  # not a reason to leave out a figure whose root moves
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


def broken_archives(arrays: dict[str, np.ndarray], key: str, marker: Path) -> dict[str, Damaged]:
    """Yields archives with false declarations, and bombs; `key` is that of the poses or features."""
    last = {name: values for name, values in arrays.items() if name != key} | {key: arrays[key]}
    content = npy(arrays[key])
    pickled = npy(np.array(Marker(marker), object), pickles=True)
    width = arrays[key].shape[1]
    found = {
        "claims_100_gb": npz(last, _DEFLATED, file_size=100 << 30),
        "claims_2_63": npz(last, _DEFLATED, file_size=2**63),
        "claims_little": npz(last, _DEFLATED, file_size=len(content) - 100),
        "stored_claims": npz(last, file_size=2 * len(content)),
        "packs_little": npz(last, _DEFLATED, compress_size=10),
        "packs_much": npz(last, _DEFLATED, compress_size=2**40),
        "encrypted": npz(last, flag_bits=1),
        "strongly_encrypted": npz(last, flag_bits=0x40),
        "patched": npz(last, flag_bits=0x20),
        "bzip2": npz(last, zipfile.ZIP_BZIP2),
        "method_99": npz(last, compress_type=99),
        "outside": npz(last, header_offset=2**40),
        "overlapping": npz({**last, "more": np.zeros(3)}, header_offset=0),
        "wrong_sum": npz(last, CRC=1),
        "twice": npz({**last, f"{key}.npy": content}),
        "zeros_100_gb": npz({**last, key: npy_of(header(f"({(100 << 30) // 4 // width}, {width})"), bytes(1 << 20))}),
        "zeros_bomb": bomb(width),
        "no_member": npz({}),
        "many_members": many_members(),
        "nothing": b"",
        "zeros": bytes(4096),
        "a_pickle": pickled[pickled.index(b"\x80") :],
        "a_single_array": content,
    }
    for name in ("../", "../../", f"{marker.parent}/", "C:\\", "sub/", "\x1b[31m", "line\n"):
        found[f"named_{len(found)}"] = npz({**last, key: np.zeros(3), f"{name}{key}.npy": content})
    beside = npz({"../../beside.npy": content, f"{marker}.npy": content, "bomb": pickled, **arrays})
    return {name: Damaged(one) for name, one in found.items()} | {"beside": Damaged(beside, False)}


@cache
def bomb(width: int) -> bytes:
    """Returns an npz of about a megabyte with zeros in every key that a format needs, `_BOMB` bytes in the first."""
    rows = _BOMB // 4 // width
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", _DEFLATED, compresslevel=1) as archive:
        smpl = {"poses": width, "trans": 3, "mocap_frame_rate": 0} | ({"expressions": 100} if width > 100 else {})
        for key, columns in (smpl if width > 12 else {"motion": width}).items():
            with archive.open(f"{key}.npy", "w") as member:
                if not columns:
                    member.write(npy(np.array(30)))
                    continue
                member.write(npy_of(header(f"({rows}, {columns})"), b""))
                for start in range(0, rows, 1 << 12):
                    member.write(bytes(4 * columns * min(1 << 12, rows - start)))
    return content.getvalue()


@cache
def many_members() -> bytes:
    return npz({f"k{index}": b"" for index in range(10_500)})


def broken_keys(arrays: dict[str, np.ndarray], key: str, marker: Path) -> dict[str, Damaged]:
    """Yields archives in which an array other than `key` is missing, or of another kind."""
    found: dict[str, Files] = {"key_missing": {**arrays, key: np.zeros(3)}}
    rate = next(name for name in arrays if name.startswith(("fps", "mocap")))
    rates = [0, -30, np.nan, np.inf, 1e-300, 1e9, 0.001, "fast", True, 30j, [30, 30], [], np.datetime64(30, "s")]
    for index, value in enumerate(rates):
        found[f"rate_{index}"] = {**arrays, rate: np.array(value)}
    found["rate_pickled"] = {**arrays, rate: npy(np.array(Marker(marker), object), pickles=True)}
    found["rate_words"] = {**arrays, rate: npy_of(header("()", "'<U1'"), b"\xff" * 4)}
    for name in ("trans", "transl", "smpl_trans", "expressions"):
        if name in arrays:
            values = arrays[name]
            found[f"{name}_shorter"] = {**arrays, name: values[:-1]}
            found[f"{name}_narrow"] = {**arrays, name: values[:, 1:]}
            found[f"{name}_flat"] = {**arrays, name: values[:, 0]}
            found[f"{name}_nan"] = {**arrays, name: values * np.nan}
            found[f"{name}_words"] = {**arrays, name: np.full(values.shape, "a")}
            found[f"{name}_missing"] = {other: values for other, values in arrays.items() if other != name}
    return {name: Damaged(npz(one)) for name, one in found.items()} | {
        "rate_slow": Damaged(npz({**arrays, rate: np.array(2.0)}), False),
        "rate_fast": Damaged(npz({**arrays, rate: np.array(59.94)}), False),
    }


def broken_bvh(text: str) -> Iterator[Damaged]:
    """Yields BVH files in which a piece of text is replaced."""
    changes = {
        "Frames: 40": ["Frames: 41", "Frames: 39", "Frames: -1", "Frames: 1e9", "Frames: 99999999999999", "Frames:"],
        "Frames: 4": ["Frames: " + "4" * 5000, "Frames: \u0664", "frames 4"],
        "0.0333333": ["0", "nan", "inf", "-0.03", "1e-300", "1e300", "1e9", "", "0.03 0.03", "0,0333", "9" * 400],
        "CHANNELS 3": ["CHANNELS 2", "CHANNELS 4", "CHANNELS 99999999", "CHANNELS -1", "CHANNELS", "CHANNELS 3.0"],
        "Xrotation Yrotation\n\tJOINT": ["Xrotation Xrotation Xrotation\n\tJOINT", "Wrotation Yrotation\n\tJOINT"],
        "Xposition": ["Yposition", "\x00", "X" * 100_000],
        "OFFSET 0.0 60.0 0.0": ["OFFSET 0.0 60.0", "OFFSET a b c", "OFFSET nan 0 0", "OFFSET 1e999 0 0", ""],
        "JOINT Chest": ["JOINT", "ROOT Chest", "JOINT \x1b[2J", "JOINT a\x00b", "End Site"],
        "{": ["", "{ {", "{ JOINT x " * 5000],
        "}": ["", "} }"],
        "HIERARCHY": ["", "HIERARCHY HIERARCHY", "\ufeffMOTION", "hier\narchy"],
        "MOTION": ["", "MOTION MOTION", "MOTION\nMOTION"],
        "0 ": ["nan ", "1_0 ", "x ", "\u0664 ", "1e999 ", "1" * 70_000 + " ", "\n\n{ ", "0\x000 "],
    }
    for old, others in changes.items():
        for new in others:
            place = text.index(old) if old != "0 " else text.rindex(old)
            # A number too large for a float makes its own frame unusable, not the others.
            yield Damaged((text[:place] + new + text[place + len(old) :]).encode(), new != "1e999 ")
    motion = text.index("\n", text.index("Frame Time")) + 1
    numbers = text[motion:]
    yield Damaged((text[:motion] + numbers.replace("\n", " ")).encode())
    yield Damaged((text[:motion] + "0 " * 5_000_000).encode())
    yield Damaged((text[:motion] + "0 " * 9 * FRAMES).encode())
    yield Damaged((text[:motion] + ("0 " * 9 + "\n") * FRAMES).encode())
    yield Damaged((text[:motion] + ("1e308 -1e308 1e308 " * 3 + "\n") * FRAMES).encode(), False)
    yield Damaged((text + numbers).encode())
    yield from map(Damaged, (b"", b"\n" * 100_000, bytes(100_000)))
    yield Damaged("".join(f"HIERARCHY\nROOT {'{ROOT ' * 10_000}").encode())
    yield Damaged(text.replace("\n", "\r").encode(), False)
    yield Damaged(text.encode("utf-16"))


def csv(values: np.ndarray) -> bytes:
    """Returns numbers as csv without a header."""
    return "".join(",".join(f"{number:.6f}" for number in row) + "\n" for row in values.tolist()).encode()


def broken_csv(text: str) -> Iterator[Damaged]:
    """Yields csv files in which a cell, a line, the separators or the encoding is damaged."""
    lines = text.splitlines()
    cells = [
        "",
        " ",
        "x",
        "1_0",
        "0x1F",
        "1,5",
        "--1",
        "1e",
        "NULL",
        "\x00",
        "\u0664",
        "#",
        "'1'",
        "1 2",
        "9" * 400 + "z",
    ]
    for place, cell in ((place, cell) for place in (0, 20) for cell in cells):
        row = lines[place].split(",")
        yield Damaged("\n".join([*lines[:place], ",".join([*row[:9], cell, *row[10:]]), *lines[place + 1 :]]).encode())
    for cell in ("nan", "NaN", "inf", "-inf", "1e999", "1e308", "-1e39"):  # makes one frame unusable
        row = lines[20].split(",")
        yield Damaged("\n".join([*lines[:20], ",".join([*row[:9], cell, *row[10:]]), *lines[21:]]).encode(), False)
    yield Damaged("\n".join([*lines[:20], lines[20] + ",1", *lines[21:]]).encode())
    yield Damaged("\n".join([*lines[:20], lines[20].rpartition(",")[0], *lines[21:]]).encode())
    yield Damaged("\n".join(f"{line}," for line in lines).encode())
    yield Damaged("\n".join(line.rpartition(",")[0] for line in lines[:1]).encode() + b"\n" + "\n".join(lines).encode())
    yield from (Damaged(text.replace(",", separator).encode()) for separator in (";", "\t", " ", "|", ",,"))
    yield Damaged(text.replace(",", ";").replace(".", ",").encode())
    yield Damaged(",".join(["0.1"] * 1_000_000).encode())
    yield Damaged(("0" * (3 << 20)).encode())
    yield Damaged("\n".join([*lines[:20], "1" * (3 << 20), *lines[21:]]).encode())
    yield from map(Damaged, (b"", b"\n" * 100_000, bytes(100_000), b",", b"\xff\xfe" * 1000, b"0,1,2,3\n" * 100))
    yield Damaged(text.encode("utf-16"))
    yield Damaged(text.encode()[:900] + b"\xff" + text.encode()[901:])
    yield Damaged(lines[0].encode() + b"\n")
    yield Damaged(("\n".join(["0," * 35 + "0"] * FRAMES)).encode())  # a quaternion of zeros
    yield Damaged(("\n".join(["1e308,-1e308," * 18 + "0"] * FRAMES)).encode())
    yield from (Damaged(f"{header}\n{text}".encode()) for header in _WRONG_HEADERS)
    yield Damaged(("\ufeff" + text).encode(), False)
    yield Damaged(text.replace("\n", "\r\n").encode(), False)
    yield Damaged(text.replace("\n", "\r").encode(), False)


_WRONG_HEADERS = (
    *("x,y,z", "time," + ",".join(f"c{column}" for column in range(35)), ",".join(["a"] * 36), "a\x00b,c", "\x1b[2J"),
    *("root_x,root_y,root_z,root_qx,root_qy,root_qz,root_qw," + names for names in ("a,b", ",".join(["a"] * 29))),
)
"""Headers that do not name the 36 columns below them."""
