"""CUDA's numbers for the GPUs of a snapshot, and the forms of a snapshot in output."""

from datetime import UTC, datetime

import pytest

from ds_rvqvae.gpu.nvml import Gpu, GpuProcess, GpuSlice
from ds_rvqvae.gpu.processes import Owner, Rank
from ds_rvqvae.gpu.snapshot import CSV_COLUMNS, Snapshot, csv_rows, cuda_order, json_record, plain_line, scalars
from tests.gpu.monitor_runs import records


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


def test_cuda_numbers_follow_the_environment_and_physical_ones_do_not(stand_in):
    def numbers(**variables):
        return [card["cuda_device"] for card in records(stand_in, "--once", **variables)[0]["gpus"]]

    assert numbers() == list(range(8))
    assert numbers(CUDA_VISIBLE_DEVICES="3,1") == [None, 1, None, 0, *4 * [None]]
    uuid = "GPU-00000005-0000-4090-8000-000000000000"
    assert numbers(CUDA_VISIBLE_DEVICES=f"{uuid},2") == [None, None, 1, None, None, 0, None, None]


def seen():
    """A GPU with one of our ranks, one with few readings, one that is lost; the second is not shown."""
    process = GpuProcess(77, 3 << 30)
    ours = Gpu(
        0, "RTX 4090", "GPU-a", "0000:01:00.0", 1000 << 20, 24 << 30, 98, (process,), power_watts=411.6,
        pcie_received_bytes_per_s=1_234_567,
    )  # fmt: skip
    lost = Gpu(2, "RTX 4090", "GPU-c", "0000:03:00.0", None, None, None, error="GPU is lost")
    gpus = [ours, Gpu(1, "RTX 4090", "GPU-b", "0000:02:00.0", None, None, None), lost]
    rank = Rank(3, 3, 7, "/runs/big", {"CUDA_VISIBLE_DEVICES": "1,0"})
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Snapshot(time, "550.54.14", "12.4", gpus, [0, 2], {77: Owner("ann", "python train.py", rank)})


def test_a_plain_line_says_who_uses_a_card_and_why_one_cannot_be_read():
    snapshot = seen()
    assert [plain_line(snapshot, gpu) for gpu in snapshot.cards] == [
        "2026-01-02T03:04:05+00:00 GPU 0 RTX 4090: 1.0 / 24.0 GiB, 98 %, N/A °C, 412 / N/A W, PCIe rx 0.0 tx N/A GB/s; "
        "NOT idle (1.0 GiB in use; process 77 (rank 3 of 7, big, python train.py, ann))",
        "2026-01-02T03:04:05+00:00 GPU 2 RTX 4090: ERR (GPU is lost)",
    ]


def test_a_row_of_csv_has_its_units_and_leaves_out_what_is_not_known():
    first, lost = (dict(zip(CSV_COLUMNS, row, strict=True)) for row in csv_rows(seen()))
    assert (first["memory_used_MiB"], first["memory_total_MiB"]) == (1000.0, 24576.0)
    assert (first["pcie_received_MB_per_s"], first["pcie_sent_MB_per_s"], first["idle"]) == (1.2, None, 0)
    assert (first["processes"], first["ranks"], first["runs"]) == (1, "3", "/runs/big")
    assert (lost["gpu"], lost["memory_used_MiB"], lost["error"]) == (2, None, "GPU is lost")


def test_json_counts_a_ranks_card_as_the_rank_does():
    card, _ = json_record(seen())["gpus"]
    assert card["cuda_device"] == 0 and card["processes"][0]["cuda_device"] == 1
    assert [card["processes"][0][key] for key in ("rank", "world_size", "run", "user")] == [3, 7, "/runs/big", "ann"]


def test_missing_readings_have_no_scalar():
    assert scalars(seen()) == {
        "GPU_memory_used_GiB/gpu_0": 1000 / 1024,
        "GPU_utilisation_percent/gpu_0": 98.0,
        "GPU_power_watts/gpu_0": 411.6,
    }
