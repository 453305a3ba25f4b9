"""`ds-rvqvae import`."""

import json

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer, cli
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.motion.layout import select_columns, smplx_layout
from ds_rvqvae.tokenizer.foreign.writing import save_foreign
from tests.tokenizer.foreign.checkpoints import SMALL, random_weights, save_as_trainer


@pytest.fixture
def folder(tmp_path):
    """GestureLSM's files of a small tokenizer of the upper body."""
    torch.manual_seed(0)
    config = ModelConfig(width=8, depth=1, code_dim=4, nb_code=8, num_quantizers=2)
    layout = select_columns(smplx_layout(), "upper")[1]
    tokenizer = MotionTokenizer(RVQVAE(78, config), torch.randn(78), torch.rand(78) + 0.5, layout, 30.0)
    tokenizer.save_pretrained(tmp_path / "original")
    save_foreign(tokenizer, "gesturelsm", tmp_path / "theirs")
    return tmp_path


def _import(folder, *flags, out="imported"):
    arguments = [str(folder / "theirs" / "net.pth"), "--format", "gesturelsm", "--out", str(folder / out), *flags]
    return cli.main(["import", *arguments])


def test_export_and_import_give_the_same_codes(folder, capsys):
    statistics = [f"--{name}={folder / 'theirs' / name}.npy" for name in ("mean", "std")]
    assert _import(folder, "--body_part", "upper", "--json", *statistics) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["in_features"] == 78 and result["fps"] == 30.0 and result["normalised"]
    original, imported = (MotionTokenizer.from_pretrained(folder / name) for name in ("original", "imported"))
    assert imported.fingerprint == result["fingerprint"] and imported.layout == original.layout
    motion = np.random.default_rng(0).normal(size=(50, 78)).astype(np.float32)
    codes = original.encode(motion)
    np.testing.assert_array_equal(imported.encode(motion), codes)
    np.testing.assert_array_equal(imported.decode(codes), original.decode(codes))


@pytest.mark.parametrize(("flags", "layers"), [([], 2), (["--embedding_proj=on"], 2), (["--embedding_proj=off"], 0)])
def test_gesturelsms_later_layer_is_exported_or_not(folder, flags, layers):
    line = ["export", str(folder / "original"), "--format=gesturelsm", f"--out={folder / 'out'}", *flags]
    assert cli.main(line) == 0
    weights = torch.load(folder / "out" / "net.pth", weights_only=True)["net"]
    assert sum(name.endswith("embedding_proj.weight") for name in weights) == layers


def test_text_says_what_was_found_and_where(folder, capsys):
    assert _import(folder, "--fps", "25", "--no_normalisation") == 0
    printed = capsys.readouterr().out
    assert "GestureLSM tokenizer, 78 columns at 25 fps, 2 x 8 codes of 4" in printed
    assert "no mean and std: it takes motion that is already normalised" in printed
    tokenizer = MotionTokenizer.from_pretrained(folder / "imported")
    assert tokenizer.fps == 25.0
    lines = [line.split() for line in printed.partition("sources of the settings:\n")[2].splitlines()]
    assert ["width", "8", "from", "shapes"] in lines
    assert ["activation", "relu", "from", "net.yaml", "(vq_act:", "relu)"] in lines
    assert ["fps", "25.0", "from", "--fps,", "against", "net.yaml", "(pose_fps:", "30.0)"] in lines
    assert [line[0] for line in lines] == list(tokenizer.details["imported_from"]["settings"])


def test_the_folder_of_a_model_is_enough(folder, capsys):
    arguments = [str(folder / "theirs"), "--format", "gesturelsm", "--out", str(folder / "imported"), "--json"]
    assert cli.main(["import", *arguments]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["body_part"] == {"value": "upper", "from": "net.yaml (body_part: upper)"}
    original, imported = (MotionTokenizer.from_pretrained(folder / name) for name in ("original", "imported"))
    motion = np.random.default_rng(0).normal(size=(50, 78)).astype(np.float32)
    np.testing.assert_array_equal(imported.encode(motion), original.encode(motion))
    assert imported.layout == original.layout and imported.fps == original.fps


def test_a_refusal_names_all_flags_at_once_and_writes_nothing(folder, capsys):
    (folder / "theirs" / "net.yaml").unlink()
    before = sorted(folder.rglob("*"))
    assert _import(folder) == 2
    error = capsys.readouterr().err
    assert error.endswith(
        "no option file (GestureLSM has run.log, *.yaml, *.yml) beside it; give --activation relu|silu|gelu, "
        "--fps N, and --mean FILE --std FILE or --no_normalisation\n"
    )
    assert error.count("\n") == 1 and sorted(folder.rglob("*")) == before


def test_refusals_are_one_line_and_leave_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    for flags, out, message in (
        ((), "theirs", "theirs: exists; name a new folder"),
        ((), "theirs/net.pth/out", "cannot be written: "),
        (("--mean", str(folder / "no.npy")), "out", "--mean, --std: give both, or neither of them"),
        (("--mean", "no.npy", "--std", "no.npy"), "out", "no.npy: cannot be read: No such file or directory"),
        (("--body_part", "hands"), "out", "--body_part hands: has 180 columns"),
    ):
        assert _import(folder, *flags, out=out) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    for flags in (("--fps", "nan"), ("--fps", "0"), ("--norms", "LN"), ("--body_part", "uper")):
        with pytest.raises(SystemExit) as stopped:
            _import(folder, *flags, out="out")
        assert stopped.value.code == 2
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("columns", "fps", "kept"), [(263, 30, 30.0), (263, 20, None), (30, 25, None)])
def test_files_have_the_rate_that_was_said_where_their_columns_are_known_with_another(
    columns, fps, kept, tmp_path, capsys
):
    settings = SMALL | {"features": columns}
    file = save_as_trainer(tmp_path / "net.tar", "momask", random_weights(**settings))
    said = ["--no_normalisation", "--activation=relu", "--dilation_growth_rate=3", f"--fps={fps}"]
    assert cli.main(["import", str(file), "--format=momask", f"--out={tmp_path / 'imported'}", *said]) == 0
    printed = capsys.readouterr().out
    assert ("--fps; files of 263 columns have 20, but are read as 30" in printed) == (kept is not None)
    imported = MotionTokenizer.from_pretrained(tmp_path / "imported")
    assert imported.details["reading"].get("source_fps") == kept
    motion = np.random.default_rng(0).normal(size=(50, columns)).astype(np.float32)
    np.save(tmp_path / "a.npy", motion)
    line = ["encode", str(tmp_path / "imported"), str(tmp_path / "a.npy"), "--out", str(tmp_path / "codes")]
    assert cli.main(line) == 0
    printed = "".join(capsys.readouterr())
    words = "30 fps (rvqvae.data.source_fps) is used, but HumanML3D's 263 columns have 20 fps"
    assert (words in printed) == (kept is not None)
    codes = next((tmp_path / "codes").rglob("*.npz"))
    np.testing.assert_array_equal(np.load(codes)["codes"], imported.encode(motion))


def test_a_part_of_other_columns_is_refused_with_the_one_that_has_them(tmp_path, capsys):
    file = save_as_trainer(tmp_path / "net.tar", "momask", random_weights(**SMALL | {"features": 106}))
    said = ["--no_normalisation", "--activation=relu", "--dilation_growth_rate=3", "--fps=30", "--body_part=face"]
    assert cli.main(["import", str(file), "--format=momask", f"--out={tmp_path / 'imported'}", *said]) == 2
    assert f"--body_part face: has 100 columns, {file} takes 106; face_jaw has 106" in capsys.readouterr().err
