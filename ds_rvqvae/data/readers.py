"""Which reader reads a file or folder."""

from pathlib import Path

from ds_rvqvae.data.beat2 import Beat2Reader
from ds_rvqvae.data.clips import ClipError, Reader, missing_key, npz_keys
from ds_rvqvae.data.features import CLIP_FOLDER, FeatureFolderReader
from ds_rvqvae.data.packed import PackedReader
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import DataConfig

READERS: tuple[type[Reader], ...] = (PackedReader, Beat2Reader, FeatureFolderReader)
"""The first that matches reads."""


def open_reader(path: Path, config: DataConfig) -> Reader:
    """The reader of a file or folder of motion.

    Raises:
        UserError: no such path, nothing in it, or files that no reader knows, naming the first of them.
    """
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; --data_path names a folder of motion or one packed npz")
        candidates = [FeatureFolderReader] if (path / CLIP_FOLDER).is_dir() else READERS
        for reader in candidates:
            if reader.matches(path):
                return reader(path, config)
        raise UserError(_unknown(path))
    except ClipError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _unknown(path: Path) -> str:
    formats = ", ".join(reader.format for reader in READERS)
    if path.is_file():
        if path.suffix == ".npz":
            return f"{path}: {missing_key(npz_keys(path), 'poses (BEAT2) or motion (packed)')}"
        return f"{path}: no reader knows this file; known: {formats}"
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith("."))
    first = next(files, None)
    if first is None:
        return f"{path}: an empty folder; it should hold motion: {formats}"
    return f"{path}: no reader knows {first.relative_to(path)}; known: {formats}"
