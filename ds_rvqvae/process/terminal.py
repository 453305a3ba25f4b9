"""Format text for a terminal or a pipe, with the right width and colours.

Results and messages are built from pieces with a style name ("best", "bad", "path", …). Only this module decides the
look of a style, with rich, which is imported on first use. A pipe gets plain lines of any length.
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
"""Text, or a pair of text and style: one of `STYLES`, or a style of rich. Names from users need no escaping."""
Line: TypeAlias = Piece | Sequence[Piece]
"""Pieces in sequence; two strings in a tuple are one piece."""

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
"""Styles of pieces, and their look. A "path", which may also be a command to copy, is never broken. Neither is the
"name" of a clip or file; a name that is longer than a line loses its middle."""

_EMPHASIS = {"error:": "\x1b[1;31m", "warning:": "\x1b[33m"}
"""The escape codes that rich writes for these styles."""
_WORD = re.compile(r"(?:`[^`]*`|\S)+\s*")
"""A word and the blanks behind it; a command between backquotes is one word."""
_SMALLEST_WIDTH, _USUAL_WIDTH = 20, 80
SHORTEST_NAME = 12
"""Smallest width to which a name is shortened, in terminal cells."""
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
    """An object that makes its lines by itself, as a table does."""

    def lines(self, terminal: "Terminal") -> "list[Text]":
        """Returns the lines for this terminal."""


Block: TypeAlias = Line | Lines


class Stream(Protocol):
    """A stream such as `sys.stdout` or `QueuedStream`."""

    def isatty(self) -> bool: ...
    def fileno(self) -> int: ...


def is_coloured(stream: Stream, environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether text for a stream has colour: on terminals, by the rules of rich; never with `NO_COLOR`."""
    if environment.get("NO_COLOR") or environment.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    if environment.get("TTY_COMPATIBLE") in ("0", "1"):
        return environment["TTY_COMPATIBLE"] == "1"
    forced = environment.get("FORCE_COLOR")
    return _is_terminal(stream) if forced is None else forced != ""


def emphasised(message: str) -> str:
    """Returns a message with colour on a first word "error:" or "warning:". It imports nothing: messages come at any
    time."""
    for word, code in _EMPHASIS.items():
        if message.startswith(word):
            return f"{code}{word}\x1b[0m{message[len(word) :]}"
    return message


def broken(message: str, columns: int) -> str:
    """Breaks an error or a warning into lines for a terminal, between words if possible."""
    if not message.startswith(tuple(_EMPHASIS)):
        return message
    return "\n".join("\n".join(_between_words(line, columns)) for line in message.split("\n"))


def _between_words(line: str, columns: int) -> list[str]:
    """Breaks a line into lines of at most so many cells; text between backquotes is one word. It imports nothing."""
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
    """Returns a line of a result; if it is a warning, its first word gets the style of one."""
    word = "warning:"
    return [(word, "warning"), line[len(word) :]] if line.startswith(word) else line


def _is_terminal(stream: Stream) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # the stream is closed
        return False


def width_of(stream: Stream, environment: Mapping[str, str] = os.environ) -> int | None:
    """Returns the columns of a terminal, from `COLUMNS` first; None for anything else, whose lines have no limit."""
    if not _is_terminal(stream):
        return None
    told = environment.get("COLUMNS", "")
    try:
        columns = int(told) if told.isdecimal() else os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # it was closed, or has no file descriptor
        columns = 0
    return max(columns or _USUAL_WIDTH, _SMALLEST_WIDTH)


def terminal_of(stream: Stream | None = None) -> "Terminal":
    """Returns the width, colour and encoding of a stream; by default of standard output."""
    stream = stream or sys.stdout
    return Terminal(width_of(stream), is_coloured(stream), getattr(stream, "encoding", None) or "utf-8")


@dataclass(frozen=True)
class Terminal:
    """The destination of text.

    Args:
        width: terminal cells per line; None for no limit, as in a pipe or file.
        colour: whether to use escape codes.
        encoding: characters that it lacks are replaced by plainer ones.
    """

    width: int | None = None
    colour: bool = False
    encoding: str = "utf-8"

    @property
    def ellipsis(self) -> str:
        return "…" if self._can_show("…") else "..."

    def text(self, blocks: Iterable[Block]) -> str:
        """Returns lines and tables as one text, without a last newline. Long lines are broken between words."""
        lines: list[Text] = []
        for block in blocks:
            lines += block.lines(self) if isinstance(block, Lines) else self.wrapped(text_piece(block))
        return "\n".join(map(self.shown, lines))

    def shown(self, line: "Text") -> str:
        """Returns one line with its escape codes, in characters that can be encoded."""
        line = line.copy()
        line.rstrip()
        text = _coloured(line) if self.colour else line.plain
        return text if self._can_show(text) else "".join(map(self._plainer, text))

    def wrapped(self, line: "Text", hanging: int | None = None) -> "list[Text]":
        """Breaks a line into lines that fit. A word that is longer than a line gets its own line.

        Args:
            hanging: blanks before the further lines; by default two more than before the first one.
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
        """Returns a line with its longest name shortened, so that it fits."""
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
"""A pipe or a file: no limit of width, no colour."""


def text_piece(line: Line) -> "Text":
    """Returns a line as rich's text; its content is never read as markup or as terminal commands."""
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
    """Yields the start and end of each word with the blanks behind it; a path is always one word."""
    plain, start = line.plain, 0
    whole = [(span.start, span.end) for span in line.spans if span.style in ("path", "name")]
    for place in range(1, len(plain)):
        inside = any(first < place < last for first, last in whole)
        if plain[place - 1] == " " and plain[place] != " " and not inside and plain[:place].strip():
            yield start, place
            start = place
    yield start, len(plain)


def shortened(text: str, width: int, ellipsis: str = "…") -> str:
    """Shortens a name to at most so many cells by cutting its middle."""
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
    """Returns a fraction `share` from 0 to 1 as a bar of `width` characters, in eighths."""
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
