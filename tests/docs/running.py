"""How each command of the pages is run: as it stands, small, dry, or up to the end of its flags.

A launcher is run with `--dry_run` on eight CPU slots; a program that would take minutes is run with less to do, or
until its flags are parsed. A command that no rule knows is a failure: nothing has tried what its page promises.
"""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

from ds_rvqvae import cli
from ds_rvqvae.config.request import read_training_flags
from ds_rvqvae.launch import main as launcher
from tests.docs.pages import ROOT, Block, Command, commands_of
from tests.docs.world import SETTINGS
from tests.gpu.stand_in import StandIn, command
from tests.launch.launching import CPU
from tests.on_gpu import program as on_gpu

_QUICK = ("scaling.py",)
"""Benchmarks that are run; the flags of the others are parsed."""
_PROGRAMS = ("bash", "python", "ds-rvqvae")


class _ParsedError(SystemExit):
    """The flags of a program were taken; it is not run further."""


class Runner:
    """Runs commands in `world`; the variables that a block exports last until its end."""

    def __init__(self, world: Path, gpus: StandIn) -> None:
        self.world = world
        self.gpus = gpus
        self.exported: dict[str, str] = {}

    def run(self, asked: Command) -> int:
        """The exit status.

        Raises:
            LookupError: no rule knows the command.
        """
        words = [_in_world(word, self.world) for word in asked.words]
        if not words:
            return 0
        run = self._rule(words)
        with mock.patch.dict(os.environ, {**self.exported, **asked.variables}):
            if asked.output is None:
                return run()
            with (self.world / asked.output).open("w") as output, redirect_stdout(output):
                return run()

    def commands_of(self, block: Block) -> list[Command]:
        """The commands of a bash block; those of one with control structures by running it with stand-ins for them."""
        if not re.search(r"^\s*(case|if|for|while) ", block.text, re.MULTILINE):
            return list(commands_of(block))
        log = self.world / "called"
        log.unlink(missing_ok=True)
        stand_ins = "".join(f'{name}() {{ printf "%q " {name} "$@" >>called; echo >>called; }}\n' for name in _PROGRAMS)
        subprocess.run(["bash", "-eu"], input=stand_ins + block.text, cwd=self.world, check=True, text=True)
        return list(commands_of(block._replace(text=log.read_text())))

    def _rule(self, words: list[str]) -> Callable[[], int]:
        line = shlex.join(words)
        if words[0] == "export":
            return lambda: self._export(words[1:])
        if words[0] in ("printf", "echo", "mkdir", "cp"):
            return lambda: _plain(words)
        if words[0] == "wait" or line == "source .venv/bin/activate":
            return lambda: 0
        if words[0] == "eval":
            return lambda: self._rule(shlex.split(words[1].strip("$()")))()
        if words[0] == "pip":
            return lambda: _check_install(words)
        if words[0] == "pre-commit":
            return lambda: 0 if (ROOT / ".pre-commit-config.yaml").is_file() else 1
        if words[0] == "tensorboard":
            return lambda: _check_tensorboard(words, self.world)
        if words[0] in ("sbatch", "torchrun"):
            return lambda: _parse_ranks(words)
        if words[0] == "deepspeed":
            return lambda: _parse_deepspeed(words)
        if words[0] == "ds-rvqvae" and words[1:2] not in (["train"], ["monitor"]):
            return lambda: _command(words[1:])
        for opening, run in (
            (("ds-rvqvae", "train"), self._dry),
            (("bash", "launch/train_8x4090.sh"), self._dry),
            (("python", "launch/train_8x4090.py"), self._dry),
            (("python", "-m", "ds_rvqvae.launch"), self._dry),
            (("ds-rvqvae", "monitor"), self._monitor),
            (("python", "launch/monitor_gpu.py"), self._monitor),
            (("python", "-m"), _parse_module),
        ):
            if tuple(words[: len(opening)]) == opening:
                rest = words[len(opening) :]
                return lambda: run(rest)
        if words[0] == "python" and words[1].startswith(("benchmarks/", "examples/")):
            return lambda: _script(ROOT / words[1], words[2:])
        if words[:2] == ["bash", "tests/on_gpu.sh"]:
            return lambda: _until_parsed(lambda: on_gpu.parser().parse_args(words[2:]))
        if words[0] == "bash" and (ROOT / words[1]).is_file():
            return lambda: subprocess.run(["bash", "-n", ROOT / words[1]]).returncode
        raise LookupError(f"tests/docs/running.py has no rule for: {line}")

    def _export(self, assigned: list[str]) -> int:
        self.exported.update(word.split("=", 1) for word in assigned)
        return 0

    def _dry(self, flags: list[str]) -> int:
        """The launcher's checks; a run that goes on or starts from a tokenizer has the settings of the world's runs."""
        added = ["--dry_run"] if "--dry_run" not in flags else []
        if {"--resume", "--init_from"} & set(flags):
            named = "--resume" in flags and any(flag.startswith("runs/") for flag in flags)  # it has the run's settings
            added += ["--include=localhost:0", *([] if named else SETTINGS)]
        if "--resume" not in flags and "--out" not in flags:
            added += ["--out=dry"]  # under `runs` the world has runs of these names
        with mock.patch.dict(os.environ, {**CPU, **self.exported}):
            return launcher.main([*flags, *added])

    def _monitor(self, flags: list[str]) -> int:
        ends = {"--once", "--require_idle", "--help"} & set(flags)
        line = [*command(*flags), *([] if ends else ["--count=1"])]  # the last of two counts is taken
        ran = subprocess.run(line, env=self.gpus.environment, stdout=subprocess.DEVNULL, timeout=60)
        return ran.returncode


def check_script(block: Block) -> str:
    """How bash refuses a batch script, which is not run; empty where it does not."""
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    return f"{block.where}: {checked.stderr}" if checked.returncode else ""


def _in_world(word: str, world: Path) -> str:
    """The word with the pages' `/data` and `/shared` as folders of the world."""
    return re.sub(r"(^|=)/(data|shared)\b", lambda found: f"{found[1]}{world}/{found[2]}", word)


def _command(words: list[str]) -> int:
    """A command of `ds-rvqvae`; those that measure for minutes are parsed."""
    if words[:1] == ["bench"]:
        cli.make_parser().parse_args(words)
        return 0
    return cli.main(words)


def _parse_deepspeed(words: list[str]) -> int:
    """The plain launch line: deepspeed's own parser takes its flags, a rank's takes the others."""
    from deepspeed.launcher.runner import parse_args

    asked = parse_args(words[1:])
    assert (asked.module, asked.user_script) == (True, "ds_rvqvae.train")
    read_training_flags(asked.user_args).request()
    return 0


def _parse_ranks(words: list[str]) -> int:
    """Ranks that another program starts: a rank's parser takes the flags, and bash reads the script of a job."""
    if "ds_rvqvae.cli" in words:
        return _command(words[words.index("ds_rvqvae.cli") + 1 :])
    at = 2 if words[0] == "sbatch" else words.index("ds_rvqvae.train") + 1
    read_training_flags(words[at:]).request()
    return subprocess.run(["bash", "-n", ROOT / words[1]]).returncode if words[0] == "sbatch" else 0


def _parse_module(words: list[str]) -> int:
    """`python -m MODULE FLAGS`: a program of the tests, whose flags are parsed."""
    module, flags = words[0], words[1:]
    with mock.patch.object(sys, "argv", [module, *flags]), _parsing_alone():
        return _until_parsed(lambda: runpy.run_module(module, run_name="__main__", alter_sys=False))


def _script(file: Path, flags: list[str]) -> int:
    path = [str(file.parent), *sys.path]
    with mock.patch.object(sys, "argv", [str(file), *flags]), mock.patch.object(sys, "path", path):
        if file.name in _QUICK and "--check" not in flags:  # which starts ranks
            return _until_parsed(lambda: runpy.run_path(str(file), run_name="__main__"))
        with _parsing_alone():
            return _until_parsed(lambda: runpy.run_path(str(file), run_name="__main__"))


def _parsing_alone() -> "mock._patch[Callable[..., None]]":
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *given: object) -> None:
        parse(parser, *given)  # type: ignore[call-overload]
        raise _ParsedError(0)

    return mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop)


def _until_parsed(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _plain(words: list[str]) -> int:
    """A program of the system, by its output."""
    ran = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    print(ran.stdout, end="")
    return ran.returncode


def _check_install(words: list[str]) -> int:
    """`pip install`: what it names is there, and so are the extras in brackets."""
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\[([a-z,]+)\]", " ".join(words)):
        for name in extra.split(","):
            assert re.search(rf"^{name} = \[", project, re.MULTILINE), f"no extra {name}"
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()
    return 0


def _check_tensorboard(words: list[str], world: Path) -> int:
    from tensorboard.program import TensorBoard

    TensorBoard().configure(words)
    folder = world / words[words.index("--logdir") + 1]
    assert any(folder.rglob("events.out.tfevents.*")), f"{folder} holds no curves"
    return 0
