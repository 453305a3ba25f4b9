"""A file's checksum."""

import hashlib
from pathlib import Path


def sha256_of(file: Path) -> str:
    """A file's checksum, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
