"""What is checked about a run before a rank starts, and in which order."""

import pytest

from ds_rvqvae.errors import ExitStatus
from tests.launch.launching import has_driver


def test_a_batch_larger_than_the_data_is_a_warning(launch):
    ran = launch("--dry_run", "--batch_size", "5000")
    assert ran.returncode == 0
    assert "warning: the global batch of 35,000 is larger than" in ran.stderr


def test_an_existing_run_needs_resume(launch):
    (launch.folder / "runs" / "mine").mkdir(parents=True)
    ran = launch("--dry_run", "--name", "mine")
    assert ran.returncode == ExitStatus.BAD_INPUT and "--resume" in ran.stderr
    assert launch("--dry_run", "--name", "mine", "--resume").returncode == 0


@pytest.mark.skipif(has_driver(), reason="this machine has cards")
def test_cards_on_a_machine_without_a_driver_are_exit_4_but_bad_input_comes_first(launch):
    ran = launch("--dry_run", variables={})
    assert ran.returncode == ExitStatus.NO_DRIVER
    assert "--demo" in ran.stderr
    assert launch("--dry_run", "--width", "0", variables={}).returncode == ExitStatus.BAD_INPUT
    assert launch("--dry_run", "--name", "a/b", variables={}).returncode == ExitStatus.BAD_INPUT
