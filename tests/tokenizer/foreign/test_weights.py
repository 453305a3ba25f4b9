"""The weights in checkpoints of other systems: which are read, and which are refused in one line."""

import argparse

import numpy as np
import pytest
import torch

from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.foreign.reading import import_foreign
from tests.tokenizer.foreign.checkpoints import SAID, SMALL, random_weights, save_as_trainer


@pytest.mark.parametrize("prefix", ["", "module.", "vqvae.", "module.vqvae."])
def test_prefixes_and_bare_state_dicts_are_understood(prefix, tmp_path):
    weights = {
        prefix + key.replace("quantizer.layers.0.", "quantizer."): value
        for key, value in random_weights(**SMALL | {"levels": 1}).items()
    }
    torch.save(weights, tmp_path / "bare.pth")
    torch.save({"net": weights}, tmp_path / "net.pth")
    bare, net = (import_foreign(tmp_path / name, "t2mgpt", **SAID) for name in ("bare.pth", "net.pth"))
    assert bare.fingerprint == net.fingerprint and bare.model.config == net.model.config


def test_a_codebook_that_was_trained_by_gradients_is_understood(tmp_path):
    """T2M-GPT's `--quantizer orig` has an embedding instead of averages."""
    weights = random_weights(**SMALL | {"levels": 1})
    plain = import_foreign(save_as_trainer(tmp_path / "plain.pth", "t2mgpt", weights), "t2mgpt", **SAID)
    weights["quantizer.layers.0.embedding.weight"] = weights.pop("quantizer.layers.0.codebook")
    orig = import_foreign(save_as_trainer(tmp_path / "orig.pth", "t2mgpt", weights), "t2mgpt", **SAID)
    assert orig.fingerprint == plain.fingerprint


def _without(key):
    return lambda weights: weights.pop(key)


def _with(key, value):
    return lambda weights: weights.update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("encoder.model.0.weight"), "encoder.model.0.weight is missing; not a checkpoint of MoMask"),
        (_without("decoder.model.3.2.bias"), r"decoder.model.3.2.bias \[8\] is missing"),
        (_without("quantizer.layers.1.codebook"), r"quantizer.layers.1.codebook \[16, 4\] is missing"),
        (_without("quantizer.layers.0.codebook"), "quantizer.layers.0.codebook is missing; not a checkpoint of MoMask"),
        (_with("quantizer.layers.1.codebook", torch.zeros(3, 4)), r"layers.1.codebook is \[3, 4\], but the other"),
        (_with("decoder.model.0.weight", torch.zeros(8, 5, 3)), r"is \[8, 5, 3\], but the other weights need \[8, 4"),
        (_with("encoder.model.0.weight", torch.zeros(8, 5)), r"\[8, 5\] does not have 3 dimensions"),
        (_with("text_encoder.weight", torch.zeros(2, 2)), r"text_encoder.weight \[2, 2\] is not a weight of a MoMask"),
        (_with("encoder.model.2.0.weight", torch.zeros(8, 8, 2)), "kernel 2, for a stride of 1; only with an even"),
        (_with("decoder.model.0.bias", torch.full((8,), float("nan"))), r"decoder.model.0.bias \[8\] holds NaN"),
        (_with("decoder.model.0.bias", torch.zeros(8, dtype=torch.int64)), "is torch.int64, not floating-point"),
        (_with("decoder.model.0.bias", 3.0), "decoder.model.0.bias is a float, not a dense tensor"),
        (_with("decoder.model.0.bias", torch.zeros(8).to_sparse()), "decoder.model.0.bias is a Tensor, not a dense"),
        (_with("decoder.model.0.bias", torch.zeros(8, device="meta")), "decoder.model.0.bias is a Tensor, not a dense"),
        (_with("teacher.encoder.model.0.weight", torch.zeros(8, 5, 3)), "2 keys end in encoder.model.0.weight"),
        (_with("encoder.model.2.1.model.0.norm1.running_mean", torch.zeros(8)), "BatchNorm, which these nets do not"),
        (_with("quantizer.layers.0.embedding_proj.bias", torch.zeros(4)), r"embedding_proj.bias \[4\] is not a weight"),
    ],
)
def test_what_is_missing_or_odd_is_named_in_one_line(damage, message, tmp_path):
    weights = random_weights(**SMALL)
    damage(weights)
    file = tmp_path / "latest.tar"
    torch.save({"vq_model": weights}, file)
    with pytest.raises(UserError, match=message) as raised:
        import_foreign(file, "momask")
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    good = save_as_trainer(tmp_path / "good.pth", "gesturelsm", random_weights(**SMALL)).read_bytes()
    random = np.random.default_rng(0)
    files = {f"cut {length}": good[:length] for length in (0, 1, 100, len(good) // 2, len(good) - 1)}
    files |= {f"noise {index}": random.bytes(200) for index in range(20)}
    files |= {"text": b"not a checkpoint\n", "npz": b"PK\x03\x04" + random.bytes(50)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not a file that torch saved, or damaged") as raised:
            import_foreign(tmp_path / name, "gesturelsm")
        assert "\n" not in str(raised.value) and name in str(raised.value)
    with pytest.raises(UserError, match="nothing: cannot be read: no such file or directory"):
        import_foreign(tmp_path / "nothing", "gesturelsm")
    with pytest.raises(UserError, match=r"good.pth: its shapes do not say all"):
        import_foreign(tmp_path, "gesturelsm")
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(UserError, match="holds a list, not a checkpoint of GestureLSM"):
        import_foreign(tmp_path / "list", "gesturelsm")


def test_other_objects_are_never_unpickled(tmp_path):
    weights = random_weights(**SMALL)
    torch.save({"net": weights, "args": argparse.Namespace(lr=1)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"net.pth: holds Python objects besides tensors.*torch.save\({\"net\""):
        import_foreign(tmp_path / "net.pth", "gesturelsm")
