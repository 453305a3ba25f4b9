"""The owners of a GPU's processes: user, command, and for our runs the rank and the run."""

import csv
import os
import subprocess
import sys

import pytest

from ds_rvqvae.gpu.processes import Owner, Owners, _hidden, short_command
from tests.gpu.monitor_runs import records, run


@pytest.mark.parametrize(
    ("line", "short"),
    [
        (["/usr/bin/python3", "-u", "-m", "ds_rvqvae.train", "--token", "x"], "python3 -m ds_rvqvae.train"),
        (["python", "-W", "ignore", "/home/a/train.py", "--key=x"], "python train.py"),
        (["python", "-c", "secret()"], "python -c"),
        (["/usr/lib/xorg/Xorg :0 -auth /run/x"], "Xorg"),
        (["python", "-m"], "python -m "),
        ([], ""),
    ],
)
def test_commands_are_shown_without_arguments(line, short):
    assert short_command(line) == short


def test_owners_are_found_once_and_forgotten_when_they_end():
    owners = Owners()
    first = owners.look_up([os.getpid()])[os.getpid()]
    assert first.user and first.command and first.rank is None
    assert owners.look_up([os.getpid()])[os.getpid()] is first
    assert owners.look_up([2**31 - 1]) != {} and owners.look_up([]) == {}


def test_whose_a_process_is():
    mine, unseen = (Owners().look_up([pid])[pid] for pid in (os.getpid(), 2**31 - 1))
    assert mine.of_this_user and not unseen.of_this_user and unseen.uid is None
    # As on a system where /proc shows other users only the owner.
    assert _hidden(os.getpid()) == Owner(mine.user, uid=os.getuid())
    assert not Owner("root", "nvidia-cuda-mps-server", uid=1).serves_all
    assert Owner("root", "nvidia-cuda-mps-server", uid=0).serves_all and not Owner("root", "python", uid=0).serves_all


class TestOwners:
    @pytest.fixture
    def rank(self, tmp_path):
        """A process that looks like rank 3 of one of our runs, with its log open."""
        package = tmp_path / "ds_rvqvae"
        package.mkdir()
        (tmp_path / "runs" / "big").mkdir(parents=True)
        (package / "train.py").write_text("log = open('runs/big/run.log', 'w'); print(flush=True); input()")
        environment = {**os.environ, "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "7"}
        environment["CUDA_VISIBLE_DEVICES"] = "1,2,3,4,5,6,7"
        environment.pop("PYTHONPATH", None)  # the real package must not be found first
        line = [sys.executable, "-u", "-m", "ds_rvqvae.train", "--local_rank=3", "--profile", "secret"]
        with subprocess.Popen(
            line, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            yield process
            process.kill()

    def test_a_rank_of_ours_is_known_with_its_run(self, stand_in, rank, tmp_path):
        stand_in.play(f"4 process {rank.pid} 1000000000", f"5 process {os.getpid()} 1000000000", "6 process 4194303 1")
        cards = records(stand_in, "--once", RANK="0")[0]["gpus"]
        (ours,), (other,), (gone,) = (cards[index]["processes"] for index in (4, 5, 6))
        assert [ours[key] for key in ("rank", "local_rank", "world_size", "cuda_device")] == [3, 3, 7, 3]
        assert ours["run"] == str(tmp_path / "runs" / "big") and ours["command"].endswith("-m ds_rvqvae.train")
        assert other["rank"] is None and "python" in other["command"] and other["user"]
        assert gone["user"] is gone["command"] is None
        text = run(stand_in, "--once", "--csv", tmp_path / "cards.csv").stdout
        assert "rank 3 of 7, big" in text and "secret" not in text
        row = list(csv.DictReader((tmp_path / "cards.csv").open()))[4]
        assert row["ranks"] == "3" and row["runs"].endswith("/runs/big")

    def test_a_process_cannot_write_to_the_terminal_through_its_name(self, stand_in):
        with subprocess.Popen(["\x1b[31mred\x07", "60"], executable="/bin/sleep") as process:
            stand_in.play(f"1 process {process.pid} 1000")
            text = run(stand_in, "--once").stdout
            process.kill()
        assert "?[31mred?" in text and "\x1b" not in text
