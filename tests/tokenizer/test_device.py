"""A tokenizer on another device: everything of it computes there, and gives what it gives on the CPU.

The device is played on the CPU (`played_device.py`), in a process of its own.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils import backend_registration

from ds_rvqvae import BodyTokenizer, MotionTokenizer
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.motion.layout import smplx_layout
from tests.cli.commands import make_tokenizer
from tests.data.motion import write_beat2_folder

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this torch has no devices in Python",
    ),
]
SETTINGS = {"benchmark": False, "deterministic": True}
"""Of cuDNN, in inference."""


def results(tokenizer: MotionTokenizer, data: MotionData) -> dict:
    """Returns everything that a tokenizer gives: codes and motion of arrays, batches and streams, scores, errors."""
    from ds_rvqvae.model.exact import exactly
    from ds_rvqvae.motion.clip import Clip
    from ds_rvqvae.motion.skeleton import builtin_skeleton
    from ds_rvqvae.tokenizer.scores.evaluation import evaluate_split
    from ds_rvqvae.viz.comparison import compare

    device = tokenizer.mean.device
    motion = np.random.default_rng(0).standard_normal((61, len(tokenizer.mean))).astype(np.float32)
    codes = tokenizer.encode(motion)
    batch = torch.from_numpy(motion).expand(2, -1, -1).to(device)
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    pieces = [encoder.push(motion[:20]), encoder.push(motion[20:]), encoder.finish()]
    assert {piece.device for piece in pieces} == {device}
    streamed = torch.cat([decoder.push(codes), decoder.finish()])
    of_batch = tokenizer.encode(batch, [61, 30])
    assert of_batch.device == tokenizer.decode(of_batch, [61, 30]).device == streamed.device == device
    with exactly(tokenizer.model):
        settings = {name: getattr(torch.backends.cudnn, name) for name in SETTINGS}
    assert device.type == "cpu" or settings == SETTINGS
    clip = Clip("walk", motion, tokenizer.fps, tokenizer.layout)
    body = BodyTokenizer({"upper": tokenizer})
    wide = np.zeros((61, body.layout[-1].stop), np.float32)
    return {
        "codes": codes.tolist(),
        "motion": tokenizer.decode(codes, 61).tolist(),
        "streamed": [torch.cat(pieces).tolist(), streamed.tolist()],
        "batch": [of_batch.tolist(), tokenizer.decode(of_batch, [61, 30]).tolist()],
        "body": body.decode(body.encode(wide), source=wide).tolist(),
        "scores": evaluate_split(tokenizer.model, data, "all", device),
        "error": compare([tokenizer], clip, builtin_skeleton()).angle_error.tolist(),
        "fingerprint": tokenizer.fingerprint,
    }


def on_the_device(tokenizer: str, data: str) -> None:
    """Compares the played device with the CPU."""
    from ds_rvqvae.config.data import DataConfig
    from tests.tokenizer.played_device import play

    motion = MotionData.open(DataConfig(path=data, body_part="upper"))
    expected = results(MotionTokenizer.from_pretrained(tokenizer), motion)
    with play():
        there = MotionTokenizer.from_pretrained(tokenizer, device="played")
        assert {str(there.mean.device), str(there.model.device)} == {"played:0"}
        with pytest.raises(RuntimeError, match="tensors of the CPU and of the played device"):
            there.mean + torch.ones(len(there.mean))
        found = results(there, motion)
    for name, value in expected.items():
        assert found[name] == value, name


def test_another_device_gives_what_the_cpu_gives_and_mixes_no_tensors(tmp_path):
    from ds_rvqvae.motion.layout import select_columns

    write_beat2_folder(tmp_path / "data", ("1_a", "2_b"), 61)
    make_tokenizer(select_columns(smplx_layout(), "upper")[1], "upper").save_pretrained(tmp_path / "upper")
    code = "import sys; from tests.tokenizer.test_device import on_the_device; on_the_device(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(tmp_path / "upper"), str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
