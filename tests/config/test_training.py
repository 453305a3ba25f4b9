"""The keys of training: names that can only be a repository of the Hugging Face hub."""

from pathlib import Path

import pytest

from ds_rvqvae.config.training import is_repository


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("owner/name", True),
        ("some-owner/a_name.v2", True),
        ("name", False),
        ("a/b/c", False),
        ("/owner/name", False),
        ("owner/", False),
        ("own er/name", False),
        (Path("owner/name"), False),
        (None, False),
    ],
)
def test_a_repository_is_an_owner_and_a_name(tmp_path, monkeypatch, name, may):
    monkeypatch.chdir(tmp_path)
    assert is_repository(name) is may


def test_what_is_there_is_no_repository_nor_what_would_lie_in_a_folder_that_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert not is_repository("runs/first") and not is_repository("runs/frist")
    assert is_repository("others/first")
