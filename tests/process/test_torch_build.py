"""The installed torch: what is read of it, the range that was tested, and the way on before an old driver."""

import subprocess
import sys

import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.process import torch_build
from ds_rvqvae.process.torch_build import NEWEST, OLDEST, Build, check_torch
from tests.ranks import ROOT

CUDA_13 = Build("2.13.0+cu130", "13.0")


def test_it_is_read_without_importing_it():
    import torch

    assert Build.read() == Build(torch.__version__, torch.version.cuda)
    line = "import sys, ds_rvqvae.process.torch_build as one; one.check_torch(); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "False\n", ran.stderr


@pytest.mark.parametrize("version", ["2.6.0", "2.6.0+cu124", "2.9.1", "2.13.0+cpu", "2.13.7", "", "git1234"])
def test_inside_the_range_nothing_is_said(version):
    assert check_torch(Build(version, None)) == ""


def test_below_the_range_is_refused_and_above_it_is_a_warning():
    for version in ("2.5.1+cu121", "1.13.1"):
        with pytest.raises(UserError, match=r"^torch .* is too old: .* torch 2\.6 to 2\.13; pip install 'torch>=2\.6'"):
            check_torch(Build(version, "12.1"))
    for version in ("2.14.0", "3.0.0a0"):
        assert check_torch(Build(version, "13.0")).startswith(f"torch {version} is newer than this version")


def test_the_range_is_that_of_the_packages_metadata():
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f'"torch>={OLDEST[0]}.{OLDEST[1]}",' in wanted
    assert f"\ntorch=={NEWEST[0]}.{NEWEST[1]}.0\n" in pinned


@pytest.mark.parametrize(
    ("serves", "own", "words"),
    [
        (
            "12.4",
            False,
            "update the driver to 580 or newer, or install a torch for CUDA 12 here: pip install torch==2.10.0",
        ),
        ("12.8", True, "or start with DS_RVQVAE_TORCH=2.10.0 once, which makes .venv again for CUDA 12"),
        ("11.4", False, "update the driver to 580 or newer"),
    ],
)
def test_the_way_on_before_an_old_driver(tmp_path, monkeypatch, serves, own, words):
    if own:
        (tmp_path / "installed").touch()
    monkeypatch.setattr(torch_build.sys, "prefix", str(tmp_path))
    assert not CUDA_13.can_use_cards(serves)
    assert CUDA_13.way_on(serves).endswith(words)


def test_the_way_on_is_one_that_the_driver_can_go():
    chosen = Build(torch_build.NEWEST_FOR_CUDA_12, "12.8")
    assert chosen.can_use_cards("12.2") and check_torch(chosen) == ""
