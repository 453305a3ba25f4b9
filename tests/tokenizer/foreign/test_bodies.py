"""A body written for GestureLSM: its folder, the lines of its README, and what cannot be written."""

import re
import shlex
import subprocess

import numpy as np
import pytest
import torch
import yaml

from ds_rvqvae import RVQVAE, BodyTokenizer, MotionTokenizer, cli
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.names import BODY_PARTS, FOREIGN_FORMATS
from ds_rvqvae.config.request import read_training_flags
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import select_columns, smplx_layout
from ds_rvqvae.runs.start import request_of
from ds_rvqvae.tokenizer.foreign.bodies import CONFIG, save_foreign_body
from ds_rvqvae.tokenizer.foreign.formats import FORMATS, PART_KEYS, check_body_for
from ds_rvqvae.tokenizer.foreign.reading import import_foreign
from tests.tokenizer.foreign.checkpoints import random_weights, reference
from tests.tokenizer.test_body import make_part

PARTS = ("upper", "hands", "lower_trans", "face_jaw")
FILES = {part: f"ckpt/net_60_{part}.pth" for part in PARTS}


def part_of(name, **settings):
    torch.manual_seed(len(name))
    columns, layout = select_columns(smplx_layout(), name)
    model = ModelConfig(**{"width": 16, "depth": 2, "code_dim": 4, "nb_code": 8, "num_quantizers": 3, **settings})
    width, details = len(columns), {"body_part": name, "training_step": 60}
    return MotionTokenizer(RVQVAE(width, model), torch.randn(width), torch.rand(width) + 0.5, layout, 30.0, details)


@pytest.fixture(scope="module")
def body():
    return BodyTokenizer({name: part_of(name) for name in PARTS})


@pytest.fixture(scope="module")
def exported(body, tmp_path_factory):
    """The folder that one command writes for it."""
    folder = tmp_path_factory.mktemp("body")
    body.save_pretrained(folder / "tokenizer")
    out = folder / "out"
    assert cli.main(["export", str(folder / "tokenizer"), "--format", "gesturelsm", "--out", str(out)]) == 0
    return out


def test_a_body_is_one_folder_with_a_checkpoint_of_each_part(body, exported):
    statistics = [f"mean_std/beatx_2_{of}_{what}.npy" for of in ("330", "exps", "trans") for what in ("mean", "std")]
    files = sorted(str(file.relative_to(exported)) for file in exported.rglob("*") if file.is_file())
    assert files == sorted(["README.md", CONFIG, *FILES.values(), *statistics])
    config = yaml.safe_load((exported / CONFIG).read_text())
    assert config["vqvae_lower_path"] == config["vqvae_lower_trans_path"] == "./ckpt/net_60_lower_trans.pth"
    assert config["vqvae_face_path"] == "./ckpt/net_60_face_jaw.pth" and config["width"] == 16
    for name, part in body.parts.items():
        weights = torch.load(exported / config[PART_KEYS[name][0]], weights_only=True)["net"]
        size = {"features": part.model.in_features, "width": 16, "depth": 2, "down_t": 2, "stride": 2}
        expected = random_weights(**size, code_dim=4, nb_code=8, levels=3, projected=True)
        assert {key: value.shape for key, value in weights.items()} == {
            key: value.shape for key, value in expected.items()
        }


def test_their_arithmetic_on_the_files_that_the_config_names_gives_our_codes(body, exported):
    """Statistics are selected by joints from those of all 55, as their scripts do."""
    config = yaml.safe_load((exported / CONFIG).read_text())
    keys = ("mean_pose_path", "mean_trans_path", "mean_exps_path")
    mean = np.concatenate([np.load(exported / config[key]) for key in keys])
    std = np.concatenate([np.load(exported / config[key.replace("mean", "std")]) for key in keys])
    assert len(mean) == len(std) == 433
    eye = slice(6 * 23, 6 * 24)  # of no part
    assert not mean[eye].any() and (std[eye] == 1).all()
    motion = np.random.default_rng(0).normal(size=(64, 433)).astype(np.float32)
    for name, part in body.parts.items():
        columns = select_columns(smplx_layout(), name)[0]
        weights = torch.load(exported / config[PART_KEYS[name][0]], weights_only=True)["net"]
        normalised = torch.from_numpy((motion[:, columns] - mean[columns]) / std[columns])
        codes, decoded = reference(weights, normalised, 2)
        ours = part.encode(motion[:, columns])
        assert np.array_equal(codes.numpy(), ours)
        theirs = decoded.detach().numpy() * std[columns] + mean[columns]
        np.testing.assert_allclose(part.decode(ours), theirs, atol=1e-4)


def test_the_lines_of_its_readme_run(body, exported, monkeypatch):
    blocks = re.findall(r"```bash\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    copying, reading, importing = blocks
    (exported.parent / "GestureLSM").mkdir()
    monkeypatch.chdir(exported)
    subprocess.run(["bash", "-ec", copying], check=True)
    assert (exported.parent / "GestureLSM" / "ckpt" / "net_60_hands.pth").is_file()
    (python, _, code) = shlex.split(reading)
    assert python == "python"
    exec(code, {})
    for line in importing.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "ds-rvqvae" and cli.main(arguments) == 0
    for name, part in body.parts.items():
        again = MotionTokenizer.from_pretrained(exported / "tokenizers" / name)
        assert again.layout == part.layout and again.details["body_part"] == name and again.fps == 30
        assert torch.equal(again.mean, part.mean) and torch.equal(again.std, part.std)
        motion = torch.randn(64, part.model.in_features, generator=torch.Generator().manual_seed(0))
        assert torch.equal(again.encode(motion), part.encode(motion))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"upper": {}, "hands": {"activation": "silu"}},
            r"part hands: rvqvae\.model\.activation silu: GestureLSM .* --out",
        ),
        ({"upper": {}, "hands": {"width": 32}}, "parts upper and hands: width is 16 and 32, but GestureLSM builds"),
        ({"upper": {}, "hands": {"norm": "LN"}}, "parts upper and hands: vq_norm is None and LN"),
    ],
)
def test_a_body_that_cannot_be_expressed_is_not_written(parts, words, tmp_path):
    body = BodyTokenizer({name: part_of(name, **settings) for name, settings in parts.items()})
    with pytest.raises(UserError, match=words):
        save_foreign_body(body, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_only_training_sees_may_differ(tmp_path):
    body = BodyTokenizer({"upper": part_of("upper"), "lower": part_of("lower", mu=0.5)})
    save_foreign_body(body, tmp_path / "out", embedding_proj=False)
    config = yaml.safe_load((tmp_path / "out" / CONFIG).read_text())
    assert "mu" not in config and "vqvae_lower_trans_path" not in config and "mean_exps_path" not in config
    again = import_foreign(tmp_path / "out" / "ckpt" / "net_60_lower.pth", "gesturelsm")
    assert again.details["body_part"] == "lower" and not again.details["imported_from"]["embedding_proj"]


def test_parts_of_ones_own_are_refused(tmp_path):
    part = make_part("lower")
    part.details["body_part"] = "legs"
    with pytest.raises(UserError, match="part legs: GestureLSM has only parts of SMPL-X: upper, hands, "):
        save_foreign_body(BodyTokenizer({"legs": part}), tmp_path / "out")
    flags = ["--for=gesturelsm", "--body_part=legs", '--body_parts={"legs": ["left_knee"]}']
    profile = read_training_flags(flags).request().profile
    with pytest.raises(UserError, match=r"^--for gesturelsm: part legs: GestureLSM has only parts"):
        check_body_for(profile, ["legs"])
    check_body_for(profile, ["upper", "face_jaw"])


def test_a_run_for_another_system_is_refused_where_that_cannot_load_it():
    for line, words in (
        (
            ["--profile=best", "--for=gesturelsm"],
            r"rvqvae\.model\.activation silu: .*train with --outer_activation relu",
        ),
        (["--for=t2mgpt"], r"rvqvae\.model\.num_quantizers 6: .*train with --num_quantizers 1, "),
        (["--for=momask", "--stride_t=4"], r"rvqvae\.model\.stride_t 4: .*train with --stride_t 2"),
    ):
        with pytest.raises(UserError, match=f"^--for (gesturelsm|t2mgpt|momask): {words}"):
            request_of(read_training_flags(line))
    for line in (
        ["--for=gesturelsm"],
        ["--for=momask"],
        ["--for=gesturelsm", "--profile=best", "--outer_activation=relu"],
    ):
        assert request_of(read_training_flags(line)).profile.rvqvae.training.export_for == line[0].removeprefix(
            "--for="
        )


def test_the_names_are_the_same_everywhere():
    assert tuple(FORMATS) == FOREIGN_FORMATS and tuple(PART_KEYS) == BODY_PARTS
