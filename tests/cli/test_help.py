"""Help on a terminal of 80 columns: every flag is explained, and the shown defaults are the real ones."""

import argparse
import json
import re
import shlex

import pytest

from ds_rvqvae import cli
from ds_rvqvae.config.flags import PROFILE_FLAGS
from ds_rvqvae.config.profile import Profile
from tests.ranks import ROOT

MOST_WITHOUT_GROUPS = 9
"""Most flags of a command in one list, including `--help` and `--json`."""
LONG = {
    "--profile",
    "--body_part",
    "--name",
    "--resume",
    "--set",
    "--include",
    "--format",
    "--store_dtype",
    "--gradient",
    "--for",
    "--compile_mode",
}
"""Flags of training whose help takes more than one line, beside NCCL's."""


def parsers(parser, name="ds-rvqvae"):
    parser.fill()
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                yield from parsers(below, f"{name} {verb}")


@pytest.fixture(scope="module")
def commands():
    """Every parser of `ds-rvqvae` by its name."""
    return dict(parsers(cli.make_parser()))


@pytest.fixture
def shown(commands, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda name: commands[name].format_help()


def flag_texts(text):
    """Returns the lines of a help for each flag, by its first long name."""
    blocks = re.split(r"\n(?=  -|\n)", text)
    named = [(re.search(r"^  (?:-\w, )?(--\w+)", block), block) for block in blocks]
    return {name[1]: block.splitlines() for name, block in named if name}


def test_no_line_is_wider_than_the_terminal_and_every_flag_is_explained(commands, shown):
    assert len(commands) > 20
    for name, parser in commands.items():
        wide = [line for line in shown(name).splitlines() if len(line) > 80]
        assert not [line for line in wide if not line.startswith("  ds-rvqvae completion")], name
        commands_below = argparse._SubParsersAction
        flags = [action for action in parser._actions if not isinstance(action, commands_below)]
        assert [action.dest for action in flags if not action.help] == [], name
        assert "Key " not in shown(name)


def test_many_flags_are_in_groups(commands):
    for name, parser in commands.items():
        for group in parser._action_groups:
            flags = [action for action in group._group_actions if action.option_strings]
            is_section = "rvqvae." in (group.title or "") or group.title in ("start here", "deepspeed's launcher")
            assert len(flags) <= MOST_WITHOUT_GROUPS or is_section, (name, group.title, len(flags))


def test_training_starts_with_what_a_first_run_needs(shown):
    text = shown("ds-rvqvae train")
    places = [
        text.index(f"\n  {flag}") for flag in ("--data_path", "--profile", "--out", "--demo", "-i, --include", "--lr")
    ]
    assert places == sorted(places) and text.index("start here:") < places[0] < text.index("GPUs and machines:")


def test_training_has_a_line_per_flag(shown):
    long = {flag for flag, lines in flag_texts(shown("ds-rvqvae train")).items() if len(lines) > 1}
    assert {flag for flag in long if not flag.startswith("--nccl")} <= LONG, long


def test_defaults_are_those_of_baseline(shown):
    texts = flag_texts(shown("ds-rvqvae train"))
    profile = json.loads((ROOT / "ds_configs" / "baseline.json").read_text())
    filled = Profile.model_validate(profile).model_dump(mode="json")
    compared = 0
    for flag, path in PROFILE_FLAGS.items():
        value = filled
        for key in path.split("."):
            value = value[key]
        said = re.search(r"\[([^\[\]]+)\]$", " ".join(" ".join(texts[f"--{flag}"]).split()))
        if value is None or isinstance(value, dict):
            assert said is None, flag
            continue
        words = {True: {"on", "bf16"}, False: {"off", "no"}}[value] if isinstance(value, bool) else None
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        assert said and said[1] in (words or {text}), (flag, said, value)
        compared += 1
    assert compared > 50


def test_examples_are_taken_as_they_stand(commands):
    with_examples = {name: parser.examples for name, parser in commands.items() if parser.examples}
    for examples in with_examples.values():
        assert 1 <= len(examples) <= 5
    for name, parser in commands.items():
        below = any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)
        assert below or name in with_examples, f"{name} has no example"
    for name, examples in with_examples.items():
        for line, words in examples:
            parsed = cli.make_parser().parse_args([*name.split()[1:], *shlex.split(f" {line}".partition(" > ")[0])])
            assert parsed.verb and words, line


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "COMMAND"),
        (["-h"], "COMMAND"),
        (["-help"], "COMMAND"),
        (["-?"], "COMMAND"),
        (["help"], "COMMAND"),
        (["help", "evaluate"], "evaluate "),
        (["evaluate", "--h"], "evaluate "),
        (["help", "store", "show"], "store show "),
        (["store"], "store "),
        (["train", "-help"], "train "),
    ],
)
def test_help_is_found_by_all_its_names(words, command, capsys):
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    assert status == 0 and printed.err == "" and printed.out.startswith(f"usage: ds-rvqvae {command}")
