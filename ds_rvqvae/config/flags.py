"""The flags of training, the same for the launcher and for `--module ds_rvqvae.train`.

Every field of the profile's `rvqvae` object is a flag of its own name; a few of DeepSpeed's keys have one too.
"""

import argparse
import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ds_rvqvae.config.data import is_part_name
from ds_rvqvae.config.names import BODY_PARTS
from ds_rvqvae.config.profile import RvqvaeConfig, section_at

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

_OTHER_NAMES = {("data", "path"): "data_path", ("training", "export_for"): "for"}
"""Flags that are not called as their keys are."""
PROFILE_FLAGS = {
    **DEEPSPEED_FLAGS,
    **{
        _OTHER_NAMES.get((section, name), name): f"rvqvae.{section}.{name}"
        for section in RvqvaeConfig.model_fields
        for name in type(getattr(RvqvaeConfig(), section)).model_fields
    },
}
"""Every flag that sets a key of the profile: flag to JSON path."""


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Adds every flag of training to `parser`; see `config.request` for what becomes of them."""
    run = parser.add_argument_group("run")
    run.add_argument(
        "--profile",
        "--deepspeed_config",
        metavar="NAME|FILE",
        help="a shipped profile or a JSON file; every other default comes from it (default: that of the run named by "
        "--resume, else baseline)",
    )
    run.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    run.add_argument("--name", help="the run's folder in --out (default: profile and body part, numbered)")
    run.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="TAG|RUN",
        help="go on from the newest whole checkpoint, or start where none is; or from this checkpoint or run",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override any key of the profile, after all other flags; repeatable",
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for flag, path in PROFILE_FLAGS.items():
        title = "deepspeed" if flag in DEEPSPEED_FLAGS else path.split(".")[1]
        if title not in groups:
            groups[title] = parser.add_argument_group(title, "defaults come from the profile")
        groups[title].add_argument(f"--{flag}", **_argument_of(flag, path))


def _field(path: str) -> FieldInfo:
    *above, name = path.split(".")
    section = section_at(above)
    assert section is not None
    return section.model_fields[name]


def _kinds(annotation: Any) -> list[Any]:
    """The plain types that a field's type is made of: `list` of `Annotated[list[int], …] | None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _kinds(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    return [] if annotation is type(None) else [typing.get_origin(annotation) or annotation]


def _is_list(annotation: Any) -> bool:
    """Whether a field's type is `list[…]` or `list[…] | None`."""
    return list in _kinds(annotation)


def _is_object(annotation: Any) -> bool:
    """Whether a field's value is a JSON object."""
    return any(kind is dict or issubclass(kind, BaseModel) for kind in _kinds(annotation) if isinstance(kind, type))


def _choices(annotation: Any) -> list[str] | None:
    """The words of `Literal[…]` or `Literal[…] | None`, where the field's type is one."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_choices, typing.get_args(annotation))), None)
    return list(typing.get_args(annotation)) if typing.get_origin(annotation) is typing.Literal else None


def _body_parts(text: str) -> str:
    """Checks the names in `--body_part upper,hands`; the profile says which there are."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not is_part_name(part):
            raise argparse.ArgumentTypeError(f"no body part {part!r}; known are {', '.join(BODY_PARTS)}, and your own")
    return ",".join(parts)


def _argument_of(flag: str, path: str) -> dict[str, Any]:
    """argparse's keywords for one flag, from its field in the profile."""
    field = _field(path)
    keywords: dict[str, Any] = {
        "help": (field.description or f"Key {path} of the profile.").replace("\n", " ").replace("%", "%%")
    }
    if flag == "mixed_precision":
        keywords |= {"nargs": "?", "const": "bf16", "choices": list(PRECISIONS), "help": "bf16 (also when bare), or no"}
    elif flag == "body_part":
        several = "Launchers take several, by commas, and train them in turn."
        keywords |= {"type": _body_parts, "metavar": "PART[,PART…]"}
        keywords["help"] = f"{', '.join(BODY_PARTS)}, or one of --body_parts. {keywords['help']} {several}"
    elif field.annotation is bool:
        keywords |= {"nargs": "?", "const": "on", "choices": list(ON_OFF)}
    elif choices := _choices(field.annotation):
        keywords |= {"choices": choices}
    elif _is_list(field.annotation):
        keywords |= {"metavar": "N,N,…"}
    elif _is_object(field.annotation):
        keywords |= {"metavar": "JSON"}
    else:
        keywords |= {"metavar": "PATH" if field.annotation == str | None else "N"}
    return keywords


def json_value(flag: str, text: str) -> str:
    """What a flag was given, as the JSON value of its key."""
    annotation = _field(PROFILE_FLAGS[flag]).annotation
    if flag == "mixed_precision":
        return PRECISIONS[text]
    if annotation is bool:
        return ON_OFF[text]
    if _is_list(annotation):
        return text if text.startswith("[") else f"[{text}]"
    # A folder called 123 or null is still a folder.
    return json.dumps(text) if annotation == str | None else text
