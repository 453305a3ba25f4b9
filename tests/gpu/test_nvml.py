"""Readings of cards, on a real driver where there is one."""

import pynvml
import pytest

from ds_rvqvae.gpu.nvml import IDLE_MEMORY, Gpu, GpuProcess, NoDriverError, list_gpus


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
