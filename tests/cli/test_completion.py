"""Completion in a shell that has read `ds-rvqvae completion`."""

import os
import shutil
import subprocess

import pytest

from ds_rvqvae import cli
from ds_rvqvae.config.profile import shipped_profiles

COMPLETE = """
source "$1"; shift
cd "$1"; shift
complete -p ds-rvqvae >/dev/null || exit 1
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_TYPE=9
function=$(complete -p ds-rvqvae) function=${function##*-F } word=${COMP_WORDS[COMP_CWORD]}
${function%% *} ds-rvqvae "$word" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch, (folder / "bash").open("w") as file:
        patch.setattr("sys.stdout", file)
        assert cli.main(["completion", "bash"]) == 0
    (folder / "here" / "motion").mkdir(parents=True)
    (folder / "here" / "mine.json").write_text("{}")
    return folder / "bash"


@pytest.fixture
def complete(script):
    def offered(*words):
        """Returns bash's suggestions for the last word; there is no Python that it could start."""
        line = [shutil.which("bash"), "-c", COMPLETE, "bash", script, script.parent / "here", "ds-rvqvae", *words]
        ended = subprocess.run(line, env={"PATH": "/nowhere"}, capture_output=True, text=True, timeout=30)
        assert ended.returncode == 0 and ended.stderr == "", ended.stderr
        return set(ended.stdout.split())

    return offered


def test_commands_flags_and_words_are_completed(complete):
    assert complete("ev") == {"evaluate"}
    assert {"train", "prepare", "monitor"} <= complete("")
    assert complete("store", "v") == {"verify"}
    assert {"--window_size", "--window_sizes", "--window_stride"} == complete("train", "--wind")
    assert complete("train", "--recons_loss", "l1") == {"l1", "l1_smooth"}
    assert complete("evaluate", "--split", "t") == {"train", "test"}


def test_profiles_are_those_that_are_shipped_and_files_are_offered(complete):
    assert complete("train", "--profile", "") >= set(shipped_profiles())
    assert complete("train", "--profile", "mi") == complete("train", "--profile", "=", "mi") == {"mine.json"}
    assert complete("train", "--width=3", "--profile", "=") >= set(shipped_profiles())
    assert complete("plan", "b") == {"baseline", "best"}
    assert complete("train", "--data_path", "mo") == {"motion"}
    assert complete("evaluate", "m") == {"motion", "mine.json"}


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_get_theirs(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert "ds-rvqvae" in printed and "window_size" in printed
    program = shutil.which(shell)
    if program:
        check = subprocess.run([program, "-n"], input=printed, text=True, capture_output=True, env=dict(os.environ))
        assert check.returncode == 0, check.stderr
