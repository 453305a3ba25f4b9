"""Runs that their ranks refuse before training."""

import pytest

from tests.ranks import start_ranks, train_ranks
from tests.train.small import SMALL, wait_until

pytestmark = pytest.mark.processes


def test_a_global_batch_that_ranks_cannot_share_is_refused(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    train_ranks(1, *flags, "--total_iter=1")
    for rank in start_ranks(3, ["-m", "ds_rvqvae.train", *flags, "--total_iter=2", "--resume"]):
        printed = rank.communicate(timeout=60)[0]
        assert rank.returncode == 2
        assert "Traceback" not in printed
        if "error" in printed:
            assert "which 3 ranks cannot divide; numbers of ranks that can: 1, 2, 4" in printed


def test_a_second_start_in_one_folder_is_refused(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4", "--resume"]
    command = ["-m", "ds_rvqvae.train", *flags, "--total_iter=100000"]
    (first,) = start_ranks(1, command)
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").is_file())
    (second,) = start_ranks(1, command)
    printed = second.communicate(timeout=60)[0]
    first.kill()
    first.communicate()
    assert (
        second.returncode == 2 and f"process {first.pid} of this machine" in printed and "is training in it" in printed
    )
    assert "Traceback" not in printed
    # The lock dies with its process.
    train_ranks(1, *flags, "--total_iter=2")


def test_the_first_rank_of_a_host_reads_the_files_and_all_refuse_what_it_refuses(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    train_ranks(2, *flags, "--total_iter=1")
    ranks = start_ranks(2, ["-m", "ds_rvqvae.train", *flags, "--name=other", "--window_size=100000"])
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "no clip has the 100000 frames of a window" in "".join(printed) and "Traceback" not in "".join(printed)
