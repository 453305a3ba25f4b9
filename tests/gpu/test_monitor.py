"""`launch/monitor_gpu.py` as a user runs it, before cards that the stand-in library plays."""

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ds_rvqvae.errors import ExitStatus
from tests.gpu.stand_in import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, VERSION_MISMATCH, command

GIB = 1 << 30


def run(stand_in, *flags, **variables):
    environment = {**stand_in.environment, **variables}
    return subprocess.run(command(*flags), env=environment, text=True, capture_output=True, timeout=60)


def records(stand_in, *flags, **variables):
    done = run(stand_in, *flags, "--json", **variables)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def one_line(done, status):
    """The refusal of a run that ended with `status`."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    return done.stderr


def test_a_plain_line_a_card_and_refresh_where_it_is_no_terminal(stand_in):
    stand_in.play("1 used 19327352832", "1 utilisation 98", "1 power 412345", "1 received 1234567")
    lines = run(stand_in, 0.1, "--count", 2).stdout.splitlines()
    assert len(lines) == 16 and not any("\x1b" in line for line in lines)
    time_of, number, rest = re.fullmatch(r"(\S+) GPU (\d) NVIDIA GeForce RTX 4090: (.*)", lines[1]).groups()
    assert datetime.fromisoformat(time_of).tzinfo and number == "1"
    assert rest == ("18.0 / 24.0 GiB, 98 %, 31 °C, 412 / 450 W, PCIe rx 1.2 tx 0.0 GB/s; NOT idle (18.0 GiB in use)")
    assert [line.endswith("; idle") for line in lines] == 2 * [True, False, *6 * [True]]


def test_count_refreshes_at_the_interval_and_json_parses(stand_in):
    stand_in.play("2 process 1 5368709120", "2 used 5368709120")
    began = time.time()
    seen = records(stand_in, 0.5, "--count", 3)
    times = [datetime.fromisoformat(record["time"]) for record in seen]
    assert len(times) == 3
    # Never early; how late is the machine's.
    assert times == sorted(times) and times[-1].timestamp() - began >= 1.0
    card = seen[0]["gpus"][2]
    assert (card["index"], card["name"], card["pci_bus_id"]) == (2, "NVIDIA GeForce RTX 4090", "00000000:21:00.0")
    assert card["memory_used_bytes"] == card["processes"][0]["memory_bytes"] == 5 * GIB
    assert (card["power_watts"], card["power_limit_watts"], card["temperature_celsius"]) == (22.0, 450.0, 32)
    assert seen[0]["gpu_0_idle"] is True and card["idle"] is False and seen[0]["driver_version"] == "550.54.14"


def test_a_card_that_vanishes_is_an_error_and_the_others_go_on(stand_in):
    with subprocess.Popen(
        command(0.2, "--json"), env=stand_in.environment, text=True, stdout=subprocess.PIPE
    ) as monitor:

        def card_when(wanted):
            for line in monitor.stdout:
                cards = json.loads(line)["gpus"]
                assert len(cards) == 8 and not any(card["error"] for card in cards if card["index"] != 3)
                if bool(cards[3]["error"]) == wanted:
                    return cards[3]
            raise AssertionError("the monitor ended")

        assert card_when(False)["memory_total_bytes"] > 23 * GIB
        stand_in.play(f"3 error {GPU_IS_LOST}")
        lost = card_when(True)
        assert lost["error"] == "GPU is lost" and lost["memory_used_bytes"] is None and not lost["idle"]
        assert lost["uuid"] == "GPU-00000003-0000-4090-8000-000000000000"
        stand_in.play("3 temperature 77")
        assert card_when(False)["temperature_celsius"] == 77
        monitor.send_signal(signal.SIGINT)
        assert monitor.wait(10) == ExitStatus.DONE


def test_a_card_that_is_lost_from_the_start(stand_in):
    stand_in.play(f"7 error {GPU_IS_LOST}")
    done = run(stand_in, "--once")
    assert done.returncode == 0
    assert done.stdout.splitlines()[7].endswith(" GPU 7: ERR (GPU is lost)")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_status_0(stand_in, stop):
    with subprocess.Popen(
        command(60), env=stand_in.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as monitor:
        assert "GPU 0" in monitor.stdout.readline()
        monitor.send_signal(stop)
        _, errors = monitor.communicate(timeout=10)
    assert monitor.returncode == 0 and errors == ""


class TestRequiredIdleness:
    def test_an_idle_card(self, stand_in):
        stand_in.play("0 used 900000000", "0 graphics 1 500000000", "1 used 9000000000")
        done = run(stand_in, "--require_idle")
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 8

    @pytest.mark.parametrize(
        "line",
        ["0 used 1073741824", f"0 process {os.getpid()} 1000", f"0 error {GPU_IS_LOST}"],
        ids=["in use", "a process", "lost"],
    )
    def test_a_card_that_is_not(self, stand_in, line):
        stand_in.play(line)
        message = one_line(run(stand_in, "--require_idle", 0), ExitStatus.CARD_NOT_IDLE)
        assert "GPU 0: " in message
        assert ("process" in line) == (f"process {os.getpid()} (" in message)

    def test_other_cards_than_0(self, stand_in):
        stand_in.play("0 used 9000000000", "2 used 9000000000")
        assert run(stand_in, "--require_idle", "1,3-7").returncode == 0
        assert "GPU 2" in one_line(run(stand_in, "--gpus", "1", "--require_idle", "1-3"), ExitStatus.CARD_NOT_IDLE)

    def test_a_card_of_which_nothing_can_be_told_is_not_idle(self, stand_in):
        stand_in.play(f"0 memory !{NO_PERMISSION}", f"0 processes !{NO_PERMISSION}")
        assert "memory use unknown" in one_line(run(stand_in, "--require_idle"), ExitStatus.CARD_NOT_IDLE)

    def test_it_watches_as_often_as_counted(self, stand_in):
        watch = command(0.2, "--count", 100, "--require_idle", "--json")
        with subprocess.Popen(
            watch, env=stand_in.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as monitor:
            assert json.loads(monitor.stdout.readline())["gpu_0_idle"]
            stand_in.play("0 used 9000000000")
            monitor.communicate(timeout=15)
        assert monitor.returncode == ExitStatus.CARD_NOT_IDLE


class TestMachinesWithoutWhatIsNeeded:
    def test_no_driver(self, stand_in, tmp_path):
        (tmp_path / "libnvidia-ml.so.1").write_text("no library")
        message = one_line(run(stand_in, LD_LIBRARY_PATH=str(tmp_path)), ExitStatus.NO_DRIVER)
        assert "libnvidia-ml.so.1 is not found" in message

    def test_a_driver_updated_without_a_reboot(self, stand_in):
        stand_in.play(f"init {VERSION_MISMATCH}")
        assert "reboot" in one_line(run(stand_in), ExitStatus.NO_DRIVER)

    def test_no_card(self, stand_in):
        stand_in.play("cards 0")
        assert "there is no GPU" in one_line(run(stand_in), ExitStatus.BAD_INPUT)

    def test_another_package_in_the_place_of_nvidias_binding(self, stand_in, tmp_path):
        (tmp_path / "pynvml.py").write_text("class NVMLError(Exception): pass\n")
        message = one_line(run(stand_in, PYTHONPATH=str(tmp_path)), ExitStatus.BAD_INPUT)
        assert "nvidia-ml-py" in message and str(tmp_path) in message

    def test_a_card_without_fan_and_power_reading(self, stand_in):
        stand_in.play(f"1 fan !{NOT_SUPPORTED}", f"1 power !{NOT_SUPPORTED}", f"1 received !{NOT_SUPPORTED}")
        card = records(stand_in, "--once")[0]["gpus"][1]
        assert card["fan_percent"] is card["power_watts"] is card["pcie_received_bytes_per_s"] is None
        assert card["error"] is None and card["temperature_celsius"] == 31
        assert "N/A / 450 W, PCIe rx N/A tx 0.0" in run(stand_in, "--once").stdout.splitlines()[1]

    def test_processes_that_may_not_be_seen(self, stand_in):
        stand_in.play("1 process 1 2000000000", f"1 processes !{NO_PERMISSION}", "1 used 2000000000")
        assert records(stand_in, "--once")[0]["gpus"][1]["processes"] is None
        assert "processes N/A; NOT idle" in run(stand_in, "--once").stdout.splitlines()[1]

    def test_drivers_that_list_processes_wrongly_are_not_asked(self, stand_in):
        stand_in.play("driver 535.54.03", "1 process 1 2000000000")
        assert records(stand_in, "--once")[0]["gpus"][1]["processes"] is None
        stand_in.play("driver 535.98", "1 process 1 2000000000")
        assert records(stand_in, "--once")[0]["gpus"][1]["processes"][0]["pid"] == 1


def test_mig_slices(stand_in):
    stand_in.play(
        f"0 utilisation !{NOT_SUPPORTED}", "0 slice 1000000000 5000000000", "0 slice 2000000 5000000000",
        f"0 process {os.getpid()} 900000000 0",
    )  # fmt: skip
    card = records(stand_in, "--once")[0]["gpus"][0]
    assert card["utilisation_percent"] is None and not card["idle"]
    assert [part["memory_used_bytes"] for part in card["slices"]] == [1000000000, 2000000]
    assert card["slices"][1]["name"].endswith("MIG 1g.5gb") and card["slices"][1]["uuid"].startswith("MIG-1-")
    assert [(process["pid"], process["slice"]) for process in card["processes"]] == [(os.getpid(), 0)]
    assert "slice 0 0.9 / 4.7 GiB" in run(stand_in, "--once").stdout


def test_only_the_cards_asked_for_but_always_gpu_0s_state(stand_in):
    stand_in.play("0 used 9000000000")
    (record,) = records(stand_in, "--once", "--gpus", "1-2,5")
    assert [card["index"] for card in record["gpus"]] == [1, 2, 5] and record["gpu_0_idle"] is False


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--gpus", "7-9"], "no GPU 8, 9 on this machine, which has GPUs 0 to 7"),
        (["--gpus", "3-1"], "GPU numbers"),
        (["--gpus", "one"], "GPU numbers"),
        (["--require_idle", "8"], "no GPU 8"),
        (["0"], "0.1 seconds or more"),
        (["nan"], "0.1 seconds or more"),
        (["soon"], "soon"),
        (["--count", "0"], "1 or more"),
        (["--cuont", "2"], "did you mean --count?"),
        (["--json", "2"], "2 --json"),
        (["--csv", "/no/such/folder/a.csv"], "no folder /no/such/folder"),
        (["--csv", "/"], "is a folder"),
        (["--json", "/proc/a.json"], "/proc/a.json"),
        (["--tensorboard", "/dev/null"], "/dev/null"),
    ],
)
def test_refusals_are_one_line_and_status_2(stand_in, flags, says):
    assert says in one_line(run(stand_in, *flags), ExitStatus.BAD_INPUT)


class TestFiles:
    def test_csv_has_a_header_iso_times_and_whole_rows(self, stand_in, tmp_path):
        file = tmp_path / "cards.csv"
        stand_in.play("1 power !3", "1 used 1048576000")
        assert run(stand_in, 0.1, "--count", 2, "--gpus", "0-1", "--csv", file).returncode == 0
        assert run(stand_in, "--once", "--gpus", "1", "--csv", file).returncode == 0
        rows = list(csv.DictReader(file.open()))
        assert [row["gpu"] for row in rows] == ["0", "1", "0", "1", "1"]
        assert all(datetime.fromisoformat(row["time"]).tzinfo for row in rows)
        assert (
            rows[1]["memory_used_MiB"] == "1000.0" and rows[1]["power_watts"] == "" and rows[0]["power_watts"] == "20.0"
        )

    @pytest.mark.parametrize("torn", ["2026-01-01T00:00:00,1,NVID", None])
    def test_a_torn_last_row_is_cut(self, stand_in, tmp_path, torn):
        file = tmp_path / "cards.csv"
        run(stand_in, "--once", "--gpus", "1", "--csv", file)
        whole = file.read_text()
        file.write_text(whole + torn if torn else whole[:20])  # None: a header torn
        assert run(stand_in, "--once", "--gpus", "1", "--csv", file).returncode == 0
        lines = file.read_text().splitlines()
        assert lines[: len(lines) - 1] == (whole.splitlines() if torn else whole.splitlines()[:1])
        assert "NVIDIA GeForce RTX 4090" in lines[-1]

    @pytest.mark.parametrize("flag", ["--csv", "--json"])
    @pytest.mark.parametrize("content", ["my,own,table\n1,2,3\n", "no line end", '{"a": 1}\n', "\n"])
    def test_anothers_file_is_left_alone(self, stand_in, tmp_path, flag, content):
        file = tmp_path / "mine"
        file.write_text(content)
        assert "something other" in one_line(run(stand_in, "--once", flag, file), ExitStatus.BAD_INPUT)
        assert file.read_text() == content

    def test_json_lines_are_added_to_a_file(self, stand_in, tmp_path):
        file = tmp_path / "cards.jsonl"
        for _ in range(2):
            done = run(stand_in, "--once", "--json", file)
            assert len(done.stdout.splitlines()) == 8
        with file.open("a") as opened:
            opened.write('{"time": "20')
        run(stand_in, "--once", "--json", file)
        assert [len(json.loads(line)["gpus"]) for line in file.read_text().splitlines()] == [8, 8, 8]

    def test_tensorboard_scalars(self, stand_in, tmp_path):
        stand_in.play("1 used 2147483648", f"2 power !{NOT_SUPPORTED}")
        assert run(stand_in, 1, "--count", 2, "--tensorboard", tmp_path / "tensorboard").returncode == 0
        events = EventAccumulator(str(tmp_path / "tensorboard" / "gpus")).Reload()
        values = events.Scalars("GPU_memory_used_GiB/gpu_1")
        assert [event.value for event in values] == [2.0, 2.0]
        assert values[1].step == values[0].step + 1 and abs(values[0].step - time.time()) < 60
        tags = events.Tags()["scalars"]
        assert "GPU_power_watts/gpu_1" in tags and "GPU_power_watts/gpu_2" not in tags
        assert {f"GPU_{name}/gpu_0" for name in ("utilisation_percent", "temperature_celsius")} <= set(tags)

    def test_a_full_disk_costs_no_half_row_and_not_the_monitor(self, stand_in, tmp_path):
        file = tmp_path / "cards.csv"
        done = subprocess.run(
            command(0.1, "--count", 4, "--gpus", "1", "--csv", file),
            env=stand_in.environment,
            text=True,
            capture_output=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700)),
        )
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 4
        assert done.stderr.startswith("warning: --csv") and "kept for later" in done.stderr
        text = file.read_text()
        assert text.endswith("\n") and 1 < len(text.splitlines()) < 5

    def test_a_reader_that_has_seen_enough(self, stand_in):
        with subprocess.Popen(
            command(0.1), env=stand_in.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as monitor:
            monitor.stdout.readline()
            monitor.stdout.close()
            assert monitor.wait(10) == 0 and monitor.stderr.read() == b""


class TestOwners:
    @pytest.fixture
    def rank(self, tmp_path):
        """A process that looks like rank 3 of a run of ours, with its log open."""
        package = tmp_path / "ds_rvqvae"
        package.mkdir()
        (tmp_path / "runs" / "big").mkdir(parents=True)
        (package / "train.py").write_text("log = open('runs/big/run.log', 'w'); print(flush=True); input()")
        environment = {**os.environ, "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "7"}
        environment["CUDA_VISIBLE_DEVICES"] = "1,2,3,4,5,6,7"
        environment.pop("PYTHONPATH", None)  # the real package is not to be found first
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


def test_cuda_numbers_follow_the_environment_and_physical_ones_do_not(stand_in):
    def numbers(**variables):
        return [card["cuda_device"] for card in records(stand_in, "--once", **variables)[0]["gpus"]]

    assert numbers() == list(range(8))
    assert numbers(CUDA_VISIBLE_DEVICES="3,1") == [None, 1, None, 0, *4 * [None]]
    uuid = "GPU-00000005-0000-4090-8000-000000000000"
    assert numbers(CUDA_VISIBLE_DEVICES=f"{uuid},2") == [None, None, 1, None, None, 0, None, None]
