"""What users rely on is what `tests/frozen.txt` says; `python -m tests.freeze` writes a wanted change into it."""

import difflib

import pytest

from tests import freeze


def _check(sections):
    frozen = freeze.read()
    for name, lines in sections.items():
        difference = list(
            difflib.unified_diff(frozen[name], lines, f"tests/frozen.txt: {name}", "now", n=0, lineterm="")
        )
        assert not difference, "\n".join(difference)


def test_commands_flags_profile_keys_and_statuses():
    _check(freeze.interfaces())


@pytest.mark.processes
def test_files_and_json(tmp_path):
    _check(freeze.results(tmp_path))


@pytest.mark.processes
def test_the_monitors_json(stand_in):
    _check(freeze.monitored(stand_in))


def test_nothing_is_recorded_that_no_test_compares():
    sections = list(freeze.read())
    assert len(sections) == len(set(sections))
    own = list(freeze.interfaces())
    assert sections[: len(own)] == own
    assert all(name.startswith(("keys of", "files of", "arrays of")) for name in sections[len(own) :])
