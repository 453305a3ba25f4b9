"""Names of files, clips and columns that a terminal would obey, through every command."""

import json
import os
import pty
import subprocess
import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pytest

from ds_rvqvae import cli
from ds_rvqvae.data import open_store
from ds_rvqvae.launch import main as launcher
from tests.cli.commands import make_tokenizer
from tests.ranks import ROOT

HOSTILE = "x\x1b[2J\x9b31m\u202e\u2066\n\r\x07\u2028$\\bad{0$ [red]x[blink]"
NO_TEXT = "\udcff\udc9b"
"""Bytes of a file's name that are no UTF-8."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Motion matrices with such names, one of them damaged, in a folder with such a name."""
    folder = tmp_path_factory.mktemp("names") / HOSTILE
    rng = np.random.default_rng(0)
    for index in range(6):
        (folder / HOSTILE).mkdir(parents=True, exist_ok=True)
        np.save(folder / HOSTILE / f"{index}{HOSTILE}{NO_TEXT}.npy", rng.normal(size=(90, 5)).astype(np.float32))
    (folder / f"cut{HOSTILE}.npy").write_bytes(b"\x93NUMPY")
    return folder


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / HOSTILE
    assert cli.main(["prepare", str(folder), "--out", str(out)]) in (0, 1)
    return out


@pytest.fixture(scope="module")
def tokenizer(store, tmp_path_factory):
    """Of columns with such names."""
    layout = open_store(store).layout
    folder = tmp_path_factory.mktemp("tokenizers") / HOSTILE
    # Layouts hold no control characters: a folder with such would not be loaded.
    name = "".join(character for character in HOSTILE if unicodedata.category(character) not in ("Cc", "Zl"))
    made = make_tokenizer([replace(part, name=f"{index}{name}") for index, part in enumerate(layout)])
    made.save_pretrained(folder)
    return folder


def written(capfd):
    """Returns the output to the terminal, which must be printable."""
    out, error = capfd.readouterr()
    for text in (out, error):
        assert {character for character in text if not character.isprintable()} <= {"\n"}, repr(text)
    return out + error


def test_a_data_set_is_prepared_looked_at_and_drawn(folder, store, tmp_path, capfd):
    capfd.readouterr()
    assert cli.main(["prepare", str(folder), "--out", str(tmp_path / HOSTILE)]) == 1
    said = written(capfd)
    assert "cutx?[2J?31m??" in said and "[red]x[blink]" in said
    for command in (["store", "show", store, "--clips"], ["store", "verify", store], ["data", "plot", store]):
        more = ["--out", tmp_path / f"{HOSTILE}.png"] if command[0] == "data" else []
        assert cli.main([*map(str, [*command, *more])]) == 0
        assert "?[2J" in written(capfd)
    assert (tmp_path / f"{HOSTILE}.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["store", "show", str(store), "--clips", "--json"]) == 0
    clips = json.loads(written(capfd))["clip_list"]
    assert HOSTILE in clips[0]["name"]


def test_motion_is_encoded_decoded_and_scored(folder, store, tokenizer, tmp_path, capfd):
    codes, motion = tmp_path / "codes", tmp_path / "motion"
    scored = ["--data_path", store, "--split", "all"]
    for status, most, command in (
        (1, 3, ["encode", tokenizer, folder, "--out", codes]),
        (0, 1, ["decode", tokenizer, codes, "--out", motion]),
        (0, 20, ["evaluate", tokenizer, *scored, "--pictures", tmp_path / HOSTILE]),
        (0, 40, ["evaluate", tokenizer, tokenizer, *scored]),
        (0, 1, ["export", tokenizer, "--out", tmp_path / f"made{HOSTILE}"]),
        (2, 1, ["render", tokenizer, store, "--out", tmp_path / f"{HOSTILE}.gif"]),
    ):
        assert cli.main([*map(str, command)]) == status
        said = written(capfd).splitlines()
        assert len(said) <= most, said


def test_what_is_not_there_is_named_without_harm(tmp_path, capfd):
    there = tmp_path / HOSTILE
    for command in (
        *(["prepare", there, "--out", tmp_path / "out"], ["store", "show", there], ["data", "plot", there]),
        *(["encode", there, there, "--out", there], ["evaluate", there], ["export", there, "--out", tmp_path / "e"]),
        *(["plan", there], ["profile", "show", there], ["profile", "validate", there], ["bench", there]),
        *(["import", there, "--format", "momask"], ["render", there, there], ["render", f"--{HOSTILE}"], [HOSTILE]),
    ):
        try:
            assert cli.main([*map(str, command)]) == 2
        except SystemExit as exit:
            assert exit.code == 2
        said = written(capfd)
        assert said.startswith("error: ") and said.count("\n") == 1, said


def test_the_launcher_prints_no_name_raw(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_SIZE", "1")
    small = ["--profile=demo", "--include=localhost:0", f"--out={tmp_path / HOSTILE}", "--batch_size=4", "--dry_run"]
    for status, path in ((0, folder), (2, tmp_path / HOSTILE)):
        assert launcher.main([*small, f"--data_path={path}", "--set", "rvqvae.data.format=features"]) == status
        assert "x?[2J?31m" in written(capfd)


def test_a_terminal_gets_the_codes_of_the_progress_bar_alone(folder, tmp_path):
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "ds_rvqvae.cli", "prepare", folder, "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    said = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                piece = terminal.read(1 << 16)
            except OSError:  # Linux's end of a terminal
                break
            if not piece:
                break
            said += piece
    assert process.wait() == 1
    text = said.decode().replace("\x1b[A", "")
    assert {character for character in text if not character.isprintable()} <= {"\n", "\r"}, repr(text)
