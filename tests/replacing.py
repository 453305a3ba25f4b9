"""Ways in which users and tools replace a file, so that name, size and times do not show it."""

import io
import mmap
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ds_rvqvae.data.store.prepare import Prepared


def npy_bytes(values: np.ndarray) -> bytes:
    """The bytes that `np.save` writes."""
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def files_of(prepared: Prepared) -> tuple[int, int]:
    """How many files were read and packed, and how many had not changed since the store before."""
    assert prepared.packed is not None
    return prepared.packed.work.clips, prepared.packed.work.kept


def touch_all(folder: Path) -> None:
    """Changes the times of all files except links, although their content stays."""
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_mtime > 10**9:
            os.utime(file)


def replace_by(way: str, file: Path, content: bytes) -> None:
    """Gives `file` another content of the same size, in one of `WAYS`; its time of change stays, or becomes older."""
    assert len(content) == file.stat().st_size and content != file.read_bytes()
    # So that `touch_all` does not change it, and in full seconds, as archives keep it.
    os.utime(file, (10**9, 10**9))
    WAYS[way](file, content)
    assert file.read_bytes() == content and file.stat().st_mtime <= 10**9


def _other(file: Path, content: bytes, folder: str | Path) -> Path:
    """Another file of the same name and time, elsewhere."""
    other = Path(folder, file.name)
    other.write_bytes(content)
    shutil.copystat(file, other)
    return other


def _copied(file: Path, content: bytes) -> None:
    with TemporaryDirectory(dir=file.parent.parent) as folder:
        subprocess.run(["cp", "-p", _other(file, content, folder), file], check=True)


def _moved(file: Path, content: bytes) -> None:
    with TemporaryDirectory(dir=file.parent.parent) as folder:
        subprocess.run(["mv", "-f", _other(file, content, folder), file], check=True)


def _synced(file: Path, content: bytes) -> None:
    """`rsync -a` writes beside it, sets the times and renames; `--inplace` would be `_written_and_touched`."""
    with TemporaryDirectory(dir=file.parent) as folder:
        _other(file, content, folder).replace(file)


def _untarred(file: Path, content: bytes) -> None:
    with TemporaryDirectory(dir=file.parent.parent) as folder:
        archive = Path(folder, "backup.tar")
        with tarfile.open(archive, "w") as tar:
            tar.add(_other(file, content, folder), file.name)
        subprocess.run(["tar", "-xf", archive, "-C", file.parent], check=True)


def _unzipped(file: Path, content: bytes) -> None:
    """As `unzip -o`, which sets the times that the archive has."""
    with TemporaryDirectory(dir=file.parent.parent) as folder:
        archive = Path(folder, "backup.zip")
        with zipfile.ZipFile(archive, "w") as packed:
            packed.write(_other(file, content, folder), file.name)
        times = file.stat()
        with zipfile.ZipFile(archive) as packed:
            packed.extract(file.name, file.parent)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _restored(file: Path, content: bytes) -> None:
    """Replaced by an older file from a backup."""
    file.write_bytes(content)
    os.utime(file, (10**8, 10**8))


def _written_and_touched(file: Path, content: bytes) -> None:
    """Written in place, and `touch -r` afterwards."""
    with TemporaryDirectory(dir=file.parent.parent) as folder:
        reference = _other(file, b"", folder)
        file.write_bytes(content)
        subprocess.run(["touch", "-r", reference, file], check=True)


def _mapped(file: Path, content: bytes) -> None:
    """Through a memory map, as `np.load(mmap_mode="r+")` gives it."""
    times = file.stat()
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[:] = content
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _linked(file: Path, content: bytes) -> None:
    other = _other(file, content, _beside(file))
    file.unlink()
    os.link(other, file)


def _pointed_elsewhere(file: Path, content: bytes) -> None:
    other = _other(file, content, _beside(file))
    file.unlink()
    file.symlink_to(other)


def _folder_swapped(file: Path, content: bytes) -> None:
    """Another folder with files of the same names."""
    folder = _beside(file)
    shutil.copytree(file.parent, folder, dirs_exist_ok=True)
    _other(file, content, folder)
    file.parent.rename(file.parent.with_name("before"))
    folder.rename(file.parent)


def _checked_out(file: Path, content: bytes) -> None:
    """As `git checkout` does: unlinked and written, here within the tick of a clock."""
    times = file.stat()
    file.unlink()
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _beside(file: Path) -> Path:
    folder = file.parent.with_name("another")
    folder.mkdir()
    return folder


WAYS: dict[str, Callable[[Path, bytes], None]] = {
    "cp -p": _copied,
    "mv": _moved,
    "rsync -a": _synced,
    "tar -x": _untarred,
    "unzip": _unzipped,
    "older backup": _restored,
    "touch -r": _written_and_touched,
    "memory map": _mapped,
    "hard link": _linked,
    "symbolic link": _pointed_elsewhere,
    "folder": _folder_swapped,
    "git checkout": _checked_out,
}
