"""`launch/monitor_gpu.py` as a user runs it, with the GPUs of the stand-in library."""

import fcntl
import json
import os
import signal
import struct
import subprocess
import termios
import time
from datetime import datetime
from pathlib import Path

import pytest

from ds_rvqvae.errors import ExitStatus
from tests.gpu.monitor_runs import one_line, records, run
from tests.gpu.stand_in import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, VERSION_MISMATCH, command

GIB = 1 << 30


def test_count_refreshes_at_the_interval_and_json_parses(stand_in):
    stand_in.play("2 process 1 5368709120", "2 used 5368709120")
    began = time.time()
    seen = records(stand_in, 0.5, "--count", 3)
    times = [datetime.fromisoformat(record["time"]) for record in seen]
    assert len(times) == 3
    # Never early; how late depends on the machine.
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


def test_a_driver_that_fails_for_a_while_costs_those_refreshes_only(stand_in):
    with subprocess.Popen(
        command(0.2, "--json"), env=stand_in.environment, text=True, stdout=subprocess.PIPE
    ) as monitor:
        errors = []
        for lines in ((), ("* error 999",), (), ("cards 7", f"7 error {GPU_IS_LOST}"), (), ("* error 1",), ()):
            stand_in.play(*lines)
            # The refresh under way may have read some GPUs before.
            line = [monitor.stdout.readline() for _ in range(3)][-1]
            errors.append([card["error"] for card in json.loads(line)["gpus"] if card["error"]])
        assert errors == [[], ["Unknown Error"] * 8, [], ["Not Found"], [], ["Uninitialized"] * 8, []]
        monitor.terminate()
        assert monitor.wait(10) == ExitStatus.DONE


def test_a_card_that_is_lost_from_the_start(stand_in):
    stand_in.play(f"7 error {GPU_IS_LOST}")
    done = run(stand_in, "--once")
    assert done.returncode == 0
    assert done.stdout.splitlines()[7].endswith(" GPU 7: ERR (GPU is lost)")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_with_status_0(stand_in, stop):
    with subprocess.Popen(
        command(60), env=stand_in.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as monitor:
        assert "GPU 0" in monitor.stdout.readline()
        monitor.send_signal(stop)
        _, errors = monitor.communicate(timeout=10)
    assert monitor.returncode == 0 and errors == ""


def test_it_ends_where_nobody_reads_it_any_more_and_a_reader_that_stands_still_keeps_no_signal_away(stand_in):
    started = {"env": stand_in.environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        subprocess.Popen(command(0.1), **started) as left,
        subprocess.Popen(command(0.1, "--json"), **started) as still,
    ):
        left.stdout.readline()
        left.stdout.close()
        assert left.wait(20) == 0 and left.stderr.read() == b""
        still.stdout.readline()
        deadline = time.monotonic() + 20
        while unread(still.stdout) < 60_000 and time.monotonic() < deadline:  # of 65,536
            time.sleep(0.1)
        time.sleep(1)
        still.terminate()
        assert still.wait(10) == 0 and still.stderr.read() == b""


def unread(pipe):
    """The number of bytes that wait in a pipe."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"1234"))[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_lines_that_find_no_room_are_an_error(stand_in):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("--once"), env=stand_in.environment, text=True, stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert "No space left on device" in one_line(done, 2)


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
