"""Scores as tables: what they show, and which of several is best."""

import torch

from ds_rvqvae.tokenizer.tables import best_cells, comparison_cells, comparison_table, score_table
from tests.tokenizer.scoring import CHAIN, make_sums


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
