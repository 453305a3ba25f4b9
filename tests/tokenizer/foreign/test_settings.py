"""Where settings come from, and the errors for those that are missing."""

from pathlib import Path

import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.foreign.formats import FORMATS
from ds_rvqvae.tokenizer.foreign.options import Options, Said
from ds_rvqvae.tokenizer.foreign.settings import Setting, Settings


def _settings(**said):
    files = [Path("/a/run.log"), Path("/b/c.yaml")]
    entries = {
        key: [Said(*one, file) for one, file in zip(values, files, strict=False)] for key, values in said.items()
    }
    return Settings(Path("net.pth"), FORMATS["gesturelsm"], Options(tuple(files), entries))


def test_a_flag_goes_before_the_file_and_the_file_before_nothing():
    settings = _settings(fps=[(30.0, "pose_fps: 30")])
    assert settings.choose("fps", None, "--fps N") == 30.0
    assert settings.found["fps"] == Setting(30.0, "run.log (pose_fps: 30)")
    assert settings.choose("fps", 25.0, "--fps N") == 25.0
    assert settings.found["fps"] == Setting(25.0, "--fps, against run.log (pose_fps: 30)")
    assert settings.choose("fps", 30.0, "--fps N") == 30.0 and settings.found["fps"].source == "--fps"
    settings.check()


def test_shapes_and_files_have_to_agree():
    settings = _settings(width=[(512, "width: 512")])
    settings.from_shapes("width", 512)
    assert settings.found["width"] == Setting(512, "shapes")
    with pytest.raises(UserError, match=r"/a/run.log says width: 512, but the shapes in net.pth say 64: they belong"):
        settings.from_shapes("width", 64)


def test_all_that_is_missing_is_named_at_once():
    settings = _settings(activation=[("relu", "vq_act: relu"), ("silu", "vq_act: silu")])
    assert settings.choose("activation", None, "--activation relu|silu|gelu") is None
    assert settings.choose("fps", None, "--fps N") is None
    with pytest.raises(UserError) as refusal:
        settings.check()
    assert str(refusal.value) == (
        "net.pth: its shapes and /a/run.log and /b/c.yaml do not say all that codes and motion depend on; give "
        "--activation relu|silu|gelu (run.log (vq_act: relu), c.yaml (vq_act: silu) differ), and --fps N"
    )
