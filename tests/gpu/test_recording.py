"""Files that the monitor writes: CSV, lines of JSON, TensorBoard's scalars."""

import csv
import json
import resource
import subprocess
import time
from datetime import datetime

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ds_rvqvae.errors import ExitStatus
from tests.gpu.monitor_runs import one_line, run
from tests.gpu.stand_in import NOT_SUPPORTED, command


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
        file.write_text(whole + torn if torn else whole[:20])  # None: an incomplete header
        assert run(stand_in, "--once", "--gpus", "1", "--csv", file).returncode == 0
        lines = file.read_text().splitlines()
        assert lines[: len(lines) - 1] == (whole.splitlines() if torn else whole.splitlines()[:1])
        assert "NVIDIA GeForce RTX 4090" in lines[-1]

    @pytest.mark.parametrize("flag", ["--csv", "--json"])
    @pytest.mark.parametrize("content", ["my,own,table\n1,2,3\n", "no line end", '{"a": 1}\n', "\n"])
    def test_anothers_file_is_left_alone(self, stand_in, tmp_path, flag, content):
        file = tmp_path / "mine"
        file.write_text(content)
        assert "does not hold this monitor's records" in one_line(
            run(stand_in, "--once", flag, file), ExitStatus.BAD_INPUT
        )
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
        assert done.stderr.startswith("warning: --csv") and "kept and written later" in done.stderr
        text = file.read_text()
        assert text.endswith("\n") and 1 < len(text.splitlines()) < 5

    def test_a_reader_that_has_seen_enough(self, stand_in):
        with subprocess.Popen(
            command(0.1), env=stand_in.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as monitor:
            monitor.stdout.readline()
            monitor.stdout.close()
            assert monitor.wait(10) == 0 and monitor.stderr.read() == b""
