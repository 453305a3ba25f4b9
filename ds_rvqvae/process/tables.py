"""Print tables that fit a terminal; a pipe gets them complete."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, Union

from ds_rvqvae.process.terminal import SHORTEST_NAME, Line, Terminal, shortened, text_piece

if TYPE_CHECKING:
    from rich.text import Text

Cell: TypeAlias = Line | Callable[[int], Line]
"""A cell of a table; in a column that grows it may be a function of the width."""
_Cell: TypeAlias = Union["Text", Callable[[int], Line]]
_SHORTEST_WORDS = 16
"""Smallest width of a column of words, in terminal cells."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        unit: a second line below the title.
        left: whether text begins at the left; numbers end at the right.
        shrinks: for names, which are shortened in the middle if there is no room.
        wraps: for words, which continue on the next line; for the last column only.
        grows: the width up to which it takes free room.
        joined: whether it stays beside the column before it.
        dropped: if there is no room, columns with the highest number are dropped first; those with 0 stay.
    """

    title: str = ""
    unit: str = ""
    left: bool = False
    shrinks: bool = False
    wraps: bool = False
    grows: int = 0
    joined: bool = False
    dropped: int = 0


@dataclass
class Table:
    """Cells in columns. If there is no room, names are shortened and columns are dropped, and the remaining columns are
    printed below, with the first column repeated.

    Args:
        rows: one cell per column.
        styles: styles of complete rows, by row number.
        indent: blanks before each line.
        headed: whether to show titles.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    styles: Mapping[int, str] = field(default_factory=dict)
    indent: int = 0
    headed: bool = True

    def lines(self, terminal: Terminal) -> "list[Text]":
        """Returns the lines of the complete table."""
        cells = [[cell if callable(cell) else text_piece(cell) for cell in row] for row in self.rows]
        lines: list[Text] = []
        heads = self._heads()
        rows: list[Sequence[_Cell]] = [*heads, *cells]
        for number, (chosen, widths, gap) in enumerate(self._blocks(self._natural_widths(rows), terminal.width)):
            lines += [text_piece("")] if number else []
            for place, row in enumerate(rows):
                style = "title" if place < len(heads) else self.styles.get(place - len(heads), "")
                for line in self._row(terminal, row, chosen, widths, gap):
                    line.stylize_before(style)
                    lines.append(line)
        return lines

    def _natural_widths(self, rows: "Sequence[Sequence[_Cell]]") -> list[int]:
        return [
            max([0, *(cell.cell_len for row in rows if not callable(cell := row[at]))])
            for at in range(len(self.columns))
        ]

    def _heads(self) -> "list[list[Text]]":
        if not self.headed:
            return []
        heads = [[text_piece(column.title) for column in self.columns]]
        if any(column.unit for column in self.columns):
            heads.append([text_piece(column.unit) for column in self.columns])
        return heads

    def _blocks(self, natural: list[int], width: int | None) -> "Iterator[tuple[list[int], list[int], int]]":
        """Yields blocks of columns that stand side by side, their widths, and the gap between them; words are in the
        last block."""
        chosen, widths = [at for at, column in enumerate(self.columns) if not column.wraps], list(natural)
        words = [at for at, column in enumerate(self.columns) if column.wraps]
        if width is None:
            yield [*chosen, *words], widths, 2
            return
        room = width - self.indent
        least = [min(size, SHORTEST_NAME) if self.columns[at].shrinks else size for at, size in enumerate(natural)]
        for at in words:  # beside the others if there is room, else below them
            beside = min(natural[at], max(_SHORTEST_WORDS, width // 3)) + 2
            room -= beside if _width(chosen, least, 2) + beside <= room else 0
        while _width(chosen, least, 1) > room and (drops := max(self.columns[at].dropped for at in chosen)):
            chosen.remove(next(at for at in reversed(chosen) if self.columns[at].dropped == drops))
        # All side by side with one blank between them, or in several blocks with two.
        gap = 1 if _width(chosen, least, 1) <= room < _width(chosen, least, 2) else 2
        blocks, left = [], chosen
        while left:
            block = list(left)
            while len(block) > 2 and (_width(block, least, gap) > room or self._parts_a_pair(left, block)):
                block.pop()
            blocks.append(block)
            left = [at for at in left if at not in block]
            left = [block[0], *left] if left else []
        all_widths = [self._filled(block, least, natural, room, gap) for block in blocks]
        label = min(widths[blocks[0][0]] for widths in all_widths)  # the same width in each block
        for block, widths in zip(blocks, all_widths, strict=True):
            widths[block[0]] = label
            yield [*block, *words] if block is blocks[-1] else block, widths, gap

    def _filled(self, block: list[int], least: list[int], natural: list[int], room: int, gap: int) -> list[int]:
        """Returns widths of columns side by side; names and columns that grow take the free room."""
        widths = list(least)
        for at in block:
            rest = room - _width(block, widths, gap)
            most = natural[at] if self.columns[at].shrinks else max(self.columns[at].grows, widths[at])
            widths[at] = max(widths[at], min(most, widths[at] + rest))
        return widths

    def _parts_a_pair(self, chosen: Sequence[int], block: Sequence[int]) -> bool:
        left = [at for at in chosen if at not in block]
        return len(block) > 2 and bool(left) and self.columns[left[0]].joined

    def _row(
        self,
        terminal: Terminal,
        row: "Sequence[Text | Callable[[int], Line]]",
        chosen: list[int],
        widths: list[int],
        gap: int,
    ) -> "list[Text]":
        line = text_piece(" " * self.indent)
        for at in chosen:
            column, given = self.columns[at], row[at]
            cell = text_piece(given(widths[at])) if callable(given) else given
            if column.wraps:
                room = (terminal.width or 0) - line.cell_len
                if terminal.width is None or room >= min(widths[at], _SHORTEST_WORDS):
                    return terminal.wrapped(line + cell, line.cell_len)
                indent = self.indent + 4
                return [line, *(terminal.wrapped(text_piece(" " * indent) + cell, indent) if cell.plain else ())]
            if cell.cell_len > widths[at]:
                name = shortened(cell.plain, widths[at], terminal.ellipsis)
                cell = text_piece((name, str(cell.spans[0].style))) if cell.spans else text_piece(name)
            blanks = text_piece(" " * (widths[at] - cell.cell_len))
            line = line + (cell + blanks if column.left else blanks + cell) + " " * gap
        line.rstrip()
        return [line]


def _width(chosen: Sequence[int], widths: Sequence[int], gap: int) -> int:
    """Returns the terminal cells that columns take side by side."""
    return sum(widths[at] for at in chosen) + gap * (len(chosen) - 1)
