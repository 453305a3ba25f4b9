"""BVH files: a skeleton's joints with their channels, and one number per channel and frame.

Source of the format: M. Meredith, S. Maddock, "Motion Capture File Formats Explained", University of Sheffield, 2001.
Also read: keywords in upper and lower case, line ends of any system, a frame on several lines, names with spaces, DOS's
end of file (^Z) or NULs after the motion, and the spellings of NaN and infinity of several systems.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.finding import check_regular
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.text import GIB, gibibytes

LARGEST_FILE = GIB
"""Bytes: enough for two and a half hours of a figure of 100 joints at 120 frames per second."""
_LARGEST_HEADER = 2**22
"""Characters before MOTION; a joint takes about a hundred."""
_MOST_JOINTS = 4096
_MOST_CHANNELS = 6
_LONGEST_NUMBER = 64
"""The most characters per value, blanks included; a longer line of motion is invalid."""
_VALUES_AT_ONCE = 2**18
_LONGEST_QUOTE = 40
_AFTER_THE_END = "\x1a\0 \t\r\n"
_NOT_FINITE = re.compile(r"([+-]?)(?:(1\.#inf\d*)|1\.#[a-z]+\d*|nan[qs]?(?:\([a-z0-9_]*\))?)", re.IGNORECASE)
"""Spellings of C libraries beside `inf` and `nan`: `1.#INF` (the second group), `-1.#IND`, `1.#QNAN0`, `nan(ind)`, …"""

_WORD = re.compile(r"[{}]|[^\s{}]+")
_NAME = re.compile(r"[^\n{}]*")
_CHANNEL = re.compile(r"[XYZ](position|rotation)")
_FRAMES = re.compile(r"\s*frames\s*:\s*(\S+)\s*", re.IGNORECASE)
_FRAME_TIME = re.compile(r"\s*frame\s+time\s*:\s*(\S+)\s*", re.IGNORECASE)


class Joint(NamedTuple):
    """A joint, or an End Site, which has neither name nor channels."""

    name: str
    parent: int
    """Index of its parent, which comes before it; only the first joint, the root, has -1."""
    offset: tuple[float, float, float]
    """Position relative to its parent, in the file's unit."""
    channels: tuple[str, ...]
    """`Xposition`, `Zrotation` and so on, in the order of their numbers."""

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of its rotation channels, 0 for x, in the channels' order."""
        return tuple("XYZ".index(channel[0]) for channel in self.channels if channel.endswith("rotation"))


@dataclass(frozen=True, eq=False)
class Bvh:
    """The content of a BVH file, in its own units."""

    joints: tuple[Joint, ...]
    values: NDArray[np.float64]
    """float64 `[frames, channels]`, the joints' channels in order (degrees, units of length); may hold NaN, inf."""
    fps: float


def read_bvh(file: Path, first_only: bool = False) -> Bvh:
    """Reads a BVH file, or only its first frame, without checking those after it.

    Raises:
        ClipError: the file is missing, damaged, cut short, or larger than `LARGEST_FILE`.
    """
    with _open(file) as text:
        joints = _parse_hierarchy(_header(text))
        names = [f"{joint.name or 'End Site'} {channel}" for joint in joints for channel in joint.channels]
        if not names:
            raise ClipError("its joints have no channels")
        frames, fps = _frame_count(text), _frame_rate(text)
        # A value takes at least a digit and a blank.
        if frames * len(names) > file.stat().st_size // 2 + 1:
            raise ClipError(f"cut short, or Frames: is wrong: {frames} frames do not fit into a file of this size")
        return Bvh(joints, _first_frame(text, names) if first_only else _values(text, names, frames), fps)


def read_joints(file: Path) -> tuple[Joint, ...]:
    """Reads the joints of a BVH file, without its motion; raises ClipError."""
    with _open(file) as text:
        return _parse_hierarchy(_header(text))


def is_motion(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns for each frame of `[frames, channels]` whether it is finite and not all zero, bool `[frames]`."""
    return np.asarray(np.isfinite(values).all(axis=1) & values.any(axis=1))


@contextmanager
def _open(file: Path) -> Iterator[TextIO]:
    check_regular(file)
    try:
        with file.open("rb") as content:
            size = content.seek(0, io.SEEK_END)
            if size > LARGEST_FILE:
                raise ClipError(
                    f"{gibibytes(size, '.1f')}, more than the {gibibytes(LARGEST_FILE, '.0f')} of a BVH file; cut it"
                )
            content.seek(0)
            # Names may be in any encoding; everything else is ASCII.
            yield io.TextIOWrapper(content, encoding="utf-8-sig", errors="replace", newline=None)
    except OSError as error:
        raise ClipError(f"cannot be read: {error.strerror or error}") from None


def _header(text: TextIO) -> str:
    """Reads all lines before MOTION; raises ClipError."""
    lines: list[str] = []
    size = 0
    while size <= _LARGEST_HEADER:
        line = text.readline(_LARGEST_HEADER)
        if not line or line.strip().upper() == "MOTION":
            break
        lines.append(line)
        size += len(line)
    header = "".join(lines)
    if size > _LARGEST_HEADER or not line:
        _parse_hierarchy(header)  # its error, if any, is more exact
        raise ClipError("no MOTION section: cut short, or not a BVH file")
    return header


class _Words:
    """The words of a header; each brace is a word of its own."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    def next(self) -> str:
        """Returns the next word; "" at the end."""
        match = _WORD.search(self.text, self.position)
        self.position = match.end() if match else len(self.text)
        return match.group() if match else ""

    def name(self) -> str:
        """Returns the rest of the line, or the rest up to a brace."""
        match = _NAME.match(self.text, self.position)
        assert match is not None  # it may be empty
        self.position = match.end()
        return match.group().strip()

    def expect(self, wanted: str) -> None:
        word = self.next()
        if word.upper() != wanted.upper():
            raise self.error(f"{_quoted(word)} where {wanted} was expected")

    def numbers(self, count: int, what: str) -> tuple[float, ...]:
        words = [self.next() for _ in range(count)]
        numbers = tuple(number for word in words if (number := _number(word)) is not None)
        if len(numbers) < count:
            raise self.error(f"{what} is not {count} numbers: {' '.join(_quoted(word) for word in words)}")
        return numbers

    def error(self, message: str) -> ClipError:
        line = self.text.count("\n", 0, self.position) + 1
        return ClipError(f"line {line}: {message}")


@dataclass
class _Node:
    """A joint while it is being read."""

    name: str
    parent: int
    offset: tuple[float, float, float] | None = None
    channels: tuple[str, ...] | None = None


def _parse_hierarchy(header: str) -> tuple[Joint, ...]:
    """Returns the joints, each after its parent; raises ClipError."""
    words = _Words(header)
    first = words.next()
    if first.upper() != "HIERARCHY":
        raise ClipError(f"not a BVH file: it starts with {_quoted(first)}, not with HIERARCHY")
    nodes: list[_Node] = []
    inside: list[int] = []
    while word := words.next():
        key = word.upper()
        if key in ("ROOT", "JOINT", "END"):
            _open_node(words, key, nodes, inside)
        elif not inside:
            raise words.error(f"{_quoted(word)} outside of a joint")
        elif key == "OFFSET":
            _read_offset(words, nodes[inside[-1]])
        elif key == "CHANNELS":
            if inside[-1] != len(nodes) - 1:
                raise words.error("CHANNELS of a joint must come before its child joints")
            _read_channels(words, nodes[inside[-1]])
        elif key == "}":
            if nodes[inside.pop()].offset is None:
                raise words.error("a joint without OFFSET ends here")
        else:
            raise words.error(f"{_quoted(word)} where a joint's OFFSET, CHANNELS, JOINT, End Site or }} was expected")
    if not nodes:
        raise ClipError("no ROOT in its HIERARCHY")
    if inside:
        raise ClipError(f"cut short, or a closing brace is missing: {nodes[inside[-1]].name or 'an End Site'} is open")
    return tuple(Joint(node.name, node.parent, node.offset or (0, 0, 0), node.channels or ()) for node in nodes)


def _open_node(words: _Words, key: str, nodes: list[_Node], inside: list[int]) -> None:
    name = words.name()
    if key == "ROOT" and nodes:
        raise words.error(f"a second ROOT, {_quoted(name)}; a file may hold one figure")
    if key != "ROOT" and not inside:
        raise words.error(f"{'an End Site' if key == 'END' else f'JOINT {_quoted(name)}'} outside of the ROOT")
    if key != "END" and (not name or not name.isprintable()):
        raise words.error(f"{key} has {'an unprintable' if name else 'no'} name")
    if len(nodes) == _MOST_JOINTS:
        raise words.error(f"more than {_MOST_JOINTS} joints")
    words.expect("{")
    nodes.append(_Node("" if key == "END" else name, inside[-1] if inside else -1))
    inside.append(len(nodes) - 1)


def _read_offset(words: _Words, node: _Node) -> None:
    if node.offset is not None:
        raise words.error("a second OFFSET in one joint")
    x, y, z = words.numbers(3, "OFFSET")
    node.offset = x, y, z


def _read_channels(words: _Words, node: _Node) -> None:
    if node.channels is not None:
        raise words.error("a second CHANNELS in one joint")
    if not node.name:
        raise words.error("CHANNELS in an End Site")
    number = words.next()
    if number not in map(str, range(_MOST_CHANNELS + 1)):
        raise words.error(f"CHANNELS has {_quoted(number)} where a number from 0 to {_MOST_CHANNELS} was expected")
    channels = []
    for _ in range(int(number)):
        word = words.next()
        channel = word[:1].upper() + word[1:].lower()
        if not _CHANNEL.fullmatch(channel):
            raise words.error(f"channel {_quoted(word)} is not a position or rotation, such as Xrotation")
        channels.append(channel)
    positions = [channel for channel in channels if channel.endswith("position")]
    if len(set(positions)) < len(positions) or len(channels) - len(positions) > 3:
        raise words.error(f"CHANNELS {' '.join(channels)}: a position occurs twice, or there are over 3 rotations")
    node.channels = tuple(channels)


def _frame_count(text: TextIO) -> int:
    word = _value_of(text, _FRAMES, "Frames:")
    if not (word.isascii() and word.isdecimal() and len(word) < 16 and int(word)):
        raise ClipError(f"Frames: is {_quoted(word)}, not a number of frames")
    return int(word)


def _frame_rate(text: TextIO) -> float:
    word = _value_of(text, _FRAME_TIME, "Frame Time:")
    seconds = _number(word)
    if seconds is None or not 1e-5 < seconds < 1e5:
        raise ClipError(f"Frame Time: is {_quoted(word)}, not the duration of a frame in seconds")
    return 1 / seconds


def _value_of(text: TextIO, pattern: re.Pattern[str], what: str) -> str:
    while line := text.readline(_LARGEST_HEADER):
        if line.strip():
            match = pattern.fullmatch(line)
            if match:
                return match.group(1)
            raise ClipError(f"{_quoted(line.strip())} where {what} and its value were expected")
    raise ClipError(f"cut short: {what} is missing")


def _values(text: TextIO, names: Sequence[str], frames: int) -> NDArray[np.float64]:
    """Reads the numbers, float64 `[frames, channels]`; `names` are the channels. Raises ClipError."""
    width = len(names)
    # A valid file exactly fills this buffer, whose size is bounded by that of the file.
    values = np.empty(frames * width)
    read = 0
    counts = []
    for lines in _lines(text, width):
        rows = list(map(str.split, lines))
        counts.append(np.fromiter(map(len, rows), np.int64, len(rows)))
        count = int(counts[-1].sum())
        if read + count > values.size:
            break  # too many; `counts` shows which line is wrong
        values[read : read + count] = _floats(lines, rows, count, names, read)
        read += count
    _check_counts(np.concatenate(counts) if counts else np.zeros(0, np.int64), frames, width)
    return values.reshape(frames, width)


def _first_frame(text: TextIO, names: Sequence[str]) -> NDArray[np.float64]:
    """Reads the first frame's numbers, float64 `[1, channels]`; raises ClipError."""
    words: list[str] = []
    for lines in _lines(text, len(names), at_once=1):
        words += lines[0].split()
        if len(words) >= len(names):
            break
    return _values(io.StringIO(" ".join(words[: len(names)])), names, 1)


def _lines(text: TextIO, width: int, at_once: int | None = None) -> Iterator[list[str]]:
    """Yields non-blank lines, several at a time; raises ClipError for a line too long for `width` numbers."""
    limit = _LONGEST_NUMBER * (width + 16)
    most = at_once or max(1, _VALUES_AT_ONCE // width)
    lines: list[str] = []
    while line := text.readline(limit):
        if "\x1a" in line or "\0" in line:
            line = line.rstrip(_AFTER_THE_END)
            while more := text.read(2**16):
                if more.strip(_AFTER_THE_END):
                    raise ClipError("an end-of-file mark (^Z or NUL) is inside its motion")
        if len(line) == limit:
            raise ClipError(f"a line of motion is longer than {width} numbers can be")
        if line and not line.isspace():
            lines.append(line)
        if len(lines) == most:
            yield lines
            lines = []
    if lines:
        yield lines


def _floats(
    lines: list[str], rows: list[list[str]], count: int, names: Sequence[str], before: int
) -> NDArray[np.float64]:
    """Converts the words in `rows` of `lines` to `count` numbers, which follow `before` others; raises ClipError."""
    with suppress(ValueError):
        found = np.fromiter(map(float, chain.from_iterable(rows)), np.float64, count)
        if all(map(_is_plain, lines)):
            return found
    values = []
    for index, word in enumerate(chain.from_iterable(rows), before):
        value = _value(word)
        if value is None:
            frame, channel = divmod(index, len(names))
            raise ClipError(f"frame {frame}: {names[channel]} is {_quoted(word)}, not a number")
        values.append(value)
    return np.array(values)


def _check_counts(counts: NDArray[np.int64], frames: int, width: int) -> None:
    """Raises ClipError if lines with these counts of values are not `frames` frames of `width`, each on new lines."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    reached = ends[ends % width == 0] // width  # frames that end with a line
    gaps = np.flatnonzero(reached != np.arange(1, len(reached) + 1))
    whole = int(gaps[0]) if gaps.size else len(reached)
    if whole * width == total and whole == frames:
        return
    if whole * width < total and (gaps.size or total - whole * width > width):
        line = int(counts[np.searchsorted(ends, whole * width, side="right")])
        raise ClipError(f"frame {whole} starts with a line of {line} values; a frame has {width} channels")
    if whole >= frames:
        raise ClipError(f"more motion than the {frames} frames that Frames: gives")
    part = f", and {total - whole * width} of the {width} values of the next" if whole * width < total else ""
    raise ClipError(f"cut short: Frames: gives {frames}, there are {whole}{part}")


def _number(word: str) -> float | None:
    """Returns a finite number, or None if the word is not one."""
    number = _value(word)
    return number if number is not None and math.isfinite(number) else None


def _value(word: str) -> float | None:
    """Returns the number that a word stands for, NaN and infinity included, or None if it is not a number."""
    if not _is_plain(word):
        return None
    try:
        return float(word)
    except ValueError:
        match = _NOT_FINITE.fullmatch(word)
    if match is None:
        return None
    sign = -1 if match[1] == "-" else 1
    return sign * (math.inf if match[2] else math.nan)


def _is_plain(word: str) -> bool:
    """Returns whether Python's float reads a word as others do; float also takes 1_000 and digits of other scripts."""
    return word.isascii() and "_" not in word


def _quoted(word: str) -> str:
    """Quotes a word of a file for a message: short, in ASCII, on one line."""
    if not word:
        return "the end"
    quoted = ascii(word[:_LONGEST_QUOTE])
    is_whole = len(word) <= _LONGEST_QUOTE and len(quoted) <= _LONGEST_QUOTE + 2
    return quoted if is_whole else f"{quoted[:_LONGEST_QUOTE]}..."
