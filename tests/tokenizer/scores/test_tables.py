"""Scores as tables: what they show, and which of several is best."""

import torch

from ds_rvqvae.tokenizer.scores.tables import best_cells, comparison_cells, comparison_table, figure_note, score_table
from tests.tokenizer.scores.scoring import CHAIN, make_sums


def test_table_shows_every_level_and_what_training_changed(model):
    sums = make_sums(model)
    sums.add(torch.randn(20, 14))
    scores = sums.scores("val")
    lines = score_table(scores, scores).splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["1", "2", "3"]
    assert f"{scores['l1']:.4f}" in lines[2]


def test_tables_show_what_there_is(model):
    sums = make_sums(model, skeleton=CHAIN)
    sums.add(torch.randn(20, 14))
    scores = sums.scores("val")
    text = score_table(scores)
    assert "1 joints on the skeleton three joints" in text and "67.5 bits/s" in text and "sliding" not in text
    results = [
        {"name": name, **scores, "l1": l1, "data_path": "x", "normalised_by": "a", "parameter_count": 1234}
        for name, l1 in (("a", 0.5), ("long name", 0.25))
    ]
    cells = comparison_cells(results)
    column = cells[0].index("L1")
    assert [row[column] for row in cells[2:]] == ["0.5000", "0.2500"] and "Fréchet" not in cells[0]
    assert best_cells(results) == {(3, column)}
    results[1]["data_path"] = "y"
    assert best_cells(results) == set()
    lines = comparison_table(results, ["a note"]).splitlines()
    assert lines[0] == "a note" and lines[-1].startswith("long name") and "1,234" in lines[-1]
    ends = [line.index(text) + len(text) for line, text in zip(lines[-2:], ("0.5000", "0.2500"), strict=True)]
    assert ends[0] == ends[1]


def _scored(name, **values):
    same = {"data_path": "x", "clips": 1, "frames": 64, "normalised_by": "a"}
    return {"name": name, **same, **values}


def test_the_best_is_the_lowest_error_and_there_is_none_where_all_are_alike():
    first, second = (
        _scored("a", code_rate=7.5, l1=0.5, mpjpe_mm=20.0),
        _scored("b", code_rate=3.75, l1=0.5, mpjpe_mm=10.0),
    )
    assert comparison_cells([first, second]) == [
        ["tokenizer", "codes", "L1", "MPJPE"],
        ["", "1/s", "norm.", "mm"],
        ["a", "7.5", "0.5000", "20.00"],
        ["b", "3.75", "0.5000", "10.00"],
    ]
    # A lower rate of codes is not better, and equal errors are not told apart.
    assert best_cells([first, second]) == {(3, 3)}
    assert best_cells([first, _scored("c", mpjpe_mm=20.0), second]) == {(4, 3)}
    assert best_cells([first]) == set()


def test_what_one_does_not_have_is_a_dash():
    first, second = _scored("a", l1=0.5), _scored("b", l1=None, jitter=0.25)
    assert comparison_cells([first, second])[2:] == [["a", "0.5000", "-"], ["b", "-", "0.2500"]]
    table = comparison_table([first, second]).splitlines()
    assert [line.split() for line in table] == [
        ["tokenizer", "L1", "jitter"],
        ["norm.", "norm."],
        ["a", "0.5000", "-"],
        ["b", "-", "0.2500"],
    ]


def test_a_note_says_on_what_figure_joints_were_measured():
    assert figure_note({"skeleton": None}) is None
    built_in = figure_note({"skeleton": "built-in", "mpjpe_joints": 22})
    assert built_in == "22 joints on the built-in 1.75 m figure, roots aligned"
    assert figure_note({"skeleton": "cmu", "mpjpe_joints": 5}) == "5 joints on the skeleton cmu, roots aligned"
