"""A request from a command line: one value, made in one place, passed on unchanged."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import ds_rvqvae
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.config.request import Start, read_launch_flags, read_training_flags
from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.start import overrides_between

PACKAGE = Path(ds_rvqvae.__file__).parent
FROM_FLAGS_TO_RANK = ("config", "motion", "data", "model", "tokenizer", "runs", "train", "launch")
"""Rooms that take part in a run; `cli/` and the monitor have flags of their own."""
PARTS = {"Flags", "Start", "LaunchOptions", "Profile"}


def sources():
    files = [file for room in FROM_FLAGS_TO_RANK for file in sorted((PACKAGE / room).rglob("*.py"))]
    return {file.relative_to(PACKAGE).as_posix(): file.read_text(encoding="utf-8") for file in files}


def names_in(text):
    found = set()
    for node in ast.walk(ast.parse(text)):
        found |= {node.id} if isinstance(node, ast.Name) else set()
        found |= {node.attr} if isinstance(node, ast.Attribute) else set()
        found |= {node.arg} if isinstance(node, ast.arg) else set()
    return found


def test_what_argparse_gives_is_seen_by_one_module():
    seen = [name for name, text in sources().items() if names_in(text) & {"Namespace", "args"}]
    assert seen == ["config/request.py"]


def test_few_modules_know_the_request():
    naming = [name for name, text in sources().items() if re.search(r"\bRequest\b", text)]
    assert "config/request.py" in naming and len(naming) <= 12, naming


def test_no_signature_takes_a_request_and_a_part_of_it():
    both = []
    for name, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                types = {ast.unparse(argument.annotation) for argument in arguments if argument.annotation}
                whole = types & {"Request", "CheckedRun", "Flags"}
                parts = types & (PARTS - ({"Flags"} if whole == {"Flags"} else set()))
                both += [f"{name}: {node.name}"] if whole and parts else []
    assert both == []


def test_nothing_of_it_can_be_changed(monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_DATA", "/motion")
    request = read_training_flags(["--width=64", "--resume=global_step5"]).request()
    for value, field in ((request, "profile"), (request.flags, "name"), (request.start, "kind")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)
    for mapping in (request.flags.keys, request.flags.environment):
        with pytest.raises(TypeError):
            mapping["x"] = "y"
    # Later changes of the process's environment do not change the request.
    monkeypatch.setenv("DS_RVQVAE_DATA", "/other")
    assert request.flags.environment["DS_RVQVAE_DATA"] == "/motion"
    assert request.flags.request().profile.rvqvae.data.path == "/motion"


@pytest.mark.parametrize(
    ("resume", "start", "line"),
    [
        (False, Start("new"), []),
        (True, Start("newest"), ["--resume"]),
        ("global_step12", Start("checkpoint", tag="global_step12"), ["--resume", "global_step12"]),
        ("runs/mine", Start("run", folder=Path("runs/mine")), ["--resume", "runs/mine"]),
        ("global_step", Start("run", folder=Path("global_step")), ["--resume", "global_step"]),
        ("-odd", Start("run", folder=Path("-odd")), ["--resume=-odd"]),
    ],
)
def test_a_start_says_which(resume, start, line):
    assert Start.of(resume) == start and start.arguments() == line
    assert start.resumes == bool(resume)


def test_the_launchers_own_flags():
    options = read_launch_flags(
        ["--require_idle", "0,2", "--nccl_debug", "--hostfile=hosts", "--no_ssh", "--node_rank=1", "--log_level=info"]
    ).options
    assert options.require_idle == (0, 2) and dict(options.nccl) == {"NCCL_DEBUG": "INFO"}
    given = {"hostfile": "hosts", "node_rank": "1", "log_level": "info", "no_ssh": None}
    assert dict(options.handed_through) == given
    assert (options.hostfile, options.no_ssh, options.node_rank) == ("hosts", True, 1)
    assert not options.dry_run and options.chooses_devices
    with pytest.raises(UserError, match="--require_idle x: give GPU numbers"):
        read_launch_flags(["--require_idle", "x"])


def test_overrides_turn_one_profile_into_another(tmp_path):
    first = load_profile("baseline")
    changes = [
        "rvqvae.model.width=64",
        'rvqvae.data.body_parts={"arms": ["Left*Arm", 20]}',
        "rvqvae.data.body_part=arms",
        "rvqvae.schedule.milestones=[5, 9]",
        "rvqvae.training.total_iter=7",
        "rvqvae.training.keep_every=3",
        "optimizer.params.lr=0.5",
        "wandb.enabled=true",
        "bf16.enabled=false",
    ]
    second = load_profile("baseline", changes)
    assert overrides_between(first, first) == []
    assert load_profile("baseline", overrides_between(first, second)) == second
    # And back, where keys are no longer set.
    (tmp_path / "second.json").write_text(second.model_dump_json(by_alias=True))
    assert load_profile(tmp_path / "second.json", overrides_between(second, first)) == first
