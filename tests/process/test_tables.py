"""Tables on a terminal and in a pipe."""

import re

import pytest
from rich.cells import cell_len

from ds_rvqvae.process.tables import Column, Table
from ds_rvqvae.process.terminal import PLAIN, Terminal

CODES = re.compile(r"\x1b\[[\d;]*m")
LONG = "a clip with a very long name/of_some_speaker_0_103_103"
WORDS = "because of this and that and of more than goes into one line"


def widest(text):
    return max(cell_len(line) for line in CODES.sub("", text).splitlines())


def made_table(*, wide=6):
    columns = [Column("clip", left=True, shrinks=True), *(Column(f"score {number}", "mm") for number in range(wide))]
    row = [LONG, ("12.3456", "best"), *["12.3456"] * (wide - 1)]
    return Table(columns, [row, ["[red]short[/red]", *row[1:]]])


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("colour", [True, False])
def test_they_fit_and_lose_no_number(width, colour):
    text = Terminal(width, colour).text([made_table()])
    assert widest(text) <= width and text.count("12.3456") == 12 and CODES.sub("", text).count("score 5") == 1
    assert (LONG in text) == (width == 200) and "[red]" in text
    assert ("\x1b[" in text) is colour


def test_a_pipe_has_them_whole_without_codes_or_blanks_at_the_end():
    lines = PLAIN.text([made_table(wide=20)]).splitlines()
    assert len(lines) == 4 and lines[2].split("  ")[0] == LONG and lines[2].split()[-20:] == ["12.3456"] * 20
    assert not any(line != line.rstrip() or "\x1b" in line for line in lines)


def test_what_does_not_fit_goes_on_below_under_the_same_names():
    first, second = Terminal(50).text([made_table()]).split("\n\n")
    assert [line[:14] for line in first.splitlines()] == [line[:14] for line in second.splitlines()]
    assert second.startswith("clip  ") and second.splitlines()[2].startswith("a clip") and "…" in second
    assert first.count("12.3456") + second.count("12.3456") == 12


def test_columns_that_belong_together_stay_together():
    columns = [Column("name", left=True), *(Column(title * 5, joined=title == "d") for title in "abcd")]
    for width in range(20, 40):
        blocks = Terminal(width).text([Table(columns, [["x", "1", "2", "3", "4"]])]).split("\n\n")
        assert any("ccccc" in block and "ddddd" in block for block in blocks), width


def test_columns_are_dropped_by_their_number_where_that_is_wanted():
    less, more = "less" * 4, "more" * 4
    table = Table([Column("name", left=True), Column(less, dropped=2), Column(more, dropped=1)], [[""] * 3])
    for width, shown in ((None, ["name", less, more]), (30, ["name", more]), (20, ["name"])):
        assert Terminal(width).text([table]).split() == shown


def test_words_go_on_beside_their_row_or_below_it():
    table = Table([Column(left=True), Column(wraps=True)], [["rule", WORDS], ["other", ""]], indent=2, headed=False)
    beside = Terminal(40).text([table]).splitlines()
    assert widest("\n".join(beside)) <= 40 and beside[0].startswith("  rule   because") and beside[-1] == "  other"
    assert all(line.startswith(" " * 9) for line in beside[1:-1])
    narrow = Table([Column(left=True), Column(wraps=True)], [["a" * 30, WORDS]], headed=False)
    below = Terminal(36).text([narrow]).splitlines()
    assert below[0] == "a" * 30 and below[1].startswith("    because") and widest("\n".join(below)) <= 36


def test_a_column_grows_into_the_room_that_is_left():
    table = Table([Column("a"), Column("b", grows=20)], [["1", lambda width: "x" * width]])
    for width, grown in ((20, 17), (30, 20)):
        assert Terminal(width).text([table]).splitlines()[1].split() == ["1", "x" * grown]


def test_a_row_has_a_style_of_its_own_under_that_of_its_cells():
    lines = Terminal(80, True).text([Table([Column("a"), Column("b")], [["1", ("2", "bad")]], {0: "faint"})])
    assert "\x1b[2m1  \x1b[0m" in lines and "\x1b[2;31m2\x1b[0m" in lines
