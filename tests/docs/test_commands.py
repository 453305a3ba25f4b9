"""Every fenced command of the pages is run: as it stands, small, or dry."""

import json
import traceback
from pathlib import Path

import pytest

from ds_rvqvae import cli
from tests.docs import world as made
from tests.docs.pages import PAGES, ROOT, RUN, SHOWN, Block, Command, blocks_of
from tests.docs.running import Runner, check_script

PARTS_OF_FILES = "# ds_rvqvae/"
"""So begins a piece of a recipe for the package, which tests/data/formats/test_readers.py applies."""


def test_every_block_says_what_it_is():
    languages = {block.where: block.language for page in PAGES for block in blocks_of(page)}
    assert {where: own for where, own in languages.items() if own not in (*RUN, *SHOWN)} == {}
    assert sum(own == "bash" for own in languages.values()) > 20


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "world"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, value in {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    made.link_project(folder)
    made.write_motion(folder)
    made.write_profile(folder)
    made.write_foreign_checkpoints(folder)
    made.write_evaluator(folder)
    made.train(folder)
    return folder


def _run_command(runner: Runner, command: Command, capsys) -> str:
    """How it failed; empty where it did not."""
    try:
        status = runner.run(command)
    except (Exception, SystemExit):
        status = traceback.format_exc(limit=-3)
    said = capsys.readouterr().err
    return "" if status == 0 else f"{command.where}: {command.text}\n  {status}\n{said[-600:]}"


def _run_program(block: Block, world: Path, names: dict[str, object]) -> str:
    """How a Python program of a page failed; `names` are those that the programs before it on the page have left."""
    text = block.text.replace('"/data/', f'"{world}/data/')
    try:
        exec(compile(text, block.where, "exec"), names)
    except Exception:
        return f"{block.where}: {traceback.format_exc(limit=-2)}"
    return ""


def _check_profile(block: Block, world: Path) -> str:
    """How a piece of a profile is refused; it stands in baseline's place for what it names."""
    whole = json.loads((ROOT / "ds_configs" / "baseline.json").read_text())

    def merge(into: dict, piece: dict) -> None:
        for key, value in piece.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(whole, json.loads(block.text))
    (world / "piece.json").write_text(json.dumps(whole))
    return "" if cli.main(["profile", "validate", "piece.json"]) == 0 else f"{block.where}: not a profile's"


@pytest.mark.processes
def test_every_command_and_program_of_the_pages_runs(world, stand_in, capsys):
    """One test: the commands of a page use each other's files. A block that stands on two pages is run once."""
    runner, ran, failed = Runner(world, stand_in), set(), []
    for page in PAGES:
        names = made.names_of_programs(world)
        for block in blocks_of(page):
            if block.language not in RUN or block.text.startswith(PARTS_OF_FILES) or block.text in ran:
                continue
            ran.add(block.text)
            if block.language == "python":
                failed.append(_run_program(block, world, names))
            elif block.language == "json":
                failed.append(_check_profile(block, world))
            elif block.language == "sh":
                failed.append(check_script(block))
            else:
                runner.exported.clear()
                for command in runner.commands_of(block):
                    if command.words[:1] == ("export",) or command.text not in ran:
                        ran.add(command.text)
                        failed.append(_run_command(runner, command, capsys))
    failed = list(filter(None, failed))
    assert len(ran) > 40
    assert not failed, "\n\n".join([*failed, f"{len(failed)} of {len(ran)} failed"])
