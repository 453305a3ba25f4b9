"""The places of ranks that srun has started, from the variables that it sets for each task."""

import os
import pty

import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.process import slurm
from tests.e2e.slurm import variables_of_task

JOB = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "gpu[07-08]"}


def task(number, **more):
    return {**JOB, **variables_of_task(number, JOB), **more}


def settled(environment, **meeting):
    settled = dict(environment)
    slurm.settle_task(settled, meeting)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return [settled.get(name) for name in names]


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node[01-03,07],gpu5", "node01"),
        ("gpu5,node[01-03]", "gpu5"),
        ("gpu[5,7-9]", "gpu5"),
        ("rack[2-3]node[009-010].local,x", "rack2node009.local"),
        ("10.0.0.[4-5]", "10.0.0.4"),
        ("a", "a"),
    ],
)
def test_the_first_node_of_a_list(nodelist, first):
    assert slurm.first_node(nodelist) == first
    with pytest.raises(UserError, match="names no node"):
        slurm.first_node("")


def test_each_task_is_a_rank():
    port = str(20_000 + (4711 * 8) % 12_768)
    assert settled(task(0)) == ["0", "0", "4", "2", "gpu07", port]
    assert settled(task(3)) == ["3", "1", "4", "2", "gpu07", port]
    uneven = {"SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}
    last = {"SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2", "SLURM_STEP_ID": "1"}
    assert settled(task(0, **uneven, **last)) == ["4", "0", "5", "1", "gpu07", str(int(port) + 1)]
    on_one = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "4"}
    assert settled(task(0, **on_one))[3:5] == ["4", "127.0.0.1"]


def test_what_the_job_or_a_launcher_sets_counts_more():
    assert settled(task(0), MASTER_ADDR="ib-gpu07", MASTER_PORT="29500")[4:] == ["ib-gpu07", "29500"]
    torchruns = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    assert settled(task(0, **torchruns)) == ["1", "1", "2", None, "x", "1"]
    with pytest.raises(UserError, match="MASTER_ADDR=localhost: 2 nodes cannot meet there"):
        settled(task(0), MASTER_ADDR="localhost")


def test_one_task_and_no_slurm_are_a_run_of_one_rank():
    alone = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    for environment in (task(0, **alone), {}, {"SLURM_JOB_ID": "1"}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}):
        assert settled(environment) == [None] * 6


def test_a_shell_of_a_job_is_no_task(monkeypatch):
    ours, terminal = pty.openpty()
    monkeypatch.setattr(slurm.os, "isatty", lambda number: os.ttyname(terminal) != "" and number == 0)
    assert slurm.Task.of(task(0, SLURM_PTY_PORT="1")) is None
    slurm.check_one_launcher_per_node(task(0, SLURM_PTY_PORT="1"), joins_others=False)
    monkeypatch.undo()
    monkeypatch.setattr(slurm.os, "isatty", lambda number: False)  # a task that srun starts from such a shell
    assert slurm.Task.of(task(0, SLURM_PTY_PORT="1")) is not None
    os.close(ours), os.close(terminal)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SLURM_GPUS_ON_NODE": "1"}, "2 tasks on this node, which has 1 GPUs"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "a task sees only CUDA_VISIBLE_DEVICES=0"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2"}, "has no number of tasks for node 1"),
        ({"SLURM_NODEID": ""}, "SLURM_NODEID=: srun sets this to a number"),
    ],
)
def test_misfits_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        settled(task(3, **changes))
    assert settled(task(3, SLURM_GPUS_ON_NODE="1", DS_ACCELERATOR="cpu"))[0] == "3"
    assert settled(task(3, SLURM_GPUS_ON_NODE="2", CUDA_VISIBLE_DEVICES="0,1"))[0] == "3"


def test_a_job_of_several_tasks_without_srun_is_refused():
    script = {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    with pytest.raises(UserError, match=r"SLURM_NTASKS=4: .* this process is none of them; start them by `srun python"):
        slurm.check_srun_not_forgotten(script)
    for fits in (task(0), {**script, "RANK": "0"}, {**script, "SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "4"}):
        slurm.check_srun_not_forgotten(fits)
    slurm.check_one_launcher_per_node(script, joins_others=False)  # the launcher starts as outside of a job


def test_several_launchers_are_refused_unless_each_starts_its_own_nodes_ranks():
    for joins_others in (False, True):
        with pytest.raises(UserError, match="srun has started 4 launchers, each of which starts ranks itself"):
            slurm.check_one_launcher_per_node(task(0), joins_others)
    one_per_node = task(0, SLURM_STEP_NUM_TASKS="2", SLURM_STEP_TASKS_PER_NODE="1(x2)")
    slurm.check_one_launcher_per_node(one_per_node, joins_others=True)
    with pytest.raises(UserError, match="srun has started 2 launchers"):
        slurm.check_one_launcher_per_node(one_per_node, joins_others=False)
