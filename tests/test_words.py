"""The words of docstrings, comments, messages and pages; `python -m tests.words PATH...` lists what is found."""

import pytest

from tests.words import ROOT, files_of, findings, prose_of

FOLDERS = ("ds_rvqvae", "launch", "benchmarks", "examples", "tests")


@pytest.mark.parametrize("folder", FOLDERS)
def test_prose_is_plain(folder):
    found = [
        f"{piece.where}: {finding}"
        for file in files_of([ROOT / folder])
        if file.name not in ("words.py", "test_words.py")
        for piece in prose_of(file)
        for finding in findings(piece)
    ]
    assert found == []
