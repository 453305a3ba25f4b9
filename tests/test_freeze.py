"""The interface that users rely on is as in `tests/frozen.txt`; `python -m tests.freeze` writes an intended change into
it."""

import difflib

import pytest

from tests import freeze


def _check(sections):
    frozen = freeze.read()
    for name, lines in sections.items():
        difference = list(
            difflib.unified_diff(frozen.get(name, []), lines, f"tests/frozen.txt: {name}", "now", n=0, lineterm="")
        )
        assert not difference, "\n".join(difference)


def test_commands_flags_profile_keys_and_statuses():
    _check(freeze.interfaces())


@pytest.mark.processes
def test_files_and_json(tmp_path):
    results = freeze.results(tmp_path)
    _check(results)
    # Nothing is recorded that no test compares, and every `--json` is recorded.
    assert list(freeze.read()) == [*freeze.interfaces(), *results, *freeze.MONITORED]
    with_json = [name for name, lines in freeze.interfaces().items() if "--json  nargs=?  bare=-" in lines]
    with_json.remove("flags of ds-rvqvae monitor")  # the same program as launch/monitor_gpu
    assert {f"keys of {name.removeprefix('flags of ')} --json" for name in with_json} <= set(freeze.read())


@pytest.mark.processes
def test_the_monitors_json(stand_in):
    _check(freeze.monitored(stand_in))
