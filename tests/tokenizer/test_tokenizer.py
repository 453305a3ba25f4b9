"""The exported tokenizer: what it saves it loads, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer
from ds_rvqvae.data.layout import Channels
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import ModelConfig
from tests.ranks import ROOT

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=3)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    layout = (Channels("hip", "rotation_6d", 0, 6), Channels("rest", "feature", 6, 8))
    return MotionTokenizer(RVQVAE(8, CONFIG), torch.randn(8), torch.rand(8) + 0.5, layout, 30.0, {"training_step": 7})


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = MotionTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert not loaded.training and loaded.layout == tokenizer.layout and loaded.details == {"training_step": 7}
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    motion = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    np.testing.assert_array_equal(tokenizer.encode(motion), loaded.encode(motion))
    config = json.loads((tmp_path / "tokenizer" / "config.json").read_text())
    assert config["code_rate"] == 7.5 and config["fps"] == 30.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer"]


def test_saving_again_replaces_the_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "stray").write_text("")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == ["config.json", "model.safetensors"]


def test_normalisation_is_included(tokenizer):
    motion = torch.randn(16, 8) * tokenizer.std + tokenizer.mean
    codes = tokenizer.encode(motion)
    normalised = (motion - tokenizer.mean) / tokenizer.std
    assert torch.equal(codes, tokenizer.model.encode(normalised[None])[0])
    expected = tokenizer.model.decode(codes[None])[0] * tokenizer.std + tokenizer.mean
    torch.testing.assert_close(tokenizer.decode(codes), expected)


def test_arrays_give_arrays_and_any_length_is_padded(tokenizer):
    motion = np.zeros((18, 8), np.float32)
    codes = tokenizer.encode(motion)
    assert isinstance(codes, np.ndarray) and codes.shape == (5, 3) and codes.dtype == np.int64
    assert isinstance(tokenizer.decode(codes), np.ndarray) and tokenizer.decode(codes).shape == (20, 8)
    assert tokenizer.decode(codes[:, :1]).shape == (20, 8)
    assert isinstance(tokenizer.encode(torch.zeros(18, 8)), torch.Tensor)


@pytest.mark.parametrize("shape", [(10, 7), (10,), (0, 8), (1, 10, 8)])
def test_wrong_shapes_are_refused(tokenizer, shape):
    with pytest.raises(ValueError, match="takes \\[frames, 8\\]"):
        tokenizer.encode(np.zeros(shape, np.float32))


def test_bf16_keeps_codebooks_and_normalisation_in_fp32(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = MotionTokenizer.from_pretrained(tmp_path / "tokenizer", dtype=torch.bfloat16)
    assert loaded.model.encoder[0].weight.dtype == torch.bfloat16
    assert loaded.model.quantizer.codebooks.dtype == loaded.mean.dtype == torch.float32
    assert loaded.decode(loaded.encode(torch.randn(16, 8))).dtype == torch.float32


def _without(folder, name):
    (folder / name).unlink()


def _config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


DAMAGE = {
    "no config": (lambda folder: _without(folder, "config.json"), "config.json is missing"),
    "no weights": (lambda folder: _without(folder, "model.safetensors"), "model.safetensors is missing"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "another format": (lambda folder: _config(folder, format_version=99), "format_version 99"),
    "a wider model": (lambda folder: _config(folder, in_features=9), "layout"),
    "unknown model key": (lambda folder: _config(folder, model={"widht": 3}), "widht"),
    "another code_dim": (lambda folder: _config(folder, model={"code_dim": 5}), "weights"),
    "truncated weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "model.safetensors"),
}


@pytest.mark.parametrize(("damage", "pattern"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folders_are_refused_in_one_line(tokenizer, tmp_path, damage, pattern):
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    damage(folder)
    with pytest.raises(UserError, match=pattern) as refusal:
        MotionTokenizer.from_pretrained(folder)
    assert "\n" not in str(refusal.value)


def test_it_loads_without_deepspeed(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "import numpy as np\n"
        "from ds_rvqvae import MotionTokenizer\n"
        "tokenizer = MotionTokenizer.from_pretrained(sys.argv[1])\n"
        "print(tokenizer.encode(np.zeros((16, 8), np.float32)).shape)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tokenizer")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "(4, 3)\n", result.stderr
