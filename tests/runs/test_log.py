"""A run's log on a full disk, or without a file."""

import logging

import pytest

from ds_rvqvae.runs.log import RunLog, add_warnings
from tests.room import files_no_longer_than


@pytest.fixture
def logger():
    logger = logging.Logger("run")
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_lines_without_room_wait_and_the_terminal_is_told_once(logger, tmp_path, capsys):
    file = tmp_path / "run.log"
    logger.addHandler(RunLog(file, "rank 0"))
    logger.warning("動 %s", "a\nb")
    with files_no_longer_than(file.stat().st_size + 10):
        for step in range(100):
            logger.warning("step %d", step)
        assert file.read_text(encoding="utf-8").count("\n") == 1
    said = capsys.readouterr()
    why = "cannot be written: no room on the disk; its lines wait, and training goes on"
    assert said == ("", f"warning: {file}: {why}\n")
    logger.warning("room again")
    lines = file.read_text(encoding="utf-8").splitlines()
    expected = ["動 a?b", *(f"step {step}" for step in range(100)), "room again"]
    assert [line.partition(" WARNING rank 0: ")[2] for line in lines] == expected
    assert capsys.readouterr() == ("", "")


def test_a_log_that_cannot_be_made_ends_nothing(logger, tmp_path, capsys):
    file = tmp_path / "run.log"
    file.mkdir()
    logger.addHandler(RunLog(file, "rank 0"))
    logger.warning("one")
    logger.warning("two %d", "no number")
    assert capsys.readouterr().err.count("cannot be written: Is a directory") == 1
    file.rmdir()
    logger.warning("three %d", "no number")
    assert "three %d" in file.read_text()
    assert capsys.readouterr() == ("", "")


def test_warnings_go_into_a_log_that_is_there(tmp_path, capsys):
    file = tmp_path / "run.log"
    add_warnings(file, "launcher", ["lost"])
    assert not file.exists()
    file.write_text("2026-01-01 INFO\n")
    add_warnings(file, "launcher", ["lost", "more"])
    lines = file.read_text().splitlines()
    assert [line.partition(" WARNING launcher: ")[2] for line in lines] == ["", "lost", "more"]
    assert capsys.readouterr() == ("", "")
