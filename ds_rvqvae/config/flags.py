"""The flags of training, the same for the launcher and for `--module ds_rvqvae.train`.

Every key of the profile's `rvqvae` object has a flag of the same name; a few of DeepSpeed's keys have one too.
"""

import argparse
import functools
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ds_rvqvae.config.data import is_part_name
from ds_rvqvae.config.names import BODY_PARTS
from ds_rvqvae.config.profile import Profile, RvqvaeConfig, load_profile, section_at, shipped_profiles

ON_OFF = {"on": "true", "off": "false"}
PRECISIONS = {"bf16": "true", "no": "false"}

DEEPSPEED_FLAGS = {
    "batch_size": "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "lr": "optimizer.params.lr",
    "weight_decay": "optimizer.params.weight_decay",
    "mixed_precision": "bf16.enabled",
}
"""Flags that set DeepSpeed's own keys: flag to JSON path."""

_MOST_IN_A_METAVAR = 3
"""Most choices of a flag that are listed in the placeholder of its value."""
_PATHS = ("data_path", "mean_file", "std_file", "init_from")

_OTHER_NAMES = {("data", "path"): "data_path", ("training", "export_for"): "for"}
"""Flags whose names differ from those of their keys."""
PROFILE_FLAGS = {
    **DEEPSPEED_FLAGS,
    **{
        _OTHER_NAMES.get((section, name), name): f"rvqvae.{section}.{name}"
        for section in RvqvaeConfig.model_fields
        for name in type(getattr(RvqvaeConfig(), section)).model_fields
    },
}
"""Every flag that sets a key of the profile: flag to JSON path."""


START, PLACES = "start here", "GPUs and machines"
TITLES = {
    "deepspeed": "batch and optimizer (DeepSpeed's keys)",
    "data": "motion (rvqvae.data)",
    "model": "nets and quantizer (rvqvae.model)",
    "loss": "losses (rvqvae.loss)",
    "schedule": "learning rate over time (rvqvae.schedule)",
    "training": "length, records and memory (rvqvae.training)",
}
"""Titles of groups of flags, in the order of the help; what a first run needs comes before them, under START."""
_AT_START = ("data_path", "body_part", "batch_size", "total_iter")


def group_of(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Returns the group of flags with a title; adds it at the end if there is none."""
    there = [group for group in parser._action_groups if group.title == title]
    return there[0] if there else parser.add_argument_group(title)


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Adds every flag of training to `parser`; `config.request` reads them."""
    for title in (START, PLACES, *TITLES.values()):
        group_of(parser, title)
    start = group_of(parser, START)
    _add_profile_flag(start, "data_path")
    start.add_argument(
        "--profile",
        "--deepspeed_config",
        metavar="NAME|FILE",
        help=f"{', '.join(_shipped())}, or a JSON file; its values are the defaults of the flags below (default: that "
        "of the run named by --resume, else baseline)",
    )
    for flag in _AT_START[1:]:
        _add_profile_flag(start, flag)
    start.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs [runs]")
    start.add_argument("--name", help="the run's folder in --out [PROFILE-DATA, and body part, numbered]")
    start.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="TAG|RUN",
        help="continue from the newest complete checkpoint, or start fresh if there is none; with a value: from that "
        "checkpoint or run",
    )
    start.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="any key of the profile; overrides all other flags; repeatable",
    )
    for flag in PROFILE_FLAGS:
        if flag not in _AT_START:
            _add_profile_flag(group_of(parser, _title_of(flag)), flag)


def _title_of(flag: str) -> str:
    return TITLES["deepspeed" if flag in DEEPSPEED_FLAGS else PROFILE_FLAGS[flag].split(".")[1]]


def _add_profile_flag(group: argparse._ArgumentGroup, flag: str) -> None:
    action = group.add_argument(f"--{flag}", **_argument_of(flag, PROFILE_FLAGS[flag]))
    action.shown_default = lambda: default_text(flag)  # type: ignore[attr-defined]


def _shipped() -> list[str]:
    return list(shipped_profiles()) or ["baseline"]


@functools.cache
def _baseline() -> Profile:
    return load_profile("baseline")


def default_text(flag: str) -> str:
    """Returns the value of a flag's key in `baseline`, in the form of the command line; empty if it is null or an
    object."""
    value: Any = _baseline()
    for key in PROFILE_FLAGS[flag].split("."):
        value = getattr(value, key)
    if value is None or isinstance(value, BaseModel | dict):
        return ""
    if isinstance(value, bool):
        words = PRECISIONS if flag == "mixed_precision" else ON_OFF
        return next(word for word, json_word in words.items() if json_word == json.dumps(value))
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _field(path: str) -> FieldInfo:
    *above, name = path.split(".")
    section = section_at(above)
    assert section is not None
    return section.model_fields[name]


def _kinds(annotation: Any) -> list[Any]:
    """Returns the plain types in a field's type: `list` for `Annotated[list[int], …] | None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _kinds(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    return [] if annotation is type(None) else [typing.get_origin(annotation) or annotation]


def _is_list(annotation: Any) -> bool:
    """Returns whether a field's type is `list[…]` or `list[…] | None`."""
    return list in _kinds(annotation)


def _is_object(annotation: Any) -> bool:
    """Returns whether a field's value is a JSON object."""
    return any(kind is dict or issubclass(kind, BaseModel) for kind in _kinds(annotation) if isinstance(kind, type))


def _choices(annotation: Any) -> list[str] | None:
    """Returns the words of `Literal[…]` or `Literal[…] | None`; None for a field of another type."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_choices, typing.get_args(annotation))), None)
    return list(typing.get_args(annotation)) if typing.get_origin(annotation) is typing.Literal else None


def _body_parts(text: str) -> str:
    """Checks that the names in `--body_part upper,hands` are valid; the profile checks later that they exist."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not is_part_name(part):
            raise argparse.ArgumentTypeError(
                f"no body part {part!r}; known are {', '.join(BODY_PARTS)}, and those of --body_parts"
            )
    return ",".join(parts)


def first_sentence(text: str) -> str:
    """Returns the first sentence of a key's description for a line of help: without full stop, and with a small first
    letter."""
    sentence = re.split(r"(?<! al)\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]
    is_name = any(letter.isupper() for letter in sentence.split(" ")[0][1:])
    return sentence if is_name else sentence[:1].lower() + sentence[1:]


def _argument_of(flag: str, path: str) -> dict[str, Any]:
    """Returns argparse's keywords for one flag, from its field in the profile."""
    field = _field(path)
    keywords: dict[str, Any] = {"help": first_sentence(field.description or "").replace("%", "%%")}
    kinds = _kinds(field.annotation)
    if flag == "mixed_precision":
        keywords |= {"nargs": "?", "const": "bf16", "choices": list(PRECISIONS), "metavar": "|".join(PRECISIONS)}
        keywords["help"] = "arithmetic of the nets; no value: bf16"
    elif flag == "body_part":
        keywords |= {"type": _body_parts, "metavar": "PART[,PART…]"}
        keywords["help"] = (
            f"body part of SMPL-X: {', '.join(BODY_PARTS)}, or one of --body_parts; several, joined by commas, are "
            "trained in turn"
        )
    elif field.annotation is bool:
        keywords |= {"nargs": "?", "const": "on", "choices": list(ON_OFF), "metavar": "|".join(ON_OFF)}
    elif {str, dict} <= set(kinds):
        keywords |= {"metavar": "FILE"}
    elif _is_list(field.annotation) and _choices(field.annotation):
        keywords |= {"metavar": "|".join([*(_choices(field.annotation) or ()), "NAME,NAME,…"])}
    elif choices := _choices(field.annotation):
        keywords |= {"choices": choices, "metavar": "|".join(map(str, choices))}
        if len(choices) > _MOST_IN_A_METAVAR:
            keywords |= {"metavar": "NAME", "help": f"{keywords['help']}: {', '.join(choices)}"}
    elif _is_list(field.annotation):
        keywords |= {"metavar": "N,N,…"}
    elif _is_object(field.annotation):
        keywords |= {"metavar": "JSON"}
    elif flag in _PATHS:
        keywords |= {"metavar": "PATH"}
    else:
        keywords |= {"metavar": "NAME" if str in kinds else "X" if float in kinds else "N"}
    return keywords


def json_value(flag: str, text: str) -> str:
    """Returns a flag's value as the JSON value of its key."""
    annotation = _field(PROFILE_FLAGS[flag]).annotation
    if flag == "mixed_precision":
        return PRECISIONS[text]
    if annotation is bool:
        return ON_OFF[text]
    if {str, dict} <= set(_kinds(annotation)):
        return text if text.startswith("{") else json.dumps(text)
    if choices := _is_list(annotation) and _choices(annotation):
        return json.dumps(text) if text in choices else text if text.startswith("[") else json.dumps(text.split(","))
    if _is_list(annotation):
        return text if text.startswith("[") else f"[{text}]"
    # A folder called 123 or null is still a folder.
    return json.dumps(text) if annotation == str | None else text
