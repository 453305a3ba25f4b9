"""Checkpoints of MoMask, GestureLSM and T2M-GPT read: the same codes and motion, and what is refused.

Compared with `checkpoints`, which does the same arithmetic.
"""

import itertools

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
    SAID,
    SMALL,
    model_as_published,
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
    tokenizer = import_foreign(file, format, norm=norm, **SAID)
    motion = torch.randn(96, settings["features"])
    codes, reconstruction = reference(weights, motion, settings["down_t"], norm)
    assert len(codes.unique()) > 4
    assert torch.equal(tokenizer.encode(motion), codes)
    torch.testing.assert_close(tokenizer.decode(codes), reconstruction, atol=1e-5, rtol=0)
    config = tokenizer.model.config
    assert config.shared_codebook == (settings.get("shared", False) and settings["levels"] > 1)
    assert (config.depth, config.down_t) == (settings["depth"] if settings["down_t"] else 3, settings["down_t"])

    save_foreign(tokenizer, format, tmp_path / "out")
    # Its own option file says everything.
    again = import_foreign(tmp_path / "out" / LOCATION[format], format)
    assert again.fps == tokenizer.fps == 20.0
    assert again.model.config == config and again.fingerprint == tokenizer.fingerprint
    for name, value in tokenizer.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_an_even_stride_is_read_but_not_written(tmp_path):
    settings = SMALL | {"stride": 4, "down_t": 1}
    weights = random_weights(**settings)
    tokenizer = import_foreign(save_as_trainer(tmp_path / "net.pth", "gesturelsm", weights), "gesturelsm", **SAID)
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
    said = {"activation": "relu", "dilation_growth_rate": 3, "fps": 30.0}
    tokenizer = import_foreign(file, "gesturelsm", body_part="lower_trans", **said, **names)
    assert tokenizer.layout == layout and tokenizer.fps == 30.0
    np.testing.assert_array_equal(tokenizer.mean.numpy(), poses[0][columns].astype(np.float32))
    np.testing.assert_array_equal(tokenizer.std.numpy(), poses[1][columns].astype(np.float32))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = MotionTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.details["body_part"] == "lower_trans"
    origin = loaded.details["imported_from"]
    settings = origin.pop("settings")
    assert origin == {"format": "gesturelsm", "file": "net.pth", "embedding_proj": False}
    assert settings["mean"] == {"value": f"{names['mean'][0]} {translation}", "from": "--mean"}
    assert settings["width"] == {"value": 8, "from": "shapes"}
    motion = torch.randn(32, 57)
    plain = import_foreign(file, "gesturelsm", no_normalisation=True, **said)
    assert plain.layout[0].name == "features" and plain.details["body_part"] is None
    assert torch.equal(loaded.encode(motion), plain.encode((motion - loaded.mean) / loaded.std))

    np.save(tmp_path / "zero.npy", np.eye(57)[0])
    for wrong, message in (
        ({"mean": tmp_path / "std.npy"}, "--mean, --std: give both, or neither of them"),
        ({**names, "mean": translation}, r"--mean .*translation.npy: has 3 numbers, but the checkpoint takes 57"),
        ({**names, "std": tmp_path / "zero.npy"}, "--std: column 1 of 57 is 0"),
        ({"body_part": "upper"}, r"--body_part upper: has 78 columns, .*net.pth takes 57"),
        ({"body_part": "uper"}, "--body_part uper: known parts are upper, hands"),
    ):
        with pytest.raises(UserError, match=message):
            import_foreign(file, "gesturelsm", **{"body_part": "lower_trans", **said, **wrong})
    with pytest.raises(UserError, match="--no_normalisation: motion is not normalised; leave --mean and --std out"):
        import_foreign(file, "gesturelsm", no_normalisation=True, **said, **names)


def test_fine_tuning_starts_gently(tmp_path):
    """The averages that an import sets: no code dies at once, and one update moves codes by about a hundredth."""
    settings = SMALL | {"nb_code": 64}
    file = save_as_trainer(tmp_path / "a", "momask", random_weights(**settings))
    tokenizer = import_foreign(file, "momask", **SAID)
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


def test_settings_that_do_not_fit_are_refused(tmp_path):
    file = save_as_trainer(tmp_path / "a.tar", "momask", random_weights(**SMALL))
    normed = save_as_trainer(tmp_path / "b.tar", "momask", random_weights(**SMALL | {"norm": "LN"}))
    for path, settings, message in (
        (file, {"norm": "LN"}, r"--norm LN: .*a.tar has no weights of norms; leave --norm out"),
        (normed, {"norm": "none"}, r"--norm none: .*b.tar has weights of norms; give LN or GN"),
        (normed, {"norm": "GN"}, "--norm GN: has 32 groups"),
        (normed, {"norm": "BN"}, "--norm BN: known norms are none, LN, GN"),
        (normed, {"activation": "tanh"}, "activation"),
        (file, {"dilation_growth_rate": 0}, "dilation_growth_rate"),
    ):
        with pytest.raises(UserError, match=message):
            import_foreign(path, "momask", **SAID | settings)
    with pytest.raises(UserError, match="--format encodec: known formats are momask, gesturelsm, t2mgpt"):
        import_foreign(file, "encodec")
    with pytest.raises(UserError, match=r"no key net; it has vq_model, opt_vq_model"):
        import_foreign(file, "gesturelsm")


_FLAGS = ("activation", "norm", "dilation_growth_rate", "fps", "mean", "std", "no_normalisation", "body_part")


def flags_in(message):
    """The flags that an error asks for."""
    asked = message.partition("; give ")[2]
    return {flag for flag in _FLAGS if f"--{flag}" in asked}


@pytest.mark.parametrize("format", LOCATION)
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize(("norm", "growth"), itertools.product([None, "LN", "GN"], [2, 3]))
def test_what_weights_do_not_tell_is_read_or_asked_for(format, activation, norm, growth, tmp_path):
    """With and without the option file the codes are the same, and equal those of their nets."""
    features = 78 if format == "gesturelsm" else 263
    settings = SMALL | {"width": 32, "depth": 3, "features": features, "levels": 1 if format == "t2mgpt" else 3}
    weights = random_weights(**settings, norm=norm, projected=format == "gesturelsm")
    mean, std = np.random.default_rng(0).uniform(0.5, 2, (2, 330 if format == "gesturelsm" else 263)).astype(np.float32)
    own = slice(None)
    options = {"vq_act": activation, "vq_norm": norm, "dilation_growth_rate": growth, "width": 32, "depth": 3}
    options |= {"momask": {"dataset_name": "t2m"}, "t2mgpt": {"dataname": "t2m"}, "gesturelsm": {"pose_fps": 30}}[
        format
    ]
    file = model_as_published(tmp_path, format, weights, options, mean, std)
    if format == "gesturelsm":
        own = select_columns(smplx_layout(), "upper")[0]
    motion = torch.randn(96, features) * std[own] + mean[own]
    codes, reconstruction = reference(weights, (motion - mean[own]) / std[own], 2, norm, activation, growth)

    tokenizer = import_foreign(file, format)
    assert torch.equal(tokenizer.encode(motion), codes) and len(codes.unique()) > 4
    torch.testing.assert_close(tokenizer.decode(codes), reconstruction * std[own] + mean[own], atol=1e-4, rtol=1e-4)
    assert tokenizer.fps == (30.0 if format == "gesturelsm" else 20.0)
    assert tokenizer.details["body_part"] == ("upper" if format == "gesturelsm" else None)

    save_foreign(tokenizer, format, tmp_path / "out")
    again = import_foreign(tmp_path / "out", format)
    assert again.fingerprint == tokenizer.fingerprint and again.model.config == tokenizer.model.config

    (tmp_path / "bare").mkdir()
    bare = save_as_trainer(tmp_path / "bare" / "net.pth", format, weights)
    flags = {"activation": activation, "dilation_growth_rate": growth, "fps": 20.0} | ({"norm": norm} if norm else {})
    with pytest.raises(UserError) as refusal:
        import_foreign(bare, format)
    assert flags_in(str(refusal.value)) == {*flags, "mean", "std", "no_normalisation"}
    np.save(tmp_path / "mean.npy", mean[own])
    np.save(tmp_path / "std.npy", std[own])
    files = {"mean": tmp_path / "mean.npy", "std": tmp_path / "std.npy"}
    for key in flags:
        with pytest.raises(UserError) as refusal:
            import_foreign(bare, format, **files, **{other: flags[other] for other in flags if other != key})
        assert flags_in(str(refusal.value)) == {key}
    told = import_foreign(bare, format, **files, **flags)
    assert torch.equal(told.encode(motion), codes)
    assert told.model.config == tokenizer.model.config


def test_what_the_shapes_settle_is_not_asked(tmp_path):
    statistics = {"no_normalisation": True, "fps": 20.0}
    for settings, flags in (
        ({"down_t": 0}, {}),
        ({"depth": 1}, {"activation": "gelu"}),
        ({"norm": "LN"}, {"activation": "gelu", "dilation_growth_rate": 2}),
    ):
        file = save_as_trainer(tmp_path / "net.pth", "gesturelsm", random_weights(**SMALL | settings))
        config = import_foreign(file, "gesturelsm", **statistics, **flags).model.config
        assert config.norm == settings.get("norm")
        for key in flags:
            with pytest.raises(UserError) as refusal:
                import_foreign(file, "gesturelsm", **statistics, **{k: flags[k] for k in flags if k != key})
            assert flags_in(str(refusal.value)) == {key}


def test_statistics_are_used_as_they_are_or_refused(tmp_path):
    """MoMask's std of the root and the feet is at most a fifth of the real std."""
    file = _published(tmp_path)
    meta = file.parent.parent / "meta"
    std = np.full(263, 0.5, np.float32)
    std[:4] = 1e-5
    np.save(meta / "std.npy", std)
    np.testing.assert_array_equal(import_foreign(file, "momask").std.numpy(), std)
    for wrong, message in (
        (
            std * (np.arange(263) != 3),
            r"meta/std\.npy: column 3 of 263 is 0, and division by 0 fails; put a 1 there",
        ),
        (std[:251], r"meta/std\.npy: has 251 numbers, but the checkpoint takes 263 columns; give --mean FILE"),
        (-std, r"meta/std\.npy: holds negative"),
    ):
        np.save(meta / "std.npy", wrong)
        with pytest.raises(UserError, match=message):
            import_foreign(file, "momask")
        assert import_foreign(file, "momask", no_normalisation=True).std.unique().tolist() == [1.0]


def test_columns_of_a_body_part_are_asked_for_where_statistics_have_more(tmp_path):
    statistics = np.ones((2, 330), np.float32)
    options = {"vq_act": "relu", "dilation_growth_rate": 3, "pose_fps": 30}
    weights = random_weights(**SMALL | {"features": 78})
    file = model_as_published(tmp_path, "gesturelsm", weights, options, *statistics)
    yaml = tmp_path / "configs" / "shortcut.yaml"
    yaml.write_text(yaml.read_text().replace("vqvae_upper_path", "vqvae_any_path"))
    with pytest.raises(UserError) as refusal:
        import_foreign(file, "gesturelsm", options=yaml)
    assert flags_in(str(refusal.value)) == {"body_part"}
    assert import_foreign(file, "gesturelsm", options=yaml, body_part="upper").details["body_part"] == "upper"
    yaml.write_text(yaml.read_text().replace("vqvae_any_path", "vqvae_hands_path"))
    with pytest.raises(UserError, match=r"says vqvae_hands_path: .*, but net_300000_upper.pth takes 78 columns, this"):
        import_foreign(file, "gesturelsm")


def _published(tmp_path, **others):
    options = {"vq_act": "silu", "vq_norm": None, "dilation_growth_rate": 2, "dataset_name": "t2m", **SHAPES, **others}
    options = {key: value for key, value in options.items() if value is not KeyError}
    mean, std = np.zeros(263, np.float32), np.ones(263, np.float32)
    return model_as_published(tmp_path, "momask", random_weights(**SMALL | {"features": 263}), options, mean, std)


SHAPES = {"width": 8, "depth": 2, "down_t": 2, "stride_t": 2, "code_dim": 4, "nb_code": 16, "num_quantizers": 3}


def test_only_what_the_option_file_leaves_open_is_asked(tmp_path):
    for number, (others, statistics, asked) in enumerate(
        (
            ({"vq_act": KeyError}, True, {"activation"}),
            ({"dilation_growth_rate": KeyError, "dataset_name": "mine"}, True, {"dilation_growth_rate", "fps"}),
            ({}, False, {"mean", "std", "no_normalisation"}),
        )
    ):
        (tmp_path / str(number)).mkdir()
        file = _published(tmp_path / str(number), **others)
        if not statistics:
            (file.parent.parent / "meta" / "std.npy").unlink()
        with pytest.raises(UserError, match=r"its shapes and .*opt\.txt do not say all") as refusal:
            import_foreign(file, "momask")
        assert flags_in(str(refusal.value)) == asked


@pytest.mark.parametrize("key", SHAPES)
def test_an_option_file_of_another_model_is_refused(key, tmp_path):
    file = _published(tmp_path, **{key: 7})
    with pytest.raises(
        UserError, match=rf"opt\.txt says {key}: 7, but the shapes in net_best_fid\.tar say {SHAPES[key]}"
    ):
        import_foreign(file, "momask")


def test_other_disagreements_are_refused(tmp_path):
    for number, (others, message) in enumerate(
        (
            ({"vq_norm": "LN"}, "says vq_norm: LN, but the shapes in net_best_fid.tar are those of norm none"),
            ({"vq_norm": "BN"}, "vq_norm: BN: is batch norm .BatchNorm., which these nets do not have"),
            ({"dataset_name": "kit"}, "says dataset_name: kit, which has 251 columns, but net_best_fid.tar takes 263"),
            ({"shared_codebook": True}, "says shared_codebook: True, but the codebooks of net_best_fid.tar differ"),
            ({"vq_act": "tanh"}, "vq_act: tanh: is not one of relu, silu, gelu; give --activation"),
            ({"depth": "three"}, "depth: three: is not a number"),
        )
    ):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(UserError, match=message):
            import_foreign(_published(tmp_path / str(number), **others), "momask")


def test_flags_go_before_the_option_file_and_say_so(tmp_path):
    tokenizer = import_foreign(_published(tmp_path), "momask", activation="gelu", fps=30)
    settings = tokenizer.details["imported_from"]["settings"]
    assert tokenizer.fps == 30 and tokenizer.model.config.activation == "gelu"
    assert settings["activation"] == {"value": "gelu", "from": "--activation, against opt.txt (vq_act: silu)"}
    assert settings["fps"] == {"value": 30, "from": "--fps, against opt.txt (dataset_name: t2m)"}
    assert settings["dilation_growth_rate"] == {"value": 2, "from": "opt.txt (dilation_growth_rate: 2)"}
    assert settings["outer_activation"] == {"value": "relu", "from": "MoMask's nets, always"}


def test_levels_with_codebooks_of_their_own_keep_them(tmp_path):
    """Equal codebooks are shared, unless the option file says otherwise."""
    weights = random_weights(**SMALL | {"shared": True})
    for said, shared in ((None, True), ("True", True), ("False", False)):
        file = save_as_trainer(tmp_path / "net.tar", "momask", weights)
        if said is not None:
            (tmp_path / "opt.txt").write_text(f"shared_codebook: {said}\n")
        assert import_foreign(file, "momask", **SAID).model.config.shared_codebook == shared
