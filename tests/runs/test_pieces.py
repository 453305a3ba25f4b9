"""Files of a run that are moved."""

import os
import tempfile
from pathlib import Path

import pytest

from ds_rvqvae.runs.pieces import carry, dict_of, free_name, short, write_json


@pytest.fixture(params=["same", "another"])
def elsewhere(tmp_path, request):
    """A folder on the same disk, or on another."""
    if request.param == "same":
        yield tmp_path / "there"
        return
    shared = Path("/dev/shm")
    if not shared.is_dir() or not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("takes a second file system")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder) / "there"


def test_files_are_carried_and_an_empty_folder_is_left_behind_by_none(tmp_path, elsewhere):
    source = tmp_path / "tokenizer-1"
    source.mkdir()
    for name in ("weights", "config"):
        (source / name).write_text(name)
    carry(source, elsewhere, ("weights", "card", "config"))
    assert {file.name: file.read_text() for file in elsewhere.iterdir()} == {"weights": "weights", "config": "config"}
    assert not source.exists()
    (elsewhere / "mine").write_text("mine")
    carry(elsewhere, source, ("weights",))
    assert sorted(file.name for file in elsewhere.iterdir()) == ["config", "mine"]
    carry(elsewhere, tmp_path / "nothing", ("card",))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"{", b"[" * 100_000, None])
def test_what_is_no_object_is_an_empty_one(tmp_path, content):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    assert dict_of(tmp_path / "file") == {}
    write_json(tmp_path / "file", {"a": 1})
    assert dict_of(tmp_path / "file") == {"a": 1}


def test_names_are_free_and_tell_contents_apart(tmp_path):
    assert free_name(tmp_path, "a").name == "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert free_name(tmp_path, "a").name == "a-3"
    assert short("0123456789abcdef") == "0123456789ab"
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    assert short(None, tmp_path / "one") != short(None, tmp_path / "two")
