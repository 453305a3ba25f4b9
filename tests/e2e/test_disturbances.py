"""Harmless things happen to a run; `python -m tests.e2e.disturbances` is the long form."""

import pytest

from tests.e2e.disturbances import disturb, small_disks

pytestmark = pytest.mark.processes


def test_a_run_that_is_disturbed_ends_like_one_that_never_was(tmp_path):
    said = []
    with small_disks(tmp_path):
        disturb(tmp_path, steps=50, count=3, seed=21, say=said.append)
    assert len(said) == 4
    assert said[-1].endswith("losses and weights equal bit for bit")
