"""Names of files and folders that are not UTF-8, or of the longest length that a file system allows, in every
command."""

import json

import numpy as np
import pytest

from ds_rvqvae import cli
from ds_rvqvae.data import open_store
from ds_rvqvae.launch import main as launcher
from tests.cli.commands import files_below, make_tokenizer

NAMES = {"GBK": "\udcc4\udce3\udcba\udcc3", "long": "动" * 83}


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return NAMES[request.param]


@pytest.fixture
def motion(tmp_path, name, monkeypatch):
    """Motion matrices with such names, in a folder with such a name; the cache has one too."""
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / f"{name}c"))
    folder = tmp_path / f"{name}m"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        np.save(folder / f"{index}{name}.npy", rng.normal(size=(90, 5)).astype(np.float32))
    return folder


def test_every_command_reads_and_writes_them(motion, name, tmp_path, capfd):
    def run(*command):
        status = cli.main([*map(str, command)])
        printed = capfd.readouterr()
        assert status == 0, printed.err
        return printed.out

    store, tokens, codes, decoded = (tmp_path / f"{name}{letter}" for letter in "stkd")
    scores, picture = tmp_path / f"{name}.json", tmp_path / f"{name}.png"
    for _ in range(2):  # made, and checked again
        run("prepare", motion, "--out", store)
    assert sorted(open_store(store).clip_names) == [f"{index}{name}" for index in range(4)]
    clips = json.loads(run("store", "show", store, "--clips", "--json"))["clip_list"]
    assert sorted(clip["name"] for clip in clips) == [f"{index}{name}" for index in range(4)]
    run("store", "verify", store)
    run("data", "plot", store, "--out", picture)
    make_tokenizer(open_store(store).layout).save_pretrained(tokens)
    run("encode", tokens, motion, "--out", codes)
    assert files_below(codes) == [f"{index}{name}.npz" for index in range(4)]
    run("decode", tokens, codes, "--out", decoded)
    assert len(list(decoded.glob("*.npy"))) == 4
    run("evaluate", tokens, "--data_path", motion, "--split", "all", "--json", scores)
    assert json.loads(scores.read_text())["clips"] == 4
    run("export", tokens, "--out", tmp_path / f"{name}e")
    run("export", tokens, "--out", tmp_path / f"{name}o", "--format", "momask")
    assert files_below(tmp_path / f"{name}e") == files_below(tokens)
    assert picture.is_file()
    hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert hidden == []


def test_the_launcher_takes_them_or_says_what_is_too_long(motion, name, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_SIZE", "1")
    flags = ["--profile=demo", "--include=localhost:0", "--dry_run", "--batch_size=4", f"--data_path={motion}"]
    assert launcher.main([*flags, f"--out={tmp_path / name}"]) == 0
    capfd.readouterr()
    for more, said in (
        ([f"--name={name}{name}"], "255; shorten it" if name.isprintable() else "cannot be printed"),
        ([f"--out={tmp_path / name}{name}{name}"], "file name too long" if name.isprintable() else None),
        ([f"--out={tmp_path}/{'x/' * 2000}"], "more than the 4,096 of a path"),
        ([f"--profile={name * 64}"], "file name too long"),
    ):
        status, printed = launcher.main([*flags, *more]), capfd.readouterr()
        assert status == (0 if said is None else 2), printed.err
        if said is not None:
            assert said in printed.err and printed.err.count("\n") == 1, printed.err
