"""Pieces of BVH recordings that the lists of the splits name: `gp_00171#0#276`, a recording, its first frame and the
one after the last.

Source: SnapMoGen's dataset card (https://huggingface.co/datasets/Ericguo5513/SnapMoGen, 2.2 Naming Convention): "Each
motion clip is named using the format groupid_seqid#start#end, where start and end denote the frame indices within the
raw sequence"; its code reads `motion[int(start) : int(end)]` (https://github.com/snap-research/SnapMoGen,
dataset/dataset.py).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ds_rvqvae.text import counted

_PIECE = re.compile(r"(.+)#(\d{1,9})#(\d{1,9})")


class Piece(NamedTuple):
    """Frames `start` up to `stop` of a recording."""

    recording: str
    """The clip's name of the complete file."""
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The clip's name of the piece."""
        return f"{self.recording}#{self.start}#{self.stop}"


def pieces_of(listed: Iterable[str], files: Mapping[str, Path]) -> list[Piece]:
    """Returns the listed pieces of files, sorted; a line that names a file itself is no piece.

    A recording is found by the rules of `SplitLists`: by its exact name, else with fewer folders at the start than the
    line has, or with more.
    """
    by_tail: dict[str, str] = {}
    for name in files:
        parts = name.split("/")
        for first in range(1, len(parts)):
            by_tail.setdefault("/".join(parts[first:]), name)

    def file_of(name: str) -> str | None:
        parts = name.split("/")
        tails = ("/".join(parts[first:]) for first in range(len(parts)))
        found = next((tail for tail in tails if tail in files), None)
        return by_tail.get(name) if found is None else found

    pieces = set()
    for name in listed:
        match = _PIECE.fullmatch(name)
        if match is not None and file_of(name) is None and (recording := file_of(match[1])) is not None:
            pieces.add(Piece(recording, int(match[2]), int(match[3])))
    return sorted(pieces)


def pieces_words(pieces: Iterable[Piece]) -> str:
    """Returns a note on pieces for the report."""
    recordings = [piece.recording for piece in pieces]
    files = counted(len(set(recordings)), "file")
    return (
        f"the lists name {counted(len(recordings), 'piece')} of {files}: each is a clip of its own, and frames outside "
        "of them are not read"
    )
