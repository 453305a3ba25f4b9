"""Untrusted NumPy files: plain arrays are read unchanged, all others are refused with little memory."""

import io
import os
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_rvqvae.data.formats.base import load_npy, load_npz, npy_header, npz_headers, npz_keys
from ds_rvqvae.data.formats.npz import frame_rate, rate_of, write_header, write_npz
from ds_rvqvae.motion.clip import ClipError

POSES = np.arange(60.0).reshape(20, 3)


def npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def npy_of(header: str | bytes, numbers: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    """Returns a `.npy` file with the given header."""
    text = header.encode() if isinstance(header, str) else header
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + version + size + text + numbers


def declares(shape: str, descr: str = "'<f8'", order: str = "False") -> bytes:
    return npy_of(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n", bytes(480))


def archive(content: bytes, method: int = zipfile.ZIP_DEFLATED, **lies: int) -> bytes:
    """Returns an npz with `poses`; `lies` replace the true entries in its directory."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as members:
        members.writestr("poses.npy", content)
        for field, value in lies.items():
            setattr(members.filelist[0], field, value)
    return file.getvalue()


def twice(first: str, second: str) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as members:
        warnings.simplefilter("ignore")
        members.writestr(first, npy(POSES))
        members.writestr(second, npy(POSES))
    return file.getvalue()


def overlapping() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("a.npy", npy(POSES))
        members.writestr("poses.npy", npy(POSES))
        members.filelist[0].header_offset = members.filelist[1].header_offset
    return file.getvalue()


def with_a_tail() -> bytes:
    """Returns an npz whose member is a mebibyte longer than its directory says, with a matching checksum."""
    good = npy(POSES)
    return archive(good + bytes(2**20), file_size=len(good), CRC=zlib.crc32(good + b"\0"))


@pytest.mark.parametrize(
    "values",
    [
        POSES,
        POSES.astype(np.float16),
        POSES.astype(">f4"),
        POSES.astype(">i2"),
        np.asfortranarray(POSES),
        POSES > 7,
        np.array("smplx2020"),
        np.array(30.0),
        np.zeros((0, 165)),
        np.zeros((2, 3, 4, 5, 6), np.uint8),
        np.array(["a", "clip"]),
    ],
    ids=lambda values: f"{values.dtype}{list(values.shape)}",
)
def test_plain_arrays_are_what_numpy_saved(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", poses=values, other=POSES)
    np.savez_compressed(tmp_path / "b.npz", poses=values)
    found = [
        load_npy(tmp_path / "a.npy"),
        *(load_npz(tmp_path / name, ("poses",))["poses"] for name in ("a.npz", "b.npz")),
    ]
    for array in found:
        assert array.dtype == values.dtype and array.shape == values.shape and np.array_equal(array, values)
    header = npz_headers(tmp_path / "a.npz")["poses"]
    assert header == npy_header(tmp_path / "a.npy") and header.shape == values.shape
    assert npz_keys(tmp_path / "a.npz") == ["poses", "other"]


NPY_FAULTS = {
    "nothing": (b"", "damaged or cut short"),
    "six bytes": (b"\x93NUMPY", "damaged or cut short"),
    "text": (b"id,type\n1_a,train\n", "not a NumPy file"),
    "a pickle": (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94K\x01a.", "pickled"),
    "another version": (npy_of("{}", version=b"\x09\x00"), "no NumPy header"),
    "a header of 2 GiB": (npy_of(b"{" * 100, version=b"\x02\x00", length=2**31), "header of 2147483648 bytes"),
    "half a header": (npy(POSES)[:40], "cut short"),
    "a header that computes": (npy_of("__import__('os').system('exit')\n"), "damaged"),
    "a header of brackets": (npy_of("(" * 9000), "damaged"),
    "no dictionary": (npy_of("[1, 2]\n"), "damaged"),
    "a key too many": (npy_of("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), 'x': 1}\n"), "damaged"),
    "rows below none": (declares("(-20, 3)"), "damaged: the array has shape"),
    "rows beyond reason": (declares("(0, 1152921504606846976)"), "damaged: the array has shape"),
    "a terabyte": (declares("(333333333333, 3)"), "more than the 1 GiB allowed per array"),
    "a number of digits": (declares(f"({'9' * 5000}, 3)"), "damaged"),
    "600 MB that are not there": (declares("(25000000, 3)"), "declares 600000000 bytes of numbers and has 480"),
    "more than it declares": (declares("(10, 3)"), "declares 240 bytes of numbers and has 480"),
    "a shape of text": (declares("('20', 3)"), "damaged"),
    "objects": (declares("(20, 3)", "'|O'"), "pickled Python objects are never loaded"),
    "records": (declares("(20,)", "[('x', '<f8', (3,))]"), "not numbers"),
    "raw bytes": (declares("(60,)", "'|V8'"), "not numbers"),
    "values of no size": (declares("(1000000000,)", "'<U0'"), "not numbers"),
    "an unknown type": (declares("(20, 3)", "'<q9'"), "damaged"),
    "an archive": (archive(npy(POSES)), "an npz archive with the suffix of a single array"),
}


@pytest.mark.parametrize("fault", NPY_FAULTS)
@pytest.mark.parametrize("method", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["npy", "stored", "deflated"])
def test_a_damaged_array_is_refused_in_one_line_and_little_memory(tmp_path, fault, method):
    content, reason = NPY_FAULTS[fault]
    file = tmp_path / "a.npy"
    file.write_bytes(content if method is None else archive(content, method))
    tracemalloc.start()
    try:
        with pytest.raises(ClipError) as refusal:
            load_npy(file) if method is None else load_npz(file, ("poses",))
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    reason = reason.replace("the array", "poses") if method is not None else reason
    assert reason in str(refusal.value) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


NPZ_FAULTS = {
    "nothing": (b"", "damaged or cut short"),
    "two letters": (b"PK", "damaged or cut short"),
    "text": (b"<!DOCTYPE html>", "pickled Python objects are never loaded"),
    "a single array": (npy(POSES), "a single array with the suffix of an npz archive"),
    "3 GiB by its directory": (archive(npy(POSES), file_size=3 * 2**30), "more than the 1 GiB allowed per array"),
    "more than deflate can": (archive(npy(POSES), file_size=2**25), "cannot have 33554432 bytes"),
    "more than is stored": (archive(npy(POSES), zipfile.ZIP_STORED, file_size=2**20), "cannot have 1048576 bytes"),
    "less than is stored": (archive(npy(POSES), zipfile.ZIP_STORED, file_size=100), "damaged"),
    "a tail": (with_a_tail(), "poses has more bytes than the archive says"),
    "a wrong checksum": (archive(npy(POSES), CRC=1), "CRC"),
    "encrypted": (archive(npy(POSES), flag_bits=1), "poses.npy is encrypted"),
    "lzma": (archive(npy(POSES), zipfile.ZIP_LZMA), "compressed by a method that NumPy does not use"),
    "outside the file": (archive(npy(POSES), compress_size=2**20), "overlaps what follows it"),
    "overlapping": (overlapping(), "overlaps what follows it"),
    "the same name twice": (twice("poses.npy", "poses.npy"), "poses occurs twice"),
    "the same key twice": (twice("poses.npy", "poses"), "poses occurs twice"),
    "other keys": (twice("../x.npy", "y" * 300), f"no key poses; it has ../x, {'y' * 40}"),
}


@pytest.mark.parametrize("fault", NPZ_FAULTS)
def test_a_damaged_archive_is_refused_in_one_line_and_little_memory(tmp_path, fault):
    content, reason = NPZ_FAULTS[fault]
    (tmp_path / "a.npz").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ClipError) as refusal:
            load_npz(tmp_path / "a.npz", ("poses",))
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert reason in str(refusal.value) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "a.npz").write_bytes(archive(npy(np.zeros((2**17, 64)))))
    assert (tmp_path / "a.npz").stat().st_size < 2**17
    with pytest.raises(ClipError, match=r"poses takes 0\.0625 GiB, more than the 0\.0312 GiB"):
        load_npz(tmp_path / "a.npz", ("poses",), largest=2**25)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "unpickled"),)

    np.save(tmp_path / "a.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", poses=np.array([Trap()], object), trans=POSES)
    with pytest.raises(ClipError, match="never loaded"):
        load_npy(tmp_path / "a.npy")
    with pytest.raises(ClipError, match="never loaded"):
        load_npz(tmp_path / "a.npz", ("trans", "poses"))
    assert np.array_equal(load_npz(tmp_path / "a.npz", ("trans",))["trans"], POSES)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("load", [load_npy, npz_keys], ids=["npy", "npz"])
def test_what_is_no_file_is_not_opened(tmp_path, load):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    for file, reason in (
        (tmp_path / "pipe", "not a regular file"),  # opening it would block
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "a folder, not a file"),
        (tmp_path / "dangling", "cannot be read: No such file"),
    ):
        with pytest.raises(ClipError, match=reason):
            load(file)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", poses=POSES, trans=POSES)
    whole = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(ClipError):
            load_npz(tmp_path / "cut.npz", ("poses", "trans"))


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 10**6), bits=st.integers(1, 255), length=st.integers(1, 4), compressed=st.booleans())
def test_a_flipped_byte_never_changes_what_is_read(tmp_path_factory, place, bits, length, compressed):
    folder = tmp_path_factory.mktemp("flipped")
    (np.savez_compressed if compressed else np.savez)(folder / "a.npz", poses=POSES, trans=POSES)
    content = bytearray((folder / "a.npz").read_bytes())
    place %= len(content)
    for index in range(place, min(place + length, len(content))):
        content[index] ^= bits
    (folder / "a.npz").write_bytes(content)
    try:
        arrays = load_npz(folder / "a.npz", ("poses", "trans"))
    except ClipError:
        return
    assert all(np.array_equal(values, POSES) for values in arrays.values())


def test_npz_of_the_same_arrays_are_the_same_bytes_and_objects_are_refused(tmp_path):
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as content:
            write_npz(content, {"x": np.arange(5), "text": np.array("é")})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.load(tmp_path / "a")["text"] == "é"
    with (tmp_path / "c").open("wb") as content, pytest.raises(ValueError, match="allow_pickle"):
        write_npz(content, {"x": np.array([{}], object)})


def test_the_header_of_a_matrix_is_numpys_and_as_long_for_any_number_of_rows(tmp_path):
    with (tmp_path / "a.npy").open("wb") as content:
        for rows in (0, 10**12, 2):
            content.seek(0)
            write_header(content, np.dtype("<f4"), rows, 3)
            assert content.tell() == 128
        content.write(np.arange(6, dtype="<f4").tobytes())
    assert np.load(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    header = npy_header(tmp_path / "a.npy")
    assert (header.nbytes, header.start, header.is_matrix) == (24, 128, True)
    np.save(tmp_path / "b.npy", np.zeros((2, 3), complex))
    assert not npy_header(tmp_path / "b.npy").is_matrix


@pytest.mark.parametrize("values", [np.array(29.97), np.array([120], np.int32), np.array([[1.0]], np.float32)])
def test_a_frame_rate_is_the_one_number_there_is(values):
    assert frame_rate(values, "fps") == float(values.reshape(-1)[0])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array(0), "fps is 0, not a frame rate"),
        (np.array(-30.0), "fps is -30.0"),
        (np.array(np.nan), "fps is nan"),
        (np.array(1e5), "fps is 100000.0"),
        (np.array([30, 30]), r"fps is \[30 30\]"),
        (np.array([]), r"fps is \[\]"),
        (np.array("30"), "fps holds <U2, not a frame rate"),
    ],
)
def test_what_is_no_frame_rate_is_refused(values, reason):
    with pytest.raises(ClipError, match=reason):
        frame_rate(values, "fps")


@pytest.mark.parametrize("key", ["mocap_frame_rate", "mocap_framerate", "fps", "mocap_fps", "frame_rate"])
@pytest.mark.parametrize("value", [20, 20.0, np.float32(20), [20], [[20.0]], b"20", "20.0", [b"20"], np.uint8(20)])
def test_a_rate_stands_under_any_of_its_keys_in_any_shape(key, value):
    assert rate_of({"poses": np.zeros(3), key: np.array(value)}) == 20
    assert rate_of({key: np.array(value), "mocap_frame_rate": np.array(20.001)}) == pytest.approx(20, abs=0.002)


def test_no_rate_is_none_and_two_that_disagree_are_refused():
    assert rate_of({"poses": np.zeros(3)}) is None
    with pytest.raises(ClipError, match="mocap_framerate is 120, but fps is 30; --source_fps N") as said:
        rate_of({"fps": np.array(30), "mocap_framerate": np.array([120.0])})
    assert "rvqvae.data.source_fps" in str(said.value)


@pytest.mark.parametrize("value", [b"fast", "", "30 fps", b"nan", "0", ["30", "30"], True, 30j])
def test_a_rate_in_no_words_of_a_number_is_refused(value):
    with pytest.raises(ClipError, match=r"^fps "):
        rate_of({"fps": np.array(value)})
