"""Tokenizers written for MoMask, GestureLSM and T2M-GPT: the files, and what cannot be written."""

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import feature_layout, smplx_layout
from ds_rvqvae.tokenizer.foreign import formats
from ds_rvqvae.tokenizer.foreign.formats import FORMATS
from ds_rvqvae.tokenizer.foreign.reading import import_foreign
from ds_rvqvae.tokenizer.foreign.writing import save_foreign
from tests.settings import models_with_another
from tests.tokenizer.foreign.checkpoints import (
    LOCATION,
    SAID,
    SMALL,
    as_t2mgpt,
    quantizing_books,
    random_weights,
    save_as_trainer,
)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("norm", [None, "LN"])
def test_exported_keys_and_shapes_are_exactly_the_documented_ones(format, norm, tmp_path):
    settings = SMALL | {"levels": 1 if format == "t2mgpt" else 3, "norm": norm}
    layout = smplx_layout()[:1]
    model = ModelConfig(
        width=8, depth=2, code_dim=4, nb_code=16, num_quantizers=settings["levels"], norm=norm, quantize_dropout_prob=0
    )
    tokenizer = MotionTokenizer(RVQVAE(6, model), torch.randn(6), torch.rand(6) + 0.5, layout, 30.0)
    written = save_foreign(tokenizer, format, tmp_path / "out")
    content = torch.load(tmp_path / "out" / LOCATION[format], weights_only=True)
    key = "vq_model" if format == "momask" else "net"
    assert set(content) == ({"vq_model", "ep", "total_it"} if format == "momask" else {"net"})
    expected = random_weights(**settings | {"features": 6, "projected": format == "gesturelsm"})
    if format == "t2mgpt":
        expected = as_t2mgpt(expected)
    assert {name: value.shape for name, value in content[key].items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(value.dtype == torch.float32 for value in content[key].values())
    statistics = {"momask": "meta/", "gesturelsm": "", "t2mgpt": "meta/"}[format]
    for name, value in (("mean", tokenizer.mean), ("std", tokenizer.std)):
        np.testing.assert_array_equal(np.load(tmp_path / "out" / f"{statistics}{name}.npy"), value.numpy())
    assert sorted(written) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_gesturelsm_without_its_later_layer(tmp_path):
    weights = random_weights(**SMALL)
    tokenizer = import_foreign(save_as_trainer(tmp_path / "net.pth", "gesturelsm", weights), "gesturelsm", **SAID)
    # As in its import: without the layer.
    save_foreign(tokenizer, "gesturelsm", tmp_path / "as it came")
    content = torch.load(tmp_path / "as it came" / "net.pth", weights_only=True)["net"]
    assert set(content) == set(weights) and all(torch.equal(content[key], weights[key]) for key in weights)
    save_foreign(tokenizer, "gesturelsm", tmp_path / "later", embedding_proj=True)
    later = torch.load(tmp_path / "later" / "net.pth", weights_only=True)["net"]
    assert torch.equal(later["quantizer.layers.2.embedding_proj.weight"], torch.eye(4))
    for ours, theirs in zip(quantizing_books(later), quantizing_books(weights), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("format", "settings", "message"),
    [
        ("t2mgpt", {"num_quantizers": 2}, "num_quantizers 2: T2M-GPT has one quantizer"),
        ("momask", {"stride_t": 4}, "stride_t 4: MoMask's decoder up-samples by 2 only"),
        ("gesturelsm", {"activation": "gelu"}, "activation gelu: GestureLSM has ReLU outside its residual blocks"),
        ("t2mgpt", {"outer_activation": "silu"}, "model.outer_activation silu: T2M-GPT has ReLU outside its residual"),
        ("momask", {"codebook_distance": "cosine"}, "codebook_distance cosine: MoMask uses the Euclidean distance"),
        ("encodec", {}, "--format encodec: known formats are"),
    ],
)
def test_what_cannot_be_expressed_is_not_written(format, settings, message, tmp_path):
    model = ModelConfig(**{"width": 8, "depth": 1, "code_dim": 4, "nb_code": 8, "num_quantizers": 1, **settings})
    tokenizer = MotionTokenizer(RVQVAE(6, model), torch.zeros(6), torch.ones(6), smplx_layout()[:1], 30.0)
    with pytest.raises(UserError, match=message):
        save_foreign(tokenizer, format, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["fsq_levels", "codebook_distance", "activation"])
def test_a_key_without_words_of_its_own_is_refused_all_the_same(key, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_REFUSALS", {})
    for config in models_with_another(key):
        tokenizer = MotionTokenizer(RVQVAE(6, config), torch.zeros(6), torch.ones(6), feature_layout(6), 30.0)
        with pytest.raises(UserError, match=rf"{key} .*: MoMask has no such setting"):
            save_foreign(tokenizer, "momask", tmp_path / "out")


def test_of_several_keys_the_first_is_refused(tmp_path):
    """In any order of the keys in a profile."""
    settings = {"activation": "silu", "stride_t": 4, "num_quantizers": 2, "codebook_distance": "cosine"}
    small = {"width": 8, "depth": 1, "down_t": 1, "code_dim": 4, "nb_code": 8}
    for key in ("codebook_distance", "num_quantizers", "stride_t", "activation"):
        model = RVQVAE(6, ModelConfig(**{**small, "num_quantizers": 1, **settings}))
        tokenizer = MotionTokenizer(model, torch.zeros(6), torch.ones(6), feature_layout(6), 30.0)
        with pytest.raises(UserError, match=rf"^rvqvae\.model\.{key} {settings.pop(key)}: T2M-GPT"):
            save_foreign(tokenizer, "t2mgpt", tmp_path / "out")


def test_a_folder_in_use_is_left_alone(tmp_path):
    tokenizer = import_foreign(save_as_trainer(tmp_path / "a", "momask", random_weights(**SMALL)), "momask", **SAID)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("")
    (tmp_path / "empty").mkdir()
    save_foreign(tokenizer, "momask", tmp_path / "empty")
    for name in ("used", "empty", "a"):
        with pytest.raises(UserError, match=f"{name}: exists; name a new folder"):
            save_foreign(tokenizer, "momask", tmp_path / name)
    with pytest.raises(UserError, match="cannot be written: file exists"):
        save_foreign(tokenizer, "momask", tmp_path / "a" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", "used"]


def test_momasks_options_file_says_what_its_scripts_build_the_model_from(tmp_path):
    settings = SMALL | {"features": 263, "shared": True}
    tokenizer = import_foreign(save_as_trainer(tmp_path / "a", "momask", random_weights(**settings)), "momask", **SAID)
    save_foreign(tokenizer, "momask", tmp_path / "rvq")
    lines = (tmp_path / "rvq" / "opt.txt").read_text().splitlines()
    options = dict(line.split(": ") for line in lines[1:-1])
    named = [options[key] for key in ("dataset_name", "name", "shared_codebook", "vq_act", "vq_norm", "mu")]
    assert named == ["t2m", "rvq", "True", "relu", "None", "0.99"]
    shape = ("width", "depth", "down_t", "stride_t", "code_dim", "output_emb_width", "nb_code", "num_quantizers")
    assert [int(options[key]) for key in shape] == [8, 2, 2, 2, 4, 4, 16, 3]
