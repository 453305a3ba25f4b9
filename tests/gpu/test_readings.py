"""Readings of cards, a run's meter of its own card, CUDA's numbers, and the parts of the table."""

import json
import os

import pytest

from ds_rvqvae.errors import printable
from ds_rvqvae.gpu.meter import CardMeter
from ds_rvqvae.gpu.nvml import Gpu, GpuSlice
from ds_rvqvae.gpu.processes import Owners, short_command
from ds_rvqvae.gpu.snapshot import cuda_order
from ds_rvqvae.gpu.table import History, bar
from tests.gpu.stand_in import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED

FUNCTION_NOT_FOUND = 13
METER = """
import json, sys
from dataclasses import asdict
from ds_rvqvae.gpu.meter import CardMeter
meter = CardMeter({identity!r})
print(json.dumps([meter.found, asdict(meter.read())]))
"""


def cards(stand_in):
    code = """
import json
from dataclasses import asdict
from ds_rvqvae.gpu.nvml import list_gpus
print(json.dumps([{**asdict(gpu), "idle": gpu.idle} for gpu in list_gpus()]))
"""
    return json.loads(stand_in.python(code))


def test_memory_counts_no_reserved_memory_unless_the_driver_cannot_tell(stand_in):
    stand_in.play(
        "0 used 1000", "0 reserved 500", "1 used 1000", "1 reserved 500", f"1 memory_v2 !{FUNCTION_NOT_FOUND}"
    )
    new, old = cards(stand_in)[:2]
    assert (new["memory_used_bytes"], new["memory_reserved_bytes"]) == (1000, 500)
    assert (old["memory_used_bytes"], old["memory_reserved_bytes"]) == (1500, None)


def test_a_lost_card_does_not_hide_the_others(stand_in):
    stand_in.play(f"0 error {GPU_IS_LOST}", f"2 memory !{NO_PERMISSION}", "3 memory !999")
    lost, sound, silent, broken = cards(stand_in)[:4]
    assert lost["error"] == "GPU is lost" and lost["index"] == 0 and not lost["idle"]
    assert sound["error"] is None and sound["idle"]
    assert silent["error"] is None and silent["memory_used_bytes"] is None and silent["temperature"] == 32
    assert broken["error"] == "Unknown Error"


def test_graphics_processes_are_listed_and_leave_a_card_idle(stand_in):
    stand_in.play("0 graphics 7 1000", "1 graphics 7 1000", "1 process 8 2000", "1 slowdowns 36")
    first, second = cards(stand_in)[:2]
    assert [process["graphics"] for process in first["processes"]] == [True] and first["idle"]
    assert {process["pid"]: process["graphics"] for process in second["processes"]} == {7: True, 8: False}
    assert not second["idle"] and second["slowdowns"] == ["power cap", "thermal slowdown"]


class TestMeter:
    @pytest.mark.parametrize(
        "identity", ["GPU-00000003-0000-4090-8000-000000000000", "00000003-0000-4090-8000-000000000000", "0000:31:00.0"]
    )
    def test_a_card_by_its_uuid_or_bus_id(self, stand_in, identity):
        stand_in.play("3 used 4096", "3 utilisation 55", "3 power 123456")
        found, reading = json.loads(stand_in.python(METER.format(identity=identity)))
        assert found and reading["memory_used_bytes"] == 4096 and reading["utilisation"] == 55
        assert reading["power_watts"] == 123.456 and reading["temperature"] == 33

    def test_a_mig_slice(self, stand_in):
        stand_in.play("1 slice 1000 2000")
        identity = "MIG-0-00000001-0000-4090-8000-000000000000"
        found, reading = json.loads(stand_in.python(METER.format(identity=identity)))
        assert found and reading["memory_used_bytes"] == 1000 and reading["power_watts"] is None

    @pytest.mark.parametrize("identity", ["GPU-none", "0000:ff:00.0", "", "a:b"])
    def test_no_such_card(self, stand_in, identity):
        found, reading = json.loads(stand_in.python(METER.format(identity=identity)))
        assert not found and set(reading.values()) == {None}

    def test_energy_is_the_cards_own_count_since_the_meter_was_opened(self, stand_in):
        changed = stand_in.file.read_text() + "0 energy 1500000\n"
        code = f"""
from pathlib import Path
from ds_rvqvae.gpu.meter import CardMeter
meter = CardMeter("0000:01:00.0")
assert meter.read().energy_joules == 0
Path({str(stand_in.file)!r}).write_text({changed!r})
print(meter.read().energy_joules)
"""
        assert float(stand_in.python(code)) == 500

    def test_energy_is_summed_from_power_where_the_card_does_not_count(self, stand_in):
        stand_in.play(f"0 energy !{NOT_SUPPORTED}", "0 power 1000000")
        code = """
import time
from ds_rvqvae.gpu.meter import CardMeter
meter = CardMeter("0000:01:00.0")
meter.read()
began = time.monotonic()
time.sleep(0.2)
print(meter.read().energy_joules, 1000 * (time.monotonic() - began))
"""
        joules, expected = map(float, stand_in.python(code).split())
        assert joules == pytest.approx(expected, rel=0.1)

    def test_a_card_that_is_lost_and_comes_back(self, stand_in):
        code = f"""
from pathlib import Path
from ds_rvqvae.gpu.meter import CardMeter
meter = CardMeter("0000:01:00.0")
for line in ("0 error {GPU_IS_LOST}", "0 temperature 44"):
    Path({str(stand_in.file)!r}).write_text(line)
    print(meter.read().temperature)
meter.close()
print(meter.read().temperature)
"""
        assert stand_in.python(code).split() == ["None", "44", "None"]

    def test_without_a_driver_it_reads_nothing(self):
        meter = CardMeter("GPU-00000000-0000-0000-0000-000000000000")
        assert not meter.found and meter.read().memory_used_bytes is None
        meter.close()


def gpu(index, name="RTX 4090", slices=()):
    return Gpu(index, name, f"GPU-{index}abc", f"0000:0{index}:00.0", 0, 1, 0, slices=slices)


@pytest.mark.parametrize(
    ("visible", "order"),
    [
        ("2,0", [2, 0]),
        (" 1 , 2", [1, 2]),
        ("GPU-2,GPU-0abc", [2, 0]),
        ("1,9,2", [1]),
        ("1,-1,2", [1]),
        ("GPU-,1", []),
        ("", []),
        ("1,1", []),
        ("MIG-x,MIG-y", [1, 1]),
        ("MIG-GPU-2abc/1/0", [2]),
    ],
)
def test_what_cuda_makes_of_visible_devices(visible, order):
    slices = tuple(GpuSlice(index, "", f"MIG-{letter}", 0, 1) for index, letter in enumerate("xy"))
    gpus = [gpu(0), gpu(1, slices=slices), gpu(2)]
    assert cuda_order(gpus, {"CUDA_VISIBLE_DEVICES": visible}) == order


def test_cards_that_differ_are_counted_fastest_first_unless_told_otherwise():
    gpus = [gpu(0, "RTX 3090"), gpu(1)]
    assert cuda_order(gpus, {}) is None and cuda_order(gpus, {"CUDA_VISIBLE_DEVICES": "0"}) is None
    assert cuda_order(gpus, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == [0, 1]
    assert cuda_order(gpus, {"CUDA_VISIBLE_DEVICES": "GPU-1abc"}) == [1]


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


def test_control_characters_are_not_printed():
    assert printable("a\x1b[2Jb\nc") == "a?[2Jb?c"


def test_bars_are_exact_to_an_eighth():
    assert [bar(share, 4) for share in (-1, 0, 0.5, 1 / 32, 1, 7)] == ["░░░░", "░░░░", "██░░", "▏░░░", "████", "████"]


class TestHistory:
    def test_a_sparkline_is_the_mean_of_each_span(self):
        history = History(seconds=100)
        for second, value in ((5, 0), (15, 100), (17, 0), (95, 100)):
            history.add([Gpu(0, "", "", "", 0, 1, value)], second)
        assert history.sparkline(0, 100, 10) == "▁▅▅▅▅▅▅▅▅█"

    def test_old_samples_go_and_missing_ones_leave_no_mark(self):
        history = History(seconds=10)
        history.add([Gpu(0, "", "", "", 0, 1, 100), Gpu(1, "", "", "", 0, 1, 0), Gpu(2, "", "", "", 0, 1, None)], 0)
        assert history.sparkline(0, 0, 3) == "  █" and history.sparkline(2, 0, 3) == "   "
        assert history.sparkline(None, 0, 3) == "  ▅"
        history.add([Gpu(0, "", "", "", 0, 1, 0)], 20)
        assert history.sparkline(0, 20, 3) == "  ▁" and history.sparkline(1, 20, 3) == "   "
