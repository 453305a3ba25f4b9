"""Text for a terminal or a pipe: how wide it may be, and whether it has colour.

Results and messages are built of pieces that say what they are ("best", "bad", "path", …); what that looks like is
decided here alone, by rich, which is imported when text is made. A pipe gets plain lines, however long.
"""

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeAlias, Union, runtime_checkable

from ds_rvqvae.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Piece: TypeAlias = Union[str, tuple[str, str], "Text"]
"""Text, or a pair of text and style: one of `STYLES`, or what rich understands. Names of users need no escaping."""
Line: TypeAlias = Piece | Sequence[Piece]
"""Pieces one behind the other; two strings in a tuple are one piece."""

STYLES = {
    "title": "bold",
    "faint": "dim",
    "good": "green",
    "best": "bold green",
    "warning": "yellow",
    "bad": "red",
    "worst": "red",
    "error": "bold red",
    "bar": "cyan",
    "path": "none",
    "name": "none",
}
"""What pieces are, and how that looks. A "path", and a command to be copied, is never broken; a "name" of a clip or
file neither, and one that is longer than a line loses its middle."""

_EMPHASIS = {"error:": "\x1b[1;31m", "warning:": "\x1b[33m"}
"""As rich writes the styles of these names."""
_WORD = re.compile(r"(?:`[^`]*`|\S)+\s*")
"""With the blanks behind it; a command between backquotes is one."""
_SMALLEST_WIDTH, _USUAL_WIDTH = 20, 80
SHORTEST_NAME = 12
"""Cells down to which a name is shortened."""
_PLAINER = str.maketrans(
    {
        "…": "...",
        "█": "#",
        "░": ".",
        "×": "x",
        "°": "",
        "–": "-",
        **dict.fromkeys("▏▎▍", " "),
        **dict.fromkeys("▌▋▊▉", "#"),
        **dict(zip("▁▂▃▄▅▆▇", "_.-~=+*", strict=True)),
    }
)


@runtime_checkable
class Lines(Protocol):
    """What makes its lines by itself, as a table does."""

    def lines(self, terminal: "Terminal") -> "list[Text]":
        """As many as it takes where it is to be shown."""


Block: TypeAlias = Line | Lines


class Stream(Protocol):
    """As `sys.stdout` and `QueuedStream` are."""

    def isatty(self) -> bool: ...
    def fileno(self) -> int: ...


def is_coloured(stream: Stream, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether text for it has colour: on terminals, as rich decides it; nothing at all under `NO_COLOR`."""
    if environment.get("NO_COLOR") or environment.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    if environment.get("TTY_COMPATIBLE") in ("0", "1"):
        return environment["TTY_COMPATIBLE"] == "1"
    forced = environment.get("FORCE_COLOR")
    return _is_terminal(stream) if forced is None else forced != ""


def emphasised(message: str) -> str:
    """A message with colour on the word that tells a refusal or a warning. Never imports: messages come at any time."""
    for word, code in _EMPHASIS.items():
        if message.startswith(word):
            return f"{code}{word}\x1b[0m{message[len(word) :]}"
    return message


def broken(message: str, columns: int) -> str:
    """A refusal or a warning for a terminal, in lines that are broken between words where that can be."""
    if not message.startswith(tuple(_EMPHASIS)):
        return message
    return "\n".join("\n".join(_between_words(line, columns)) for line in message.split("\n"))


def _between_words(line: str, columns: int) -> list[str]:
    """A line as several of so many cells; what stands between backquotes is one word. Never imports."""
    text = line.lstrip()
    lines, now = [], line[: len(line) - len(text)]
    for word in _WORD.findall(text):
        if now.strip() and _cells(now) + _cells(word.rstrip()) > columns:
            lines.append(now.rstrip())
            now = "  "
        now += word
    return [*lines, now.rstrip()]


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else not unicodedata.combining(one) for one in text)


def warned(line: str) -> Line:
    """A line of a result that may be a warning: then its first word has the style of one."""
    word = "warning:"
    return [(word, "warning"), line[len(word) :]] if line.startswith(word) else line


def _is_terminal(stream: Stream) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False


def width_of(stream: Stream, environment: Mapping[str, str] = os.environ) -> int | None:
    """Columns of a terminal, of which `COLUMNS` is believed first; None for anything else, whose lines have no end."""
    if not _is_terminal(stream):
        return None
    told = environment.get("COLUMNS", "")
    try:
        columns = int(told) if told.isdecimal() else os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # it hung up, or has no number
        columns = 0
    return max(columns or _USUAL_WIDTH, _SMALLEST_WIDTH)


def terminal_of(stream: Stream | None = None) -> "Terminal":
    """What is known of a stream; by default of standard output."""
    stream = stream or sys.stdout
    return Terminal(width_of(stream), is_coloured(stream), getattr(stream, "encoding", None) or "utf-8")


@dataclass(frozen=True)
class Terminal:
    """Where text goes.

    Args:
        width: cells of a line; None: lines are as long as they are, as in a pipe or file.
        colour: whether escape codes are understood and wanted.
        encoding: characters that it does not have are replaced by plainer ones.
    """

    width: int | None = None
    colour: bool = False
    encoding: str = "utf-8"

    @property
    def ellipsis(self) -> str:
        return "…" if self._can_show("…") else "..."

    def text(self, blocks: Iterable[Block]) -> str:
        """Lines and tables as one text, without a last newline. Long lines go on below, broken between words."""
        lines: list[Text] = []
        for block in blocks:
            lines += block.lines(self) if isinstance(block, Lines) else self.wrapped(text_piece(block))
        return "\n".join(map(self.shown, lines))

    def shown(self, line: "Text") -> str:
        """One line with its escape codes, in characters that can be encoded."""
        line = line.copy()
        line.rstrip()
        text = _coloured(line) if self.colour else line.plain
        return text if self._can_show(text) else "".join(map(self._plainer, text))

    def wrapped(self, line: "Text", hanging: int | None = None) -> "list[Text]":
        """A line as lines that fit. What is longer than a line by itself stands on one of its own.

        Args:
            hanging: cells that the further lines begin with; two more than the first one has where it is not given.
        """
        if self.width is None or line.cell_len <= self.width:
            return [line]
        plain = line.plain
        hanging = (len(plain) - len(plain.lstrip()) + 2) if hanging is None else hanging
        lines: list[Text] = []
        begun = end = 0
        for start, stop in _words(line):
            indent = hanging if lines else 0
            last = start + len(plain[start:stop].rstrip())
            if plain[begun:start].strip() and indent + line[begun:last].cell_len > self.width:
                lines.append(line[begun:end])
                begun = start
            end = stop
        lines.append(line[begun:end])
        lines = [lines[0], *(text_piece(" " * hanging) + more for more in lines[1:])]
        return [self._fitted(more) for more in lines if more.plain.strip()]

    def _fitted(self, line: "Text") -> "Text":
        """A line whose name is shortened where that makes it fit."""
        names = [span for span in line.spans if span.style == "name"]
        over = line.cell_len - len(line.plain) + len(line.plain.rstrip()) - (self.width or 0)
        if over <= 0 or not names:
            return line
        span = max(names, key=lambda span: span.end - span.start)
        name = line[span.start : span.end]
        short = shortened(name.plain, max(name.cell_len - over, SHORTEST_NAME), self.ellipsis)
        return line[: span.start] + text_piece((short, "name")) + line[span.end :]

    def _can_show(self, text: str) -> bool:
        try:
            text.encode(self.encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def _plainer(self, character: str) -> str:
        if self._can_show(character):
            return character
        plainer = character.translate(_PLAINER)
        if plainer == character:
            plainer = unicodedata.normalize("NFKD", character)
        return "".join(one for one in plainer if self._can_show(one)) if self._can_show(plainer[:1]) else "?"


PLAIN = Terminal()
"""A pipe or a file."""


def text_piece(line: Line) -> "Text":
    """A line of rich; what is in it is never taken for markup or for a terminal's commands."""
    from rich.text import Span, Text

    if isinstance(line, Text):
        return line
    if isinstance(line, str):
        return Text(printable(line))
    if _is_styled(line):
        text, style = (str(part) for part in line)
        return Text(text := printable(text), spans=[Span(0, len(text), style)])
    whole = Text()
    for piece in line:
        whole.append_text(text_piece(piece))
    return whole


def _is_styled(line: Line) -> bool:
    return isinstance(line, tuple) and len(line) == 2 and all(isinstance(part, str) for part in line)


def _words(line: "Text") -> Iterator[tuple[int, int]]:
    """Start and end of each word with the blanks behind it; a path is one word, whatever is in it."""
    plain, start = line.plain, 0
    whole = [(span.start, span.end) for span in line.spans if span.style in ("path", "name")]
    for place in range(1, len(plain)):
        inside = any(first < place < last for first, last in whole)
        if plain[place - 1] == " " and plain[place] != " " and not inside and plain[:place].strip():
            yield start, place
            start = place
    yield start, len(plain)


def shortened(text: str, width: int, ellipsis: str = "…") -> str:
    """A name in at most so many cells, without its middle where it is longer."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    room = max(width - len(ellipsis), 2)
    head, tail = "", ""
    for character in text:
        if cell_len(head + character) > (room + 1) // 2:
            break
        head += character
    for character in reversed(text):
        if cell_len(head + character + tail) > room:
            break
        tail = character + tail
    return f"{head}{ellipsis}{tail}"


def bar(share: float, width: int, rest: str = "░") -> str:
    """`share` from 0 to 1 as a bar of `width` characters, in eighths."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[part - 1] if part else "")).ljust(width, rest)


@cache
def _console() -> "Console":
    from rich.console import Console
    from rich.theme import Theme

    return Console(
        theme=Theme(STYLES), force_terminal=True, color_system="standard", no_color=False, width=1 << 16, _environ={}
    )


def _coloured(line: "Text") -> str:
    console = _console()
    segments = line.render(console)
    system = console._color_system
    return "".join(
        segment.style.render(segment.text, color_system=system) if segment.style else segment.text
        for segment in segments
    )
