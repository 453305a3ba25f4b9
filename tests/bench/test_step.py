"""`ds-rvqvae bench` as a user runs it."""

import json
import os
import subprocess
import sys

import pytest

from ds_rvqvae.host import has_bf16_arithmetic

KEYS = {
    *("step_s", "model_s", "plain_fp32_step_s", "plain_bf16_step_s", "checkpointed_step_s", "conv_share"),
    *("matmul_flops", "mfu", "device", "versions", "parts_s", "kernels", "peak_memory_bytes", "data_wait_share"),
}


@pytest.mark.processes
def test_the_command_measures_a_step_and_its_peers(tmp_path):
    command = [sys.executable, "-m", "ds_rvqvae.cli", "bench", "demo", "--rounds", "2", "--json", "found.json"]
    command += ["--trace", "trace.json"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() >= KEYS - ({"plain_bf16_step_s"} if not has_bf16_arithmetic() else set())
    assert found["cpu_bf16_native"] is has_bf16_arithmetic() is ("left out: PyTorch's own" not in done.stdout)
    assert "bf16 arithmetic of this CPU: " in done.stdout
    assert found["dtype"] == "bf16" and not found["activation_checkpointing"]
    assert found["times_plain_fp32"] == pytest.approx(found["plain_fp32_step_s"] / found["step_s"])
    assert 0 < found["mfu"] < 1 and 0 < found["conv_share"] < 1
    parts = found["parts_s"]
    assert parts.keys() >= {"forward: encoder", "forward: quantizer", "forward: decoder", "backward", "optimizer"}
    assert all(seconds >= 0 for seconds in parts.values())
    assert "times ours" in done.stdout and "convolutions" in done.stdout
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["found.json", "trace.json"]


@pytest.mark.processes
def test_a_step_without_codebooks_is_measured_too(tmp_path):
    command = [sys.executable, "-m", "ds_rvqvae.cli", "bench", "demo", "--rounds", "1", "--no_plain", "--json"]
    command += ["--set=rvqvae.model.fsq_levels=[4,4,4,4]", "--set=rvqvae.model.code_dim=24"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model_s"] > 0 and "plain_bf16_step_s" not in found
