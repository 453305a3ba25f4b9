"""Readings of GPUs: those of the stand-in library, and of a real driver if there is one."""

import json

import pynvml
import pytest

from ds_rvqvae.gpu.nvml import IDLE_MEMORY, Gpu, GpuProcess, NoDriverError, list_gpus
from tests.gpu.monitor_runs import records, run
from tests.gpu.stand_in import GPU_IS_LOST, NO_PERMISSION

FUNCTION_NOT_FOUND = 13


def has_driver() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


def card(memory=0, processes=()):
    return Gpu(0, "card", "GPU-0", "0000:01:00.0", memory, 24 << 30, 0, tuple(processes))


def test_the_binding_is_the_maintained_one():
    assert hasattr(pynvml, "_nvmlGetFunctionPointer"), "pynvml is another package: pip install nvidia-ml-py"


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
def test_without_a_driver():
    with pytest.raises(NoDriverError):
        list_gpus()


@pytest.mark.skipif(not has_driver(), reason="needs an NVIDIA driver")
def test_real_cards():
    gpus = list_gpus()
    assert [gpu.index for gpu in gpus] == list(range(len(gpus)))
    assert len({gpu.uuid for gpu in gpus}) == len(gpus)
    for gpu in gpus:
        assert gpu.name and gpu.pci_bus_id
        assert 0 <= gpu.memory_used_bytes <= gpu.memory_total_bytes
        assert gpu.utilisation is None or 0 <= gpu.utilisation <= 100


def test_idle_is_no_compute_process_and_little_memory():
    assert card().idle
    assert card(IDLE_MEMORY - 1).idle
    assert not card(IDLE_MEMORY).idle
    assert not card(0, [GpuProcess(1, None)]).idle


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


def test_a_name_that_is_no_utf8_is_shown_as_far_as_it_can_be(stand_in):
    stand_in.play("0 name Tesla \udcb5V\udcff")
    assert [card["name"] for card in cards(stand_in)][:2] == ["Tesla \ufffdV\ufffd", "NVIDIA GeForce RTX 4090"]
    assert records(stand_in, "--once")[0]["gpus"][0]["name"] == "Tesla \ufffdV\ufffd"
    shown = run(stand_in, "--once", COLUMNS="200")
    assert shown.returncode == 0 and "Tesla" in shown.stdout, shown.stderr
