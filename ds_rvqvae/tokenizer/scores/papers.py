"""The table of a comparison as Markdown and as LaTeX, ready for a paper."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ds_rvqvae.errors import printable
from ds_rvqvae.tokenizer.scores.comparison import spread_notes
from ds_rvqvae.tokenizer.scores.protocols import protocol_lines_of_all
from ds_rvqvae.tokenizer.scores.tables import COMPARED, LOWER_IS_BETTER, are_comparable

_TRUTH = "_truth"
_COLUMNS = 4
"""Columns of numbers side by side in LaTeX."""
# Brackets and stars would be arguments of the line break before them.
_LATEX = {
    **{character: f"{{{character}}}" for character in "[]*"},
    "`": r"\textasciigrave{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "°": r"$^\circ$",
    "²": "$^2$",
    "³": "$^3$",
    "…": r"\dots{}",
}
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~#&$])")


class Head(NamedTuple):
    """The head of a column."""

    title: str
    unit: str = ""
    lower_is_better: bool = False


class Cell(NamedTuple):
    """A number with its interval; marked as the best, or as not certain to differ from it."""

    text: str
    interval: str | None = None
    is_best: bool = False
    is_like_best: bool = False


@dataclass
class PaperTable:
    """A table of tokenizers.

    Args:
        heads: of all columns; the first is of the names.
        rows: name and one cell per other column.
        original: the row of the original motion, where it has numbers of its own.
        caption: sentences.
    """

    heads: list[Head]
    rows: list[tuple[str, list[Cell]]]
    original: list[Cell] | None
    caption: list[str]

    def markdown(self) -> str:
        """Returns a table in GitHub's Markdown, with the caption below."""
        heads = [_markdown(head.title) + _unit(head) + " ↓" * head.lower_is_better for head in self.heads]
        lines = [heads, [":--", *("--:" for _ in heads[1:])]]
        lines += [[_markdown(name), *map(_markdown_cell, cells)] for name, cells in self._all_rows()]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{table}\n\n{' '.join(map(_markdown, self.caption))}\n"

    def latex(self) -> str:
        """Returns a floating table; its document needs the packages booktabs and graphicx. Wide tables continue
        below, with the names repeated, and shrink to the width of the page."""
        blocks = [self._latex_block(at, at + _COLUMNS) for at in range(0, len(self.heads) - 1, _COLUMNS)]
        lines = [
            r"% Needs \usepackage{booktabs} and \usepackage{graphicx}.",
            r"\begin{table*}[t]",
            r"\centering\footnotesize",
            rf"\caption{{{' '.join(map(_latex, self.caption))}}}",
            r"\label{tab:tokenizers}",
            "\n\\par\\medskip\n".join(blocks),
            r"\end{table*}",
        ]
        return "\n".join(lines) + "\n"

    def _latex_block(self, start: int, stop: int) -> str:
        """Returns some columns, beside the names, as a tabular that is at most as wide as the page."""
        chosen = [self.heads[0], *self.heads[1:][start:stop]]
        heads = [_latex(head.title) + r" $\downarrow$" * head.lower_is_better for head in chosen]
        rows = [_latex_row([_latex(name), *map(_latex_cell, cells[start:stop])]) for name, cells in self.rows]
        if self.original is not None and any(cell.text for cell in self.original[start:stop]):
            rows += [r"\midrule", _latex_row(["original motion", *map(_latex_cell, self.original[start:stop])])]
        lines = [
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (len(chosen) - 1)}}}",
            r"\toprule",
            *(_latex_row(heads), _latex_row([_latex(head.unit) for head in chosen])),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
        ]
        return "\n".join(lines)

    def _all_rows(self) -> list[tuple[str, list[Cell]]]:
        return self.rows if self.original is None else [*self.rows, ("original motion", self.original)]


def paper_table(
    results: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]], notes: Sequence[str]
) -> PaperTable:
    """Returns the table of one or more tokenizers.

    Args:
        results: scores with `intervals`, as `evaluate` makes them.
        differences: as `all_differences` gives them; without them no value is marked.
        notes: sentences of the caption: what was scored, and what can be compared.
    """
    columns = [column for column in COMPARED if any(one.get(column[0]) is not None for one in results)]
    shares_original = are_comparable(results) and all(
        _are_close([one.get(key) for one in results]) for key, *_ in columns if key.endswith(_TRUTH)
    )
    originals = {key.removesuffix(_TRUTH): results[0].get(key) for key, *_ in columns if key.endswith(_TRUTH)}
    if shares_original:
        columns = [column for column in columns if not column[0].endswith(_TRUTH)]
    best = {key: _best(results, key) if differences else set() for key, *_ in columns}
    rows = [
        (printable(one["name"]), [_cell(one, key, form, best[key], differences) for key, _, _, form in columns])
        for one in results
    ]
    original = None
    if shares_original and originals:
        original = [Cell(_number(originals.get(key), form)) for key, _, _, form in columns]
        original = [Cell("") if cell.text == "-" else cell for cell in original]
    heads = [Head(title, "%" if "%" in form else unit, key in LOWER_IS_BETTER) for key, title, unit, form in columns]
    return PaperTable([Head("tokenizer"), *heads], rows, original, _caption(results, rows, notes))


def _caption(
    results: Sequence[dict[str, Any]], rows: Sequence[tuple[str, list[Cell]]], notes: Sequence[str]
) -> list[str]:
    cells = [cell for _, own in rows for cell in own]
    places = dict.fromkeys(Path(one["data_path"]).name for one in results)
    said = [note if note.endswith(".") else f"{note}." for note in notes]
    found = [f"Motion: {', '.join(places)}.", *said, *spread_notes(results)]
    if any(cell.is_best for cell in cells):
        found.append("Bold: the best value.")
    if any(cell.is_like_best for cell in cells):
        found.append("≈: not certain to differ from the best value: the interval of their paired difference has 0.")
    return [*found, *(f"{line}." for line in protocol_lines_of_all(results))]


def _best(results: Sequence[dict[str, Any]], key: str) -> set[str]:
    """Returns the names of the tokenizers with the lowest error, if there are higher ones."""
    values = {one["name"]: one[key] for one in results if one.get(key) is not None}
    if key not in LOWER_IS_BETTER or len(set(values.values())) < 2:
        return set()
    return {name for name, value in values.items() if value == min(values.values())}


def _cell(result: dict[str, Any], key: str, form: str, best: set[str], differences: Sequence[dict[str, Any]]) -> Cell:
    value, bounds, name = result.get(key), result["intervals"].get(key), result["name"]
    interval = None
    if value is not None and bounds is not None:
        interval = f"[{_number(bounds[0], form)}, {_number(bounds[1], form)}]"
    is_like_best = name not in best and any(
        {pair["first"], pair["second"]} == {name, other} and pair["scores"].get(key, {}).get("is_certain") is False
        for pair in differences
        for other in best
    )
    return Cell(_number(value, form), interval, name in best, is_like_best)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form).removesuffix("%")


def _are_close(values: Sequence[float | None]) -> bool:
    there = [value for value in values if value is not None]
    return len(there) == len(values) and all(math.isclose(value, there[0], rel_tol=1e-3) for value in there)


def _unit(head: Head) -> str:
    return f" ({_markdown(head.unit)})" if head.unit else ""


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", printable(text))


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.is_best else cell.text
    return "≈ " * cell.is_like_best + text + (f" \\[{cell.interval[1:-1]}\\]" if cell.interval else "")


def _latex(text: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in printable(text))
    return text.replace("--", "-{}-").replace("--", "-{}-")  # no dash of two hyphens


def _latex_cell(cell: Cell) -> str:
    text = cell.text.replace("-", "--") if cell.text == "-" else cell.text
    text = rf"\textbf{{{text}}}" if cell.is_best else text
    return r"$\approx$ " * cell.is_like_best + text + (rf" {{\scriptsize {cell.interval}}}" if cell.interval else "")


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
