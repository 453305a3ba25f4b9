"""The metrics file and the alarms."""

import json
import logging
import threading

import pytest

from ds_rvqvae.train import metrics
from ds_rvqvae.train.metrics import MemoryAlarm, MetricsFile, SpikeAlarm, start_log
from ds_rvqvae.train.readings import Reading
from tests.damage import DAMAGES, damage
from tests.room import files_no_longer_than


def test_lines_past_the_step_and_a_torn_one_are_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 5, "loss": 1.0}\n{"step": 6, "loss": 0.5}\n{"step": 7, "lo')
    metrics = MetricsFile(file, 5)
    metrics.write({"step": 6, "loss": float("nan"), "usage": [0.5, float("inf")]})
    metrics.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 5, 6]
    assert lines[2] == {"step": 6, "loss": None, "usage": [0.5, None]}
    assert [line["loss"] for line in metrics.earlier] == [2.0, 1.0]


def test_lines_without_room_are_said_once_and_written_later(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(file, 0)
    for step in range(1, 4):
        with files_no_longer_than(file.stat().st_size + 5):
            for small in range(10):
                metrics.write({"step": step + small / 10, "loss": 1.0})
        assert file.read_bytes().count(b"\n") == 11 * (step - 1)
        metrics.write({"step": step + 0.99, "loss": 1.0})
    metrics.close()
    steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
    assert len(steps) == 33 and steps == sorted(steps)
    assert [line.partition("; ")[2] for line in caplog.messages] == ["its lines are kept and written later"] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_thread_that_ends_is_told_in_the_log_of_any_rank(tmp_path, monkeypatch, rank):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(metrics, "logger", logging.Logger("own"))
    for library in ("DeepSpeed", "torch"):  # pytest's own handlers among them would keep the level
        monkeypatch.setattr(logging.getLogger(library), "handlers", [])
    try:
        start_log(tmp_path / "run.log", rank)
        thread = threading.Thread(target=lambda: 1 / 0, name="own")
        thread.start()
        thread.join()
    finally:
        logging.captureWarnings(False)
    said = f"rank {rank}: thread own ended: ZeroDivisionError: division by zero\n"
    assert (tmp_path / "run.log").read_text().endswith(said)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_lines_are_cut_and_said(tmp_path, caplog, kind):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step, "loss": 1 / step, "lr": 0.1}) + "\n" for step in range(1, 201)))
    before = damage(file, kind)
    metrics = MetricsFile(file, 200)
    metrics.write({"step": 201, "loss": 0.5})
    metrics.close()
    steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
    kept = len(metrics.earlier)
    assert steps == [*range(1, kept + 1), 201]
    assert before.startswith(b"".join(line + b"\n" for line in file.read_bytes().split(b"\n")[:kept]))
    said = " ".join(caplog.messages)
    assert (kept == 200) == ("after" in kind)
    assert (f"the lines of steps {kept + 1} to 200 are lost" in said) == (kept < 200)
    assert ("damaged lines removed" in said) == (kind != "empty")


@pytest.mark.parametrize(
    "line",
    [
        *(b"{}", b"[]", b"null", b'"step"', b"7", b"\xff\xfe", b"\0\0", b'{"step": 2}', b'{"loss": 2}', b"[" * 10**5),
        *(b'{"step": "2", "loss": 1}', b'{"step": true, "loss": 1}', b'{"step": 2, "loss": "1"}'),
        *(b'{"step": 1e999, "loss": 1}', b'{"step": NaN, "loss": 1}'),
    ],
)
def test_a_line_without_its_keys_is_cut(tmp_path, caplog, line):
    file = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 2.0}\n', b'{"step": 3, "loss": null}\n'
    file.write_bytes(good[0] + line + b"\n" + good[1])
    metrics = MetricsFile(file, 5)
    metrics.close()
    assert file.read_bytes() == b"".join(good)
    assert "1 damaged lines removed" in caplog.messages[0]
    assert [entry["loss"] for entry in metrics.earlier] == [2.0, None]


def test_a_loss_far_above_the_ones_before_is_a_spike_after_a_resume_too():
    losses = [1.0, 1.1, 0.9, 1.0, 1.0, 0.8, 5.0, 1.0, float("nan")]
    whole = SpikeAlarm()
    assert [whole.is_spike(loss) for loss in losses] == [False] * 6 + [True, False, True]
    resumed = SpikeAlarm(losses[:6])
    assert [resumed.is_spike(loss) for loss in losses[6:]] == [True, False, True]


def test_a_card_that_is_nearly_full_is_told_once_for_each_rank():
    alarm = MemoryAlarm()

    def look(*used):
        return alarm.look([Reading(memory_used_gib=gib, card_memory_gib=24.0) for gib in used])

    assert look(21.6, None) == []
    (warning,) = look(21.7, 20.0)
    assert "over 90%" in warning and "(rank 0: 21.7 of 24.0 GiB);" in warning
    assert look(22.0, 20.0) == []
    (warning,) = look(23.0, 23.5)
    assert "(rank 1: 23.5 of 24.0 GiB);" in warning and "rank 0" not in warning


def test_an_emptied_cache_is_told_once_for_each_rank():
    alarm = MemoryAlarm()
    assert alarm.look([Reading(allocation_retries=0.0), Reading()]) == []
    (warning,) = alarm.look([Reading(allocation_retries=0.0), Reading(allocation_retries=3.0)])
    assert "(rank 1 3 times)" in warning
    assert alarm.look([Reading(allocation_retries=0.0), Reading(allocation_retries=4.0)]) == []
