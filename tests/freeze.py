"""Record the interface that users rely on in `tests/frozen.txt`: `python -m tests.freeze` writes that file again.

A change of commands, flags, profile keys, exit statuses, JSON or files shows as a change of that file.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from ds_rvqvae import cli
from ds_rvqvae.config.parser import FlagParser
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.gpu import monitor
from ds_rvqvae.launch.main import main as launch
from ds_rvqvae.train.rank import main as rank
from tests.gpu.stand_in import StandIn, command, compile_library
from tests.ranks import ROOT, train_ranks
from tests.train.small import SMALL

FROZEN = Path(__file__).with_name("frozen.txt")
MONITORED = ("keys of launch/monitor_gpu --json",)
Sections = dict[str, list[str]]
_NAMES_OF_PROFILES = re.compile(r"^(baseline)(?=\.)|^(rvqvae|train_|zero_)[\w.]+(?=\[\]$)")
"""Keys that name a profile, or a key of it."""


def interfaces() -> Sections:
    """Returns facts that need no run: exit statuses, commands with their flags, profile keys."""
    sections = {"exit statuses": [f"{status.value} {status.name}" for status in ExitStatus]}
    for name, main in {"launch/train_8x4090": launch, "python -m ds_rvqvae.train": rank}.items():
        sections[f"flags of {name}"] = _flags(_parser_of(main))
    sections["flags of launch/monitor_gpu"] = _flags(_parser_of(monitor.main))
    for name, parser in _verbs(_parser_of(cli.main), "ds-rvqvae"):
        sections[f"flags of {name}"] = _flags(parser)
    sections["profile keys"] = _profile_keys()
    return sections


def _parser_of(main: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    """Returns the parser for the flags of a program."""
    found: list[argparse.ArgumentParser] = []

    class Found(BaseException):
        pass

    def parse_args(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> argparse.Namespace:
        if isinstance(parser, FlagParser):
            parser.fill()
        found.append(parser)
        raise Found

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args), contextlib.suppress(Found):
        main([])
    return found[0]


def _verbs(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    if isinstance(parser, FlagParser):
        parser.fill()
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for verb, its in action.choices.items():
            yield from _verbs(its, f"{name} {verb}")


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    lines = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            continue
        parts = [" ".join(action.option_strings) or str(action.metavar or action.dest)]
        if action.nargs is not None and action.nargs != 0:
            parts.append(f"nargs={action.nargs}")
        if action.nargs == 0:
            parts.append("switch")
        if action.const is not None and action.nargs == "?":
            parts.append(f"bare={action.const}")
        if action.choices:
            parts.append(f"one of {','.join(map(str, action.choices))}")
        if action.default not in (None, False, []):
            parts.append(f"default={action.default}")
        lines.append("  ".join([*parts, *(["required"] if action.option_strings and action.required else [])]))
    return sorted(lines)


def _profile_keys() -> list[str]:
    schema = json.loads(_printed(["profile", "schema"]))
    lines: list[str] = []

    def walk(node: dict[str, Any], path: str) -> None:
        if "$ref" in node:
            node = {
                **schema["$defs"][node["$ref"].rpartition("/")[2]],
                **{k: v for k, v in node.items() if k != "$ref"},
            }
        if "properties" in node:
            for name, below in node["properties"].items():
                walk(below, f"{path}.{name}" if path else name)
            return
        kinds = [node, *node.get("anyOf", [])]
        wanted = {str(kind.get("enum") or kind.get("const") or kind.get("type")) for kind in kinds}
        nested = [kind for kind in kinds if "$ref" in kind]
        lines.append(f"{path}: {' | '.join(sorted(wanted - {'None'}))}, default {json.dumps(node.get('default'))}")
        for kind in nested:
            walk({"$ref": kind["$ref"]}, path)

    walk(schema, "")
    return sorted(lines)


def results(folder: Path) -> Sections:
    """Returns the files of a small run and of each command, and the keys of their JSON."""
    motion = write_demo_motion(folder / "motion", clips=4, frames=160)
    clip = next(motion.rglob("*.npz"))
    clip.with_name("3_bad_0_1_1.npz").write_bytes(b"nothing")
    with np.load(clip) as whole:
        short = {name: whole[name][:8] if whole[name].shape[:1] == (160,) else whole[name] for name in whole.files}
    np.savez(clip.with_name("3_short_0_2_2.npz"), **short)
    train_ranks(1, *SMALL, f"--data_path={motion}", f"--out={folder}", "--name=run", "--total_iter=2", "--batch_size=4")
    run, tokenizer, codes = folder / "run", folder / "run" / "tokenizer", folder / "codes"
    sections = {
        "files of a run": _files(run),
        "keys of metrics.jsonl": keys_of(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])),
    }
    for file in sorted(run.rglob("*.json")):
        if file.name not in ("profile.json",) and "checkpoints" not in file.parts:
            sections[f"keys of a run's {file.relative_to(run)}"] = keys_of(json.loads(file.read_text()))
    commands = {
        "prepare": [str(motion), "--out", str(folder / "store"), "--set=rvqvae.data.body_part=upper"],
        "store show": [str(folder / "store")],
        "store verify": [str(folder / "store")],
        "encode": [str(tokenizer), str(motion), "--out", str(codes)],
        "decode": [str(tokenizer), str(codes), "--out", str(folder / "decoded")],
        "data plot": [str(folder / "store"), "--out", str(folder / "store.png")],
        "render": [str(tokenizer), str(clip), "--out", str(folder / "clip.gif"), "--seconds=0.2", "--size=320x160"],
        "evaluate": [str(run), "--split", "all"],
        "export": [str(run), "--out", str(folder / "exported")],
        "import": [_foreign(run, folder), "--format=momask", "--out", str(folder / "imported"), "--fps=30"],
        "plan": ["baseline"],
        "profile show": ["baseline"],
        "profile validate": ["baseline"],
        "profile diff": ["baseline", "large"],
    }
    for name, arguments in commands.items():
        sections[f"keys of ds-rvqvae {name} --json"] = keys_of(
            json.loads(_printed([*name.split(), *arguments, "--json"]))
        )
    sections["keys of ds-rvqvae bench --json"] = keys_of(_benchmark())
    written = {
        "a store": "store",
        "an export": "exported",
        "an export for MoMask": "foreign",
        "decoded codes": "decoded",
    }
    sections |= {f"files of {name}": _files(folder / place) for name, place in written.items()}
    with np.load(next(codes.rglob("*.npz"))) as file:
        sections["arrays of a codes file"] = sorted(file.files)
    return sections


def monitored(stand_in: StandIn) -> Sections:
    """The keys of the monitor's JSON, with a card that is in use."""
    stand_in.play("1 used 8000000000", "1 process 4242 7000000000", "1 utilisation 50")
    line = subprocess.run(command("--once", "--json"), env=stand_in.environment, capture_output=True, text=True).stdout
    return dict(zip(MONITORED, [keys_of(json.loads(line))], strict=True))


def _foreign(run: Path, folder: Path) -> str:
    """The run's tokenizer as a checkpoint of MoMask."""
    _printed(["export", str(run), "--format=momask", "--out", str(folder / "foreign"), "--json"])
    return str(next(path for path in (folder / "foreign").rglob("*") if path.suffix in (".tar", ".pth", ".pt")))


def _benchmark() -> dict[str, Any]:
    """The nets are so small that even a CPU without bf16 arithmetic can be forced to run PyTorch's own bf16 loop."""
    settings = ["bf16.enabled=false", "rvqvae.model.width=16", "rvqvae.model.depth=1", "rvqvae.model.nb_code=16"]
    arguments = ["bench", "demo", "--rounds=1", "--json", *(f"--set={setting}" for setting in settings)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "DS_RVQVAE_CPU_BF16": "native"}
    done = subprocess.run(
        [sys.executable, "-m", "ds_rvqvae.cli", *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def keys_of(value: Any, path: str = "") -> list[str]:
    """Returns every path in a JSON value, sorted; `[]` stands for the items of a list, `*` for names of profiles and
    their keys."""
    found: set[str] = set()

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, below in value.items():
                walk(below, f"{path}.{name}")
        elif isinstance(value, list):
            for below in value or [None]:
                walk(below, f"{path}[]")
        else:
            found.add(_NAMES_OF_PROFILES.sub("*", path.lstrip(".")))

    walk(value, path)
    return sorted(found)


def _printed(arguments: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            status = cli.main(arguments)
        except SystemExit as refusal:
            status = refusal.code
    assert status in (ExitStatus.DONE, ExitStatus.PARTLY_DONE), f"{arguments}: {errors.getvalue()}"
    return out.getvalue()


def _files(folder: Path) -> list[str]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted({re.sub(r"events\.out\.tfevents\..*", "events.out.tfevents.*", name) for name in names})


def text_of(sections: Sections) -> str:
    """The sections as one readable text."""
    return "\n".join(f"[{name}]\n" + "".join(f"{line}\n" for line in lines) for name, lines in sections.items())


def read() -> Sections:
    """The sections of `tests/frozen.txt`."""
    sections: Sections = {}
    for block in FROZEN.read_text(encoding="utf-8").split("\n["):
        name, *lines = block.removeprefix("[").splitlines()
        sections[name.removesuffix("]")] = [line for line in lines if line]
    return sections


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        library = compile_library(temporary)
        assert library is not None, "the monitor's JSON needs a C compiler"
        stand_in = StandIn(library, temporary / "cards.txt")
        sections = interfaces() | results(temporary) | monitored(stand_in)
        FROZEN.write_text(text_of(sections), encoding="utf-8")
