"""Every flag that a page names is one of ours."""

import re

import pytest

from tests import freeze
from tests.on_gpu import program
from tests.ranks import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = {
    "--autotuning", "--module", "--help", "--gpus", "--ipc", "--shm-size", "--host", "--logdir", "--num_codes",
    "--nproc_per_node", "--signal", "--gpus-per-task", "--gres",
}  # fmt: skip
"""Flags of other programs that the pages name: deepspeed, docker, tensorboard, trainers, torchrun, Slurm; `--help`."""
OF_PROGRAMS = ("benchmarks", "quality")
"""Pages about programs in `benchmarks/`, which have flags of their own."""
SYSTEMS = "other-systems.md"
"""The page whose tables have flags of other systems in their first column."""


def flags_of_ours():
    lines = [line for name, lines in freeze.read().items() if name.startswith("flags of ") for line in lines]
    flags = {flag for line in lines for flag in re.findall(r"(?<!\S)--?[A-Za-z]\w*", line.partition("  ")[0])}
    return flags | {flag for action in program.parser()._actions for flag in action.option_strings}


def flags_in(page):
    """Every flag in code of a page; not those of benchmarks and tests, which are programs of their own."""
    text = page.read_text(encoding="utf-8")
    if page.name == SYSTEMS:
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
    code = re.findall(r"```(?:bash|text)\n(.*?)```|`([^`\n]+)`", text, flags=re.DOTALL)
    for line in "\n".join(block or inline for block, inline in code).replace("\\\n", " ").splitlines():
        if not re.search(r"benchmarks/|tests[./]|#SBATCH|srun|pip |scontrol|deepspeed\.", line):
            yield from re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", line)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in OF_PROGRAMS], ids=lambda page: page.stem)
def test_every_flag_is_one_of_ours(page):
    assert sorted(set(flags_in(page)) - flags_of_ours() - OTHERS) == []
