"""`ds-rvqvae`: answers at once, and refuses in one line."""

import subprocess
import sys

import pytest

from tests.ranks import ROOT


def _run(*arguments):
    command = [sys.executable, "-m", "ds_rvqvae.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


LATE = {
    "torch",
    "deepspeed",
    "numpy",
    "scipy",
    "pydantic",
    "matplotlib",
    "rich",
    "psutil",
    "xxhash",
    "safetensors",
    "tqdm",
}
"""Modules that are slow to import and that help does not need."""
VERBS = (
    *("prepare", "store", "data", "encode", "decode", "evaluate", "export", "render", "import", "bench", "plan"),
    *("monitor", "completion"),
)
MOST_MODULES = 170
"""Includes those of the interpreter itself; argparse, logging and json import most of the others."""


def _loaded_by(program, *arguments):
    """Returns what a program printed, and the modules that it had imported at its end."""
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "sys.argv[:] = sys.argv[1:]\n"
        "if sys.argv[0].endswith('.py'): runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "else: runpy.run_module(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(program), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join
)
def test_help_imports_little(arguments):
    printed, modules = _loaded_by("ds_rvqvae.cli", *arguments)
    assert printed and not LATE & modules
    assert len(modules) < MOST_MODULES, sorted(modules)


def test_help_of_what_lies_deeper_and_of_the_monitor_imports_little():
    for arguments in (["profile", "diff", "--help"], ["store", "show", "--help"]):
        printed, modules = _loaded_by("ds_rvqvae.cli", *arguments)
        assert "--json" in printed and not LATE & modules and len(modules) < MOST_MODULES
    printed, modules = _loaded_by(ROOT / "launch" / "monitor_gpu.py", "--help")
    assert "--require_idle" in printed and not LATE & modules and len(modules) < MOST_MODULES


@pytest.mark.parametrize("program", [ROOT / "launch" / "train_8x4090.py", "ds_rvqvae.train"], ids=str)
def test_help_of_training_imports_no_more_than_its_flags_are_made_of(program):
    printed, modules = _loaded_by(program, "--help")
    assert "--window_size" in printed and not LATE - {"pydantic", "xxhash", "psutil"} & modules
    assert {name for name in modules if name.startswith("ds_rvqvae.")} & {
        "ds_rvqvae.launch.check",
        "ds_rvqvae.data",
    } == set()


def test_a_profile_is_shown_without_torch():
    assert (
        not {"torch", "deepspeed", "matplotlib", "safetensors"}
        & _loaded_by("ds_rvqvae.cli", "profile", "show", "large")[1]
    )


def test_the_help_lists_every_verb_with_what_it_does():
    printed = _run().stdout
    assert all(f"\n  {verb} " in printed for verb in (*VERBS, "profile", "train"))
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["evalute", "x"], "no command 'evalute'; did you mean evaluate?"),
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
