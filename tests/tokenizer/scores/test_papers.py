"""Tables for papers: marks, the row of the original motion, captions, and what is escaped."""

import re

import pytest

from ds_rvqvae.tokenizer.scores.comparison import all_differences, spread_notes, spread_of
from ds_rvqvae.tokenizer.scores.papers import Cell, Head, PaperTable, paper_table
from tests.tokenizer.scores.test_spread import make_clips

HOSTILE = r"[a] 50% & $b$_{c} #1 ~^\x--- <z> |d|*"


def _scored(name, errors, **more):
    clips = make_clips(errors)
    same = {"data_path": "/data/cmu", "clips": len(errors), "frames": 100 * len(errors), "normalised_by": "a"}
    mean = sum(errors) / len(errors)
    return {"name": name, "l1": mean, "jitter": 0.1, "jitter_truth": 0.25, **same, **spread_of(clips), **more}, clips


def _table(*scored, notes=("val: 4 clips",)):
    results, clips = [one for one, _ in scored], [own for _, own in scored]
    return paper_table(results, all_differences(results, clips), notes)


def test_the_best_and_what_is_not_certain_to_differ_from_it_are_marked():
    table = _table(_scored("a", [1.0, 2.0, 3.0, 4.0]), _scored("b", [2.0, 3.0, 4.0, 5.0]), _scored("c", [1.5, 1, 4, 4]))
    assert [head.title for head in table.heads] == ["tokenizer", "L1", "jitter"]
    cells = {name: row[0] for name, row in table.rows}
    assert cells["a"].is_best and not cells["a"].is_like_best
    assert not cells["b"].is_best and not cells["b"].is_like_best  # one more in every clip
    assert cells["c"].is_like_best
    assert cells["a"].interval == "[1.5000, 3.5000]"
    assert table.original == [Cell(""), Cell("0.2500")]
    markdown = table.markdown().splitlines()
    assert markdown[0] == "| tokenizer | L1 (norm.) ↓ | jitter (norm.) |" and markdown[1] == "| :-- | --: | --: |"
    assert markdown[2] == r"| a | **2.5000** \[1.5000, 3.5000\] | 0.1000 |"
    assert markdown[4].startswith("| c | ≈ 2.6250 ") and markdown[5] == "| original motion |  | 0.2500 |"
    assert markdown[7].startswith("Motion: cmu. val: 4 clips. In brackets: 95% interval over clips")
    latex = table.latex()
    assert r"a & \textbf{2.5000} {\scriptsize [1.5000, 3.5000]} & 0.1000 \\" in latex
    assert r"c & $\approx$ 2.6250 " in latex and r"tokenizer & L1 $\downarrow$ & jitter \\" in latex


def test_other_motion_is_neither_marked_nor_shares_an_original():
    table = _table(_scored("a", [1.0, 2.0]), _scored("b", [2.0, 3.0], data_path="/data/other"))
    assert table.original is None and not any(
        cell.is_best or cell.is_like_best for _, row in table.rows for cell in row
    )
    assert [head.title for head in table.heads] == ["tokenizer", "L1", "jitter", "original"]
    assert "Motion: cmu, other." in table.markdown()


def test_one_clip_has_no_brackets_and_a_note():
    scored = _scored("a", [1.0])
    table = _table(scored)
    assert table.rows[0][1][0] == Cell("1.0000") and "In brackets" not in table.markdown()
    assert "Motion: cmu. val: 4 clips. One clip gives no interval." in table.markdown()
    assert spread_notes([scored[0]]) == ["One clip gives no interval."]
    missing, _ = _scored("a", [1.0, float("nan")], l1=None)
    assert "No number and no interval, because a clip's value is not finite: L1 (a)." in spread_notes([missing])


def _columns(line):
    """The cells of a row of Markdown: bars with a backslash before them are text."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


def _balanced(latex):
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", latex.replace(r"\\", "")):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    return depth == 0


def test_names_are_escaped():
    table = PaperTable(
        [Head("tokenizer"), Head("L1", "m/s³")], [(HOSTILE, [Cell("1")]), ("x\ny", [Cell("2")])], None, ["50%"]
    )
    lines = table.markdown().splitlines()
    assert [len(_columns(line)) for line in lines[:4]] == [2, 2, 2, 2] and lines[3] == "| x?y | 2 |"
    assert re.sub(r"\\([^A-Za-z0-9\s])", r"\1", _columns(lines[2])[0]).strip() == HOSTILE
    latex = table.latex()
    assert _balanced(latex) and r"\caption{50\%}" in latex and " & m/s$^3$ \\\\" in latex
    name = next(line for line in latex.splitlines() if line.startswith("{[}a{]}"))
    assert len(re.findall(r"(?<!\\)&", name)) == 1 and not re.search(r"(?<!\\)[%#_]", name)
    assert "--" not in name and r"\textasciitilde{}\textasciicircum{}\textbackslash{}x" in name


@pytest.mark.parametrize("count", [1, 4, 5, 17])
def test_wide_tables_continue_below(count):
    heads = [Head("tokenizer"), *(Head(f"score {at}") for at in range(count))]
    latex = PaperTable(heads, [("a", [Cell(f"v{at}") for at in range(count)])], None, []).latex()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == -(-count // 4)
    assert re.findall(r"v\d+", latex) == [f"v{at}" for at in range(count)] and _balanced(latex)
    for block in latex.split(r"\begin{tabular}{")[1:]:
        width = block.index("}")
        assert {line.count(" & ") + 1 for line in block.splitlines() if line.endswith(r"\\")} == {width}
