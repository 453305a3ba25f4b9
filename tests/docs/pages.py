"""The project's pages, and the commands and programs in their fenced blocks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_FOUND = ("*.md", "docs/**/*.md", "examples/*.md")
PAGES = sorted(page for pattern in _FOUND for page in ROOT.glob(pattern) if page.name != "CHANGELOG.md")
RUN = ("bash", "sh", "python", "json")
"""Languages of blocks that are run; `sh` is a batch script, whose syntax is checked."""
SHOWN = ("text", "")
"""Languages of blocks that show what is printed."""
_OPERATORS = {"&&", "&", ";", "||"}


class Block(NamedTuple):
    """A fenced block, with the line of its page on which its text begins."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Command(NamedTuple):
    """One command of a block: variables set for it alone, its words, and the file that its output goes to."""

    where: str
    variables: dict[str, str]
    words: tuple[str, ...]
    output: str | None

    @property
    def text(self) -> str:
        assigned = [f"{name}={value}" for name, value in self.variables.items()]
        return " ".join([*assigned, *self.words, *([f"> {self.output}"] if self.output else [])])


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order; indented fences too."""
    blocks: list[Block] = []
    language: str | None = None
    indent, begin, inside = "", 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if fence := re.match(r"( *)```(\S*)", line):
            if language is None:
                language, indent, begin, inside = fence[2], fence[1], number + 1, []
            else:
                blocks.append(Block(page, begin, language, "\n".join(inside) + "\n"))
                language = None
        elif language is not None:
            inside.append(line.removeprefix(indent))
    assert language is None, f"{page}: the block of line {begin - 1} has no end"
    return blocks


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a bash block that has no control structures."""
    number, pending = block.line, ""
    for line in block.text.splitlines():
        pending += line
        number += 1
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        lexer = shlex.shlex(pending, posix=True, punctuation_chars="&;|<>")
        lexer.commenters = "#"
        lexer.wordchars += "${}()*,:@^%!+"  # what a word of the shell holds and shlex takes for an end of it
        words, start = list(lexer), f"{block.page.relative_to(ROOT)}:{number - 1}"
        pending = ""
        while words:
            end = next((index for index, word in enumerate(words) if word in _OPERATORS), len(words))
            if words[:end]:
                yield _command(start, words[:end])
            words = words[end + 1 :]


def _command(where: str, words: list[str]) -> Command:
    output = None
    if ">" in words:
        at = words.index(">")
        output = words[at + 1]
        words = [*words[:at], *words[at + 2 :]]
    variables = {}
    while words and (assigned := re.fullmatch(r"([A-Z_]+)=(.*)", words[0], re.DOTALL)):
        variables[assigned[1]] = assigned[2]
        words = words[1:]
    return Command(where, variables, tuple(words), output)
