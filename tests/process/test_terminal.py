"""Text that fits a terminal, its colours, and text in a pipe."""

import io
import itertools
import re
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from ds_rvqvae.process.terminal import (
    PLAIN,
    Terminal,
    bar,
    broken,
    emphasised,
    is_coloured,
    shortened,
    terminal_of,
    width_of,
)
from tests.process.terminals import Terminal as OwnTerminal

CODES = re.compile(r"\x1b\[[\d;]*m")
WORDS = "because of this and that and of more than goes into one line"


class Played(io.StringIO):
    """A stream that says that it is a terminal, or not."""

    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def widest(text):
    return max(cell_len(line) for line in CODES.sub("", text).splitlines())


class TestWhetherThereIsColour:
    VARIABLES = {
        "TERM": (None, "xterm-256color", "dumb", "unknown"),
        "FORCE_COLOR": (None, "", "1"),
        "TTY_COMPATIBLE": (None, "0", "1"),
        "NO_COLOR": (None, "", "1"),
    }

    @pytest.mark.parametrize("is_terminal", [True, False])
    def test_it_is_where_rich_has_colour(self, is_terminal):
        seen = set()
        for values in itertools.product(*self.VARIABLES.values()):
            environment = {name: value for name, value in zip(self.VARIABLES, values, strict=True) if value is not None}
            rich = Console(file=Played(is_terminal), _environ=environment)
            expected = rich.color_system is not None and not rich.no_color
            assert is_coloured(Played(is_terminal), environment) is expected, environment
            seen.add(expected)
        assert seen == {True, False}

    def test_refusals_and_warnings_begin_as_rich_writes_these_styles(self):
        for word in ("error", "warning"):
            styled = Terminal(colour=True).text([[(f"{word}:", word), " no clip"]])
            assert emphasised(f"{word}: no clip") == styled != f"{word}: no clip"
        assert emphasised("no error: here") == "no error: here"

    def test_they_are_broken_between_words_and_other_lines_are_left(self):
        path = "/a/path/without/any/end/of/it/in/sight.npz"
        lines = broken(f"error: {path}: {WORDS}\n  a detail", 30).split("\n")
        assert lines[:2] == ["error:", f"  {path}:"] and lines[-1] == "  a detail"
        assert " ".join(lines[2:-1]).split() == WORDS.split() and max(map(len, lines[2:])) <= 30
        wide = broken("error: " + "動作データ " * 20, 30).split("\n")
        assert max(map(cell_len, wide)) <= 30 and wide[1] == "  動作データ 動作データ"
        command = "`ds-rvqvae export runs/one --out DIR`"
        assert f"  {command}" in broken(f"warning: there is no tokenizer; {command} writes it", 40).split("\n")
        assert broken(WORDS * 9, 30) == WORDS * 9 and broken("warning: short", 30) == "warning: short"

    def test_a_stream_that_is_closed_has_none(self):
        stream = io.StringIO()
        stream.close()
        assert not is_coloured(stream, {"TERM": "xterm"}) and width_of(stream, {}) is None


class TestWidth:
    def test_columns_is_believed_and_a_pipe_has_none(self):
        assert width_of(Played(True), {"COLUMNS": "57"}) == 57 and width_of(Played(False), {"COLUMNS": "57"}) is None
        # Without a file descriptor, or with a width of 0, it counts as 80 columns wide.
        assert width_of(Played(True), {"COLUMNS": "x"}) == width_of(Played(True), {"COLUMNS": "0"}) == 80

    def test_a_terminal_is_as_wide_as_it_is(self, monkeypatch):
        code = "import os\nos.environ.pop('COLUMNS', None)\n"  # readline, which pytest may load, has put it there
        code += "from ds_rvqvae.process.terminal import *; print('is', terminal_of().width, terminal_of().colour, '.')"
        monkeypatch.setenv("TERM", "xterm")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        terminal = OwnTerminal(code, columns=63)
        terminal.read_until("is 63 True .")
        assert terminal.end() == 0

    def test_standard_output_is_looked_at_unless_another_is_named(self, monkeypatch):
        monkeypatch.setattr(sys, "stdout", Played(False))
        assert terminal_of().width is None and terminal_of(Played(True)).width is not None


class TestLines:
    def test_long_ones_go_on_between_words_and_a_pipe_has_them_whole(self):
        text = Terminal(30).text([f"  {WORDS}"])
        assert widest(text) <= 30 and text.split() == WORDS.split()
        assert [line[:4] for line in text.splitlines()[1:]] == ["    "] * (len(text.splitlines()) - 1)
        assert PLAIN.text([f"  {WORDS}"]) == f"  {WORDS}"

    def test_a_path_is_never_broken_whatever_is_in_it(self):
        path = "/motion of all/takes and clips/of a long day.npz"
        lines = Terminal(30).text([["picture: ", (path, "path"), ", drawn"]]).splitlines()
        assert lines[0] == "picture:" and lines[1].strip().startswith(path)
        assert Terminal(60).text([["picture: ", (path, "path")]]) == f"picture: {path}"

    def test_names_are_neither_markup_nor_commands(self):
        for terminal in (PLAIN, Terminal(80, True)):
            assert terminal.text(["[bold]x[/bold] [/] \x1b[2J\n:smile:"]) == "[bold]x[/bold] [/] ?[2J?:smile:"
        shown = Terminal(80, True).text([("[red]\x1b]0;x\x07", "bad")])
        assert CODES.sub("", shown) == "[red]?]0;x?" and CODES.match(shown)

    def test_styles_are_codes_where_there_is_colour_and_nothing_else(self):
        line = ["it ", ("fits", "good"), " well"]
        assert PLAIN.text([line]) == Terminal(80).text([line]) == "it fits well"
        assert Terminal(80, True).text([line]) == "it \x1b[32mfits\x1b[0m well"

    def test_characters_that_an_encoding_lacks_become_plainer_ones(self):
        text = "Fréchet … ██▌░ ▁█ 30 °C ×2 日"
        assert Terminal(encoding="utf-8").text([text]) == text
        assert Terminal(encoding="latin-1").text([text]) == "Fréchet ... ###. _# 30 °C ×2 ?"
        assert Terminal(encoding="ascii").text([text]) == "Frechet ... ###. _# 30 C x2 ?"
        assert Terminal(encoding="no such").text(["a"]) == "?"


def test_names_lose_their_middle():
    assert shortened("short", 5) == "short" and shortened("a long name", 7) == "a l…ame"
    assert shortened("a long name", 7, "...") == "a ...me"
    # Characters that take two cells.
    assert cell_len(shortened("日" * 20, 11)) <= 11


def test_bars_are_exact_to_an_eighth():
    assert [bar(share, 4) for share in (-1, 0, 0.5, 1 / 32, 1, 7)] == ["░░░░", "░░░░", "██░░", "▏░░░", "████", "████"]
