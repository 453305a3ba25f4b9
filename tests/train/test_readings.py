"""Each rank's readings during a run, and the summary at its end: on real CPU ranks, and with simulated GPUs."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from ds_rvqvae.text import GIB
from ds_rvqvae.train.readings import BOARD_GROUPS, READING_KEYS, HostMemory, OwnMemory, RankMeter, Reading
from tests.gpu.stand_in import GPU_IS_LOST, NOT_SUPPORTED
from tests.ranks import run_ranks, start_ranks
from tests.train.small import SMALL, make_trainer, read_metrics

CPU = torch.device("cpu")
CARD = "GPU-0000000{}-0000-4090-8000-000000000000"


class PlayedMemory:
    """The allocator of a simulated GPU: each call returns the next peak in GiB, and the last one forever."""

    total_bytes = 24 * GIB

    def __init__(self, *peaks, retries=0):
        self.peaks, self.retries, self.calls = list(peaks), retries, 0

    def take(self):
        self.calls += 1
        peak = self.peaks.pop(0) if len(self.peaks) > 1 else self.peaks[0]
        return OwnMemory(peak * GIB, GIB // 2, peak * GIB + GIB // 2, peak * GIB + GIB // 2, self.retries)


def test_on_a_cpu_it_is_the_processs_resident_memory():
    meter = RankMeter(CPU)
    before = meter.read()
    assert {key for key in READING_KEYS if getattr(before, key) is not None} == {"memory_gib"}
    held = torch.ones(GIB // 16)  # 256 MiB
    during = meter.read().memory_gib
    assert during - before.memory_gib == pytest.approx(held.numel() * 4 / GIB, abs=0.05)
    del held
    peaks = meter.peaks()
    assert peaks.resident_gib >= during and peaks.allocated_gib is None and peaks.mean_power_w is None
    meter.close()


def test_a_process_that_cannot_be_read_gives_no_reading():
    other = psutil.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    meter = RankMeter(CPU, memory=HostMemory(other))
    assert meter.read().memory_gib > 0
    other.communicate(b"\n")
    assert meter.read() == Reading()


def test_peaks_of_steps_are_told_from_those_of_other_work():
    meter = RankMeter(CPU, memory=PlayedMemory(5, 4, 2, 3, 9, 1))
    meter.enter_steps()
    assert meter.read().memory_gib == 2
    meter.leave_steps()
    meter.enter_steps()
    peaks = meter.peaks()
    assert (peaks.step_allocated_gib, peaks.allocated_gib, peaks.reserved_gib) == (3, 9, 9.5)
    assert peaks.used_gib is None and peaks.headroom_gib is None and peaks.card_memory_gib == 24


METERED = """
import json, time, torch
from pathlib import Path
from ds_rvqvae.train.readings import RankMeter
meter = RankMeter(torch.device("cpu"), {card!r})
readings = [meter.read()]
for line in {lines!r}:
    Path({file!r}).write_text(line)
    time.sleep(0.05)
    readings.append(meter.read())
peaks = meter.peaks()
print(json.dumps([[reading._asdict() for reading in readings], vars(peaks), peaks.headroom_gib, peaks.mean_power_w]))
"""


def metered(stand_in, card, *lines):
    return json.loads(stand_in.python(METERED.format(card=card, lines=lines, file=str(stand_in.file))))


class TestCard:
    def test_readings_of_the_ranks_own_card(self, stand_in):
        stand_in.play("3 used 6442450944", "3 utilisation 97", "3 power 360000", "3 temperature 71")
        readings, peaks, headroom, _ = metered(stand_in, CARD.format(3))
        first = readings[0]
        assert first["memory_used_gib"] == 6 and first["card_memory_gib"] == pytest.approx(23.99, abs=0.01)
        assert (first["utilisation"], first["power_w"], first["temperature_c"]) == (97, 360, 71)
        assert first["memory_gib"] > 0 and first["memory_reserved_gib"] is None
        assert peaks["used_gib"] == 6 and headroom == first["card_memory_gib"] - 6

    def test_a_lost_card_keeps_what_was_seen_of_it(self, stand_in):
        stand_in.play("1 used 3221225472", "1 energy 7200000")
        lost, back = f"1 error {GPU_IS_LOST}", "1 used 1073741824\n1 energy 14400000"
        readings, peaks, _, power = metered(stand_in, CARD.format(1), back, lost)
        assert [reading["memory_used_gib"] for reading in readings] == [3, 1, None]
        assert [reading["energy_wh"] for reading in readings] == [0, 2, None]
        assert (peaks["used_gib"], peaks["energy_wh"]) == (3, 2)
        assert power == pytest.approx(7200 / peaks["seconds"])

    def test_no_such_card(self, stand_in):
        readings, peaks, headroom, power = metered(stand_in, "GPU-none")
        assert readings[0]["memory_gib"] > 0 and readings[0]["memory_used_gib"] is None
        assert peaks["energy_wh"] is None and headroom is None and power is None

    def test_without_a_driver(self):
        meter = RankMeter(CPU, CARD.format(0))
        assert meter.read().memory_gib > 0
        meter.close()


@pytest.mark.processes
def test_a_run_on_cpus_that_a_signal_stops(tmp_path, demo_folder):
    flags = [*SMALL, f"--data_path={demo_folder}", f"--out={tmp_path}", "--name=run", "--batch_size=4"]
    ranks = start_ranks(2, ["-m", "ds_rvqvae.train", *flags, "--total_iter=1000000"])
    run, deadline = tmp_path / "run", time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and read_metrics(run)) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(ranks[0].pid, signal.SIGTERM)
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], printed
    lines = read_metrics(run)
    for line in lines:
        assert len(line["memory_gib"]) == 2 and min(line["memory_gib"]) > 0.1
        assert all(line[key] == [None, None] for key in READING_KEYS[1:])
    table = r"memory of each rank over \d+ s:\n +peak resident\n +rank 0 +\d\.\d\d GiB\n +rank 1 +\d\.\d\d GiB\n"
    log = (run / "run.log").read_text()
    assert re.search(table, printed[0]) and re.search(table, log) and "peak resident" not in printed[1]
    written = json.loads((run / "memory.json").read_text())
    assert (written["first_step"], written["last_step"], written["planned"]) == (0, lines[-1]["step"], None)
    for rank, peaks in enumerate(written["ranks"]):
        assert peaks["resident_gib"] >= max(line["memory_gib"][rank] for line in lines)
        assert peaks["energy_wh"] is None and peaks["seconds"] > 0


def train_on_played_cards(folder, data):
    """Trains on CPUs; the meter reads GPU 1 + rank, and an allocator with 2 GiB in steps and 3 GiB outside."""
    import torch.distributed as dist

    from ds_rvqvae.train.metrics import start_log

    trainer = make_trainer(folder, data, ["--batch_size=4", "--total_iter=6", "--log_every=3"])
    start_log(trainer.run_folder / "run.log", trainer.rank)
    memory = PlayedMemory(3, 3, 2, retries=trainer.rank)
    trainer.log.meter = RankMeter(trainer.device, CARD.format(1 + trainer.rank), memory)
    calls, logged = [], []
    gather = dist.all_gather
    dist.all_gather = lambda *arguments, **keywords: (calls.append(1), gather(*arguments, **keywords))[1]
    write = trainer.log.write

    def counted_write(*arguments):
        before = len(calls)
        shown = write(*arguments)
        logged.append(len(calls) - before)
        return shown

    trainer.log.write = counted_write
    trainer.train()
    return {"taken": memory.calls, "gathered": logged}


@pytest.mark.processes
def test_a_run_on_played_cards(tmp_path, demo_folder, stand_in, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    common = (f"* energy !{NOT_SUPPORTED}", "* power 360000", "* utilisation 90", f"1 used {6 * GIB}")
    stand_in.play(*common, f"2 used {23 * GIB}")
    for name in ("LD_LIBRARY_PATH", "NVML_STAND_IN"):
        monkeypatch.setenv(name, stand_in.environment[name])
    run = tmp_path / "run"
    results = run_ranks(2, train_on_played_cards, tmp_path, folder=str(run), data=str(demo_folder))
    # At the meter's start, before the first step, at three logged ones, before and after evaluating, at the end.
    assert results == [{"taken": 8, "gathered": [1, 1, 1]}] * 2

    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 3, 6]
    for line in lines:
        assert (line["memory_gib"], line["memory_allocated_gib"]) == ([2, 2], [0.5, 0.5])
        assert (line["memory_reserved_gib"], line["memory_used_gib"]) == ([2.5, 2.5], [6, 23])
        assert (line["utilisation"], line["power_w"], line["temperature_c"]) == ([90, 90], [360, 360], [31, 32])
        assert line["card_memory_gib"] == [24, 24] and line["allocation_retries"] == [0, 1]
    assert lines[0]["energy_wh"][0] < lines[2]["energy_wh"][0]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = {f"{group}/rank_{rank}" for group in BOARD_GROUPS.values() for rank in (0, 1)}
    assert tags <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("GPU_memory_used_GiB/rank_1")] == [23, 23, 23]

    log = (run / "run.log").read_text()
    warned = [line for line in log.splitlines() if "WARNING" in line]
    assert len(warned) == 2
    assert "step 1: over 90% of the GPU's memory is in use (rank 1: 23.0 of 24.0 GiB, 2.5 of it torch's" in warned[0]
    assert "emptied its cache (rank 1 1 times)" in warned[1]
    assert re.search(r"rank 1 +3\.00 GiB +3\.50 GiB +23\.00 GiB +24\.00 GiB +1\.00 GiB +1 +\d\.\d Wh +\d+ W", log)
    assert re.search(r"tensors: planned 0\.\d\d GiB per GPU, peak in steps 2\.00 GiB, .* saving 3\.00 GiB", log)
    assert re.search(r"GPU: planned \d\.\d\d GiB, used 23\.00 GiB", log)
    written = json.loads((run / "memory.json").read_text())
    assert 0 < written["planned"]["allocated_gib"] < written["planned"]["total_gib"]
    assert [peaks["step_allocated_gib"] for peaks in written["ranks"]] == [2, 2]
    assert all(peaks["mean_power_w"] == pytest.approx(360, rel=0.1) for peaks in written["ranks"])
