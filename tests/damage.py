"""Damage a file as a crash of the machine does."""

import random
from pathlib import Path

_BLOCK = 4096
_GARBAGE = random.Random(7).randbytes(_BLOCK)
DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "nuls after it": lambda content: content + bytes(_BLOCK),
    "nuls at its end": lambda content: content[:-_BLOCK] + bytes(min(_BLOCK, len(content))),
    "random bytes after it": lambda content: content + _GARBAGE,
}
"""New contents by old ones."""


def damage(file: Path, kind: str) -> bytes:
    """Damages a file; returns its old content."""
    before = file.read_bytes()
    file.write_bytes(DAMAGES[kind](before))
    assert file.read_bytes() != before
    return before
