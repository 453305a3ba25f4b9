"""The context in which a tokenizer's net is loaded does not change it, or is refused."""

import json

import pytest
import torch
from torch import nn

from ds_rvqvae import MotionTokenizer
from ds_rvqvae.errors import UserError
from tests.second_stage import Seen, save_tokenizer


@pytest.fixture
def seen(tmp_path):
    return Seen(save_tokenizer(tmp_path / "tokenizer"))


def test_inference_mode_leaves_weights_that_train(seen):
    with torch.inference_mode():
        tokenizer = MotionTokenizer.from_pretrained(seen.folder, trainable=True)
    tokenizer.model(torch.zeros(1, 8, tokenizer.model.in_features)).reconstruction.sum().backward()
    assert all(parameter.grad is not None for parameter in tokenizer.model.decoder.parameters())


def test_the_meta_device_itself_is_refused(seen):
    with pytest.raises(ValueError, match="no weights"):
        MotionTokenizer.from_pretrained(seen.folder, device="meta")


def test_where_new_modules_lose_their_weights_it_says_so(seen, monkeypatch):
    register = nn.Module.register_parameter

    def on_meta(module, name, parameter):
        """Acts like accelerate's init_empty_weights."""
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(module._parameters[name].to("meta"))

    monkeypatch.setattr(nn.Module, "register_parameter", on_meta)
    with pytest.raises(UserError, match="init_empty_weights"):
        MotionTokenizer.from_pretrained(seen.folder)
    monkeypatch.undo()
    seen.check(MotionTokenizer.from_pretrained(seen.folder))


def test_equal_tokenizers_are_equal_files(seen, tmp_path):
    tokenizer = MotionTokenizer.from_pretrained(seen.folder)
    for number in range(8):
        tokenizer.save_pretrained(tmp_path / str(number))
    files = [(tmp_path / str(number) / "model.safetensors").read_bytes() for number in range(8)]
    assert len(set(files)) == 1
    size = int.from_bytes(files[0][:8], "little")
    assert size % 8 == 0 and list(json.loads(files[0][8 : 8 + size])["__metadata__"]) == sorted(
        json.loads(files[0][8 : 8 + size])["__metadata__"]
    )
