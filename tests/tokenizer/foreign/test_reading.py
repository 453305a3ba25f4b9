"""Checkpoints of MoMask, GestureLSM and T2M-GPT read: the same codes and motion, and what is refused.

Held against `checkpoints`, which computes what they compute.
"""

import argparse

import numpy as np
import pytest
import torch

from ds_rvqvae import MotionTokenizer
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import select_columns, smplx_layout
from ds_rvqvae.tokenizer.foreign.reading import import_foreign
from ds_rvqvae.tokenizer.foreign.writing import save_foreign
from tests.tokenizer.foreign.checkpoints import (
    LOCATION,
    SMALL,
    random_weights,
    reference,
    save_as_trainer,
)

VARIANTS = {
    "plain": {},
    "one level": {"levels": 1},
    "shared codebook": {"shared": True},
    "layer norm": {"norm": "LN"},
    "group norm": {"norm": "GN", "width": 32},
    "deep": {"depth": 3},
    "down_t 0": {"down_t": 0},
    "down_t 1": {"down_t": 1, "depth": 1},
    "down_t 3": {"down_t": 3},
}


def _cases():
    for name, settings in VARIANTS.items():
        yield pytest.param("momask", settings, id=f"momask, {name}")
        yield pytest.param("gesturelsm", settings, id=f"gesturelsm, {name}")
        yield pytest.param("gesturelsm", {**settings, "projected": True}, id=f"gesturelsm, {name}, embedding_proj")
        yield pytest.param("t2mgpt", {**settings, "levels": 1, "shared": False}, id=f"t2mgpt, {name}")


@pytest.mark.parametrize(("format", "settings"), _cases())
def test_codes_and_motion_are_theirs_and_survive_a_round_trip(format, settings, tmp_path):
    settings = SMALL | settings
    weights = random_weights(**settings)
    norm = settings.get("norm")
    file = save_as_trainer(tmp_path / "checkpoint", format, weights)
    tokenizer = import_foreign(file, format, norm=norm)
    motion = torch.randn(96, settings["features"])
    codes, reconstruction = reference(weights, motion, settings["down_t"], norm)
    assert len(codes.unique()) > 4
    assert torch.equal(tokenizer.encode(motion), codes)
    torch.testing.assert_close(tokenizer.decode(codes), reconstruction, atol=1e-5, rtol=0)
    config = tokenizer.model.config
    assert config.shared_codebook == (settings.get("shared", False) and settings["levels"] > 1)
    assert (config.depth, config.down_t) == (settings["depth"] if settings["down_t"] else 3, settings["down_t"])

    save_foreign(tokenizer, format, tmp_path / "out")
    again = import_foreign(tmp_path / "out" / LOCATION[format], format, norm=norm)
    assert again.model.config == config and again.fingerprint == tokenizer.fingerprint
    for name, value in tokenizer.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_an_even_stride_is_read_but_not_written(tmp_path):
    settings = SMALL | {"stride": 4, "down_t": 1}
    weights = random_weights(**settings)
    tokenizer = import_foreign(save_as_trainer(tmp_path / "net.pth", "gesturelsm", weights), "gesturelsm")
    motion = torch.randn(64, 5)
    codes, reconstruction = reference(weights, motion, 1)
    assert tokenizer.code_stride == 4 and torch.equal(tokenizer.encode(motion), codes)
    torch.testing.assert_close(tokenizer.decode(codes), reconstruction, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="stride_t 4: GestureLSM's decoder up-samples by 2 only"):
        save_foreign(tokenizer, "gesturelsm", tmp_path / "out")
    save_as_trainer(tmp_path / "odd.pth", "gesturelsm", random_weights(**settings | {"stride": 3}))
    with pytest.raises(UserError, match=r"odd.pth: encoder.model.2.0.weight has kernel 6, for a stride of 3; only"):
        import_foreign(tmp_path / "odd.pth", "gesturelsm")


def test_normalisation_and_layout(tmp_path):
    columns, layout = select_columns(smplx_layout(), "lower_trans")
    file = save_as_trainer(tmp_path / "net.pth", "gesturelsm", random_weights(**SMALL | {"features": 57}))
    poses, translation = np.random.default_rng(0).uniform(0.5, 2, (2, 333)), tmp_path / "translation.npy"
    np.save(tmp_path / "poses.npy", poses[0, :330])
    np.save(translation, poses[0, 330:])
    np.save(tmp_path / "std.npy", poses[1][columns])
    names = {"mean": [tmp_path / "poses.npy", translation], "std": tmp_path / "std.npy"}
    tokenizer = import_foreign(file, "gesturelsm", body_part="lower_trans", **names)
    assert tokenizer.layout == layout and tokenizer.fps == 30.0
    np.testing.assert_array_equal(tokenizer.mean.numpy(), poses[0][columns].astype(np.float32))
    np.testing.assert_array_equal(tokenizer.std.numpy(), poses[1][columns].astype(np.float32))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = MotionTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.details["body_part"] == "lower_trans"
    assert loaded.details["imported_from"] == {"format": "gesturelsm", "file": "net.pth", "embedding_proj": False}
    motion = torch.randn(32, 57)
    plain = import_foreign(file, "gesturelsm")
    assert plain.layout[0].name == "features" and plain.details["body_part"] is None
    assert torch.equal(loaded.encode(motion), plain.encode((motion - loaded.mean) / loaded.std))

    np.save(tmp_path / "zero.npy", np.eye(57)[0])
    for wrong, message in (
        ({"mean": tmp_path / "std.npy"}, "--mean, --std: give both or neither"),
        ({**names, "mean": translation}, r"--mean .*translation.npy: 3 numbers, where the checkpoint takes 57 columns"),
        ({**names, "std": tmp_path / "zero.npy"}, "--std: column 1 of 57 is 0"),
        ({"body_part": "upper"}, r"--body_part upper: has 78 columns, .*net.pth takes 57"),
        ({"body_part": "uper"}, "--body_part uper: known are upper, hands"),
    ):
        with pytest.raises(UserError, match=message):
            import_foreign(file, "gesturelsm", **{"body_part": "lower_trans", **wrong})


def test_fine_tuning_starts_gently(tmp_path):
    """The averages that an import sets: no code dies at once, and one update moves codes by about a hundredth."""
    settings = SMALL | {"nb_code": 64}
    tokenizer = import_foreign(save_as_trainer(tmp_path / "a", "momask", random_weights(**settings)), "momask")
    quantizer = tokenizer.model.quantizer.train()
    assert bool(quantizer.initialized)
    torch.testing.assert_close(quantizer.ema_sum, quantizer.codebooks * quantizer.ema_count.unsqueeze(-1))
    before = quantizer.codebooks.clone()
    quantizer.quantize_dropout_prob = 0.0
    quantizer.set_step(0, 1)
    # Each code once in a level, a little beside itself: an even batch of MoMask's size.
    rows = (before[0] + 0.1).repeat(4096 // 64, 1)
    quantizer(rows[None])
    quantizer.update_codebooks()
    moved = (quantizer.codebooks[0] - before[0]).abs().max(dim=1).values
    assert 0 < moved.median() < 0.01 and moved.max() < 0.2
    assert quantizer.updates > 100_000


@pytest.mark.parametrize("prefix", ["", "module.", "vqvae.", "module.vqvae."])
def test_prefixes_and_bare_state_dicts_are_understood(prefix, tmp_path):
    weights = {
        prefix + key.replace("quantizer.layers.0.", "quantizer."): value
        for key, value in random_weights(**SMALL | {"levels": 1}).items()
    }
    torch.save(weights, tmp_path / "bare.pth")
    torch.save({"net": weights}, tmp_path / "net.pth")
    bare, net = (import_foreign(tmp_path / name, "t2mgpt") for name in ("bare.pth", "net.pth"))
    assert bare.fingerprint == net.fingerprint and bare.fps == 20.0


def _without(key):
    return lambda weights: weights.pop(key)


def _with(key, value):
    return lambda weights: weights.update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("encoder.model.0.weight"), "encoder.model.0.weight is missing; not what MoMask saves"),
        (_without("decoder.model.3.2.bias"), r"decoder.model.3.2.bias \[8\] is missing"),
        (_without("quantizer.layers.1.codebook"), r"quantizer.layers.1.codebook \[16, 4\] is missing"),
        (_without("quantizer.layers.0.codebook"), "quantizer.layers.0.codebook is missing; not what MoMask saves"),
        (_with("quantizer.layers.1.codebook", torch.zeros(3, 4)), r"layers.1.codebook is \[3, 4\], where the other"),
        (_with("decoder.model.0.weight", torch.zeros(8, 5, 3)), r"is \[8, 5, 3\], where the other weights need \[8, 4"),
        (_with("encoder.model.0.weight", torch.zeros(8, 5)), r"\[8, 5\] does not have 3 dimensions"),
        (_with("text_encoder.weight", torch.zeros(2, 2)), r"text_encoder.weight \[2, 2\] is nothing that a MoMask"),
        (_with("encoder.model.2.0.weight", torch.zeros(8, 8, 2)), "kernel 2, for a stride of 1; only an even stride"),
        (_with("decoder.model.0.bias", torch.full((8,), float("nan"))), r"decoder.model.0.bias \[8\] holds NaN"),
        (_with("decoder.model.0.bias", torch.zeros(8, dtype=torch.int64)), "is torch.int64, not floating-point"),
        (_with("decoder.model.0.bias", 3.0), "decoder.model.0.bias is a float, not a dense tensor"),
        (_with("decoder.model.0.bias", torch.zeros(8).to_sparse()), "decoder.model.0.bias is a Tensor, not a dense"),
        (_with("decoder.model.0.bias", torch.zeros(8, device="meta")), "decoder.model.0.bias is a Tensor, not a dense"),
        (_with("teacher.encoder.model.0.weight", torch.zeros(8, 5, 3)), "2 keys end in encoder.model.0.weight"),
        (_with("encoder.model.2.1.model.0.norm1.running_mean", torch.zeros(8)), "batch norm, which these nets do not"),
        (_with("encoder.model.2.1.model.0.norm1.weight", torch.ones(8)), "say which: --norm LN or --norm GN"),
        (_with("quantizer.layers.0.embedding_proj.bias", torch.zeros(4)), r"embedding_proj.bias \[4\] is nothing that"),
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


def test_settings_that_do_not_fit_are_refused(tmp_path):
    file = save_as_trainer(tmp_path / "a.tar", "momask", random_weights(**SMALL))
    normed = save_as_trainer(tmp_path / "b.tar", "momask", random_weights(**SMALL | {"norm": "LN"}))
    for path, settings, message in (
        (file, {"norm": "LN"}, r"--norm LN: .*a.tar has no encoder.model.2.1.model.0.norm1.weight"),
        (normed, {"norm": "GN"}, "--norm GN: has 32 groups"),
        (file, {"activation": "silu"}, "--activation silu: MoMask has ReLU outside its residual blocks"),
        (file, {"dilation_growth_rate": 0}, "dilation_growth_rate"),
    ):
        with pytest.raises(UserError, match=message):
            import_foreign(path, "momask", **settings)
    with pytest.raises(UserError, match="--format encodec: known are momask, gesturelsm, t2mgpt"):
        import_foreign(file, "encodec")
    with pytest.raises(UserError, match=r"no key net; it has vq_model, opt_vq_model"):
        import_foreign(file, "gesturelsm")


def test_damaged_files_are_refused_in_one_line(tmp_path):
    good = save_as_trainer(tmp_path / "good.pth", "gesturelsm", random_weights(**SMALL)).read_bytes()
    random = np.random.default_rng(0)
    files = {f"cut {length}": good[:length] for length in (0, 1, 100, len(good) // 2, len(good) - 1)}
    files |= {f"noise {index}": random.bytes(200) for index in range(20)}
    files |= {"text": b"not a checkpoint\n", "npz": b"PK\x03\x04" + random.bytes(50)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="no file of torch's, or damaged") as raised:
            import_foreign(tmp_path / name, "gesturelsm")
        assert "\n" not in str(raised.value) and name in str(raised.value)
    with pytest.raises(UserError, match="nothing: cannot be read: no such file or directory"):
        import_foreign(tmp_path / "nothing", "gesturelsm")
    with pytest.raises(UserError, match="no regular file"):
        import_foreign(tmp_path, "gesturelsm")
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(UserError, match="holds a list, not what GestureLSM saves"):
        import_foreign(tmp_path / "list", "gesturelsm")


def test_other_objects_are_never_unpickled(tmp_path):
    weights = random_weights(**SMALL)
    torch.save({"net": weights, "args": argparse.Namespace(lr=1)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"net.pth: holds Python objects besides tensors.*torch.save\({\"net\""):
        import_foreign(tmp_path / "net.pth", "gesturelsm")
