"""`ds-rvqvae bench` and the plain loop that it measures beside."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, load_profile
from ds_rvqvae.bench.plain import PlainLoop
from ds_rvqvae.errors import UserError
from ds_rvqvae.host import has_bf16_arithmetic
from ds_rvqvae.model.losses import loss_columns
from ds_rvqvae.motion.layout import joint_layout

KEYS = {
    *("step_s", "model_s", "plain_fp32_step_s", "plain_bf16_step_s", "checkpointed_step_s", "conv_share"),
    *("matmul_flops", "mfu", "device", "versions", "parts_s", "kernels", "peak_memory_bytes", "data_wait_share"),
}
CPU = torch.device("cpu")
SMALL = ["rvqvae.model.width=64", "rvqvae.model.dropout=0", "rvqvae.model.quantize_dropout_prob=0"]


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


def test_the_plain_loop_has_the_profiles_losses():
    layout = joint_layout(("spine1", "neck"), "translation")[:2]
    profile = load_profile("demo", [*SMALL, "rvqvae.loss.loss_rotation=10"])
    columns = loss_columns(profile.rvqvae.loss, layout, np.zeros(12, np.float32), np.ones(12, np.float32), CPU)
    motion, losses = torch.randn(4, 64, 12), []
    for known in (None, columns):
        torch.manual_seed(0)
        plain = PlainLoop(RVQVAE(12, profile.rvqvae.model), profile, CPU, columns=known)
        losses.append(float(plain.step([motion])))
    assert losses[1] > losses[0] + 1


def test_the_plain_loop_trains_the_same_nets():
    profile = load_profile("demo", SMALL)
    torch.manual_seed(0)
    model = RVQVAE(6, profile.rvqvae.model)
    plain = PlainLoop(model, profile, CPU)
    stock = {type(module) for net in (plain.encoder, plain.decoder) for module in net.modules()}
    assert not any(kind.__module__.endswith("model.nets") and kind.__name__ == "Convolution" for kind in stock)
    motion = torch.randn(4, 64, 6)
    latents = plain.encoder(motion.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(latents, model.encode_latents(motion))
    torch.testing.assert_close(plain.decoder(latents.transpose(1, 2)).transpose(1, 2), model.decode_latents(latents))
    losses = [float(plain.step([motion])) for _ in range(40)]
    assert losses[-1] < 0.95 * losses[0]


def test_nets_that_stock_modules_do_not_make_are_refused():
    profile = load_profile("demo", [*SMALL, "rvqvae.model.norm=LN"])
    with pytest.raises(UserError, match="--no_plain"):
        PlainLoop(RVQVAE(6, profile.rvqvae.model), profile, CPU)
