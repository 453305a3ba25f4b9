"""Flags that act together on batch, learning rate and windows, by the launcher with real ranks."""

import pytest

from ds_rvqvae.config.profile import load_profile
from tests.e2e.running import Launched
from tests.ranks import ROOT
from tests.train.small import EXACT, read_metrics

pytestmark = pytest.mark.processes

LIMITED = """
import json, os
if "RANK" in os.environ:
    from tests.train.limited import limited_memory
    limited = limited_memory(json.loads(os.environ["WINDOWS_OF_RANKS"])[int(os.environ["RANK"])])
    limited.__enter__()
"""
"""Python runs this at the start of each rank: after it the rank's memory holds only so many windows."""
FLAGS = [
    *("--auto_batch_size", "--batch_size=12", "--window_sizes=16,32,48", "--name=run", "--resume"),
    *("--scale_lr=linear", "--reference_batch=48", "--lr=0.001", "--warm_up_iter=2", "--milestones=5", "--gamma=0.1"),
]


def trained(folder, data, windows, *flags):
    """The output of a run on as many ranks as `windows` has entries: the windows that fit on each."""
    limits = ["env", f"PYTHONPATH={folder}:{ROOT}", f"WINDOWS_OF_RANKS={windows}"]
    slots = f"--include=localhost:{','.join(map(str, range(len(windows))))}"
    run = Launched(folder, data, *EXACT, *FLAGS, slots, *flags, slots=len(windows), by=limits)
    try:
        run.wait_for(run.ranks, seconds=400)
        assert run.process.wait(timeout=400) == 0, run.said()
    finally:
        left = run.end()
    assert left == []
    return run.said()


def test_batch_learning_rate_and_window_lengths_stay_over_fitting_and_a_resume_on_fewer_ranks(tmp_path, demo_folder):
    (tmp_path / "sitecustomize.py").write_text(LIMITED)
    said = trained(tmp_path, demo_folder, [99, 7], "--total_iter=3")
    chosen = "micro batch 6 x accumulation 2, global batch 24 as before"
    assert f"--auto_batch_size: 12 does not fit on rank 1; {chosen}\n" in said
    rate = "--scale_lr linear: learning rate 0.001 x global batch 24 / 48 = 0.0005\n"
    assert rate in said and "global batch 24 x 32 frames; windows by length: " in said
    said = trained(tmp_path, demo_folder, [7], "--total_iter=6")
    assert "1 rank: the global batch stays 24, as micro batch 6 x accumulation 4\n" in said and rate in said
    assert "fit" not in said
    run = tmp_path / "runs" / "run"
    lines = read_metrics(run)
    assert [line["lr"] for line in lines] == pytest.approx([0.00025, 0.0005, 0.0005, 0.0005, 0.0005, 0.00005])
    for block in (lines[:3], lines[3:]):
        assert sorted(line["window_size"] for line in block) == [16, 32, 48]
    assert load_profile(run / "profile.json").windows_per_rank == 12
