"""`ds-rvqvae`: answers at once, and refuses in one line."""

import subprocess
import sys

import pytest

from tests.ranks import ROOT


def _run(*arguments):
    command = [sys.executable, "-m", "ds_rvqvae.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_help_answers_without_torch():
    loaded = (
        "import sys; from ds_rvqvae import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'deepspeed', 'matplotlib', 'safetensors'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["evaluate", "--help"], ["profile", "show", "large"]):
        result = subprocess.run([sys.executable, "-c", loaded, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.stdout.splitlines()[-1] == "[]", result.stdout


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "VERB"),
        (["evalute", "x"], "evalute"),
        (["evaluate", "nowhere"], "nowhere: not a run's folder"),
        (["evaluate", "nowhere", "--splt", "val"], "did you mean --split"),
        (["profile", "show", "basline"], "basline: no such profile"),
        (["profile", "show", "baseline", "--set", "rvqvae.model.widht=3"], "did you mean width"),
        (["prepare", "nowhere", "--out", "store"], "nowhere"),
    ],
)
def test_refusals_are_one_line_and_status_2(arguments, pattern):
    result = _run(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and pattern in result.stderr, result.stderr
    assert result.stdout == ""
