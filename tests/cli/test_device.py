"""`--device` of encode, decode, evaluate and render."""

import argparse
import shutil

import pytest
import torch

from ds_rvqvae import cli
from ds_rvqvae.cli.common import add_device_flag, chosen_device
from ds_rvqvae.errors import UserError
from tests.cli.commands import files_below, run
from tests.data.motion import write_beat2_folder

COMMANDS = ("encode", "decode", "evaluate", "render")


@pytest.fixture
def lines(tmp_path, upper, monkeypatch):
    """The command line of each command, without `--device`; the motion has two clips."""
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))
    write_beat2_folder(tmp_path / "data", ("1_a", "2_b"), 61)
    assert cli.main(["encode", str(upper), str(tmp_path / "data"), "--out", str(tmp_path / "codes")]) == 0
    clip = tmp_path / "data" / "1_a.npz"
    short = ("--seconds", "0.2", "--size", "320x160")
    return {
        "encode": ["encode", upper, tmp_path / "data", "--out", tmp_path / "out"],
        "decode": ["decode", upper, tmp_path / "codes", "--out", tmp_path / "out"],
        "evaluate": ["evaluate", upper, "--data_path", tmp_path / "data", "--split", "all"],
        "render": ["render", upper, clip, "--out", tmp_path / "out" / "1_a.gif", *short],
    }


def _chosen(*arguments):
    parser = argparse.ArgumentParser()
    add_device_flag(parser)
    return chosen_device(parser.parse_args([*arguments]))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_cpu_by_name_gives_the_same_bytes_as_no_flag(command, lines, tmp_path, capsys):
    found = []
    for device in ((), ("--device", "cpu")):
        (tmp_path / "out").mkdir()
        status, result, _ = run(capsys, *lines[command], *device)
        assert status == 0
        files = files_below(tmp_path / "out")
        timeless = {key: value for key, value in result.items() if key not in ("elapsed_s", "times_real_time")}
        found.append((timeless, [(file, (tmp_path / "out" / file).read_bytes()) for file in files if file[0] != "."]))
        shutil.rmtree(tmp_path / "out")
    assert found[0] == found[1] and (found[0][1] or command == "evaluate")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_torch_without_cuda_is_named_before_anything_is_written(command, lines, tmp_path, capsys):
    assert cli.main([*map(str, lines[command]), "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert f"--device cuda: torch {torch.__version__} is built without CUDA" in error and error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:-1", "1", "meta"])
def test_other_words_are_no_device(text, lines, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*map(str, lines["encode"]), "--device", text])
    assert "is not a device; give cpu, cuda or cuda:1" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"RTX 409{index}")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    with pytest.raises(UserError) as refused:
        _chosen("--device", "cuda:2")
    assert str(refused.value) == (
        "--device cuda:2: there is no such GPU with CUDA_VISIBLE_DEVICES=3,4; there are cuda:0 RTX 4090, "
        "cuda:1 RTX 4091"
    )
    if not torch.backends.cuda.is_built():  # then this torch cannot compute on it, although the played one is there
        with pytest.raises(UserError, match=r"--device cuda:1: torch .*, built for CUDA 13.0, cannot compute on it: "):
            _chosen("--device", "cuda:1")


def test_the_gpus_of_the_driver_are_named_where_torch_finds_none(stand_in):
    stand_in.play("0 name RTX 3090")
    code = """
import argparse, os, torch
from ds_rvqvae.cli.common import add_device_flag, chosen_device
from ds_rvqvae.errors import UserError
torch.version.cuda, torch.cuda.is_available = "13.0", lambda: False
parser = argparse.ArgumentParser()
add_device_flag(parser)
for hidden in (False, True):
    if hidden:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        chosen_device(parser.parse_args(["--device", "cuda"]))
    except UserError as error:
        print(error)
"""
    old, hidden = stand_in.python(code).splitlines()
    assert "finds no GPU that it can use: the NVIDIA driver has GPU 0 " in old and ", 7 " in old
    assert old.endswith("; the driver may be too old for this CUDA")
    assert hidden.endswith(" with CUDA_VISIBLE_DEVICES=''")
