"""Every key of a profile in words, from its own annotations: for the command `profile keys` and its page."""

import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ds_rvqvae.config.deepspeed import NOT_USED
from ds_rvqvae.config.facts import DataFacts, Facts
from ds_rvqvae.config.flags import ON_OFF, PRECISIONS, PROFILE_FLAGS, TITLES
from ds_rvqvae.config.profile import Profile, load_profile
from ds_rvqvae.process.terminal import Line

_DEFAULTS_OF = ("baseline", "best")
"""Profiles whose values stand beside each key."""
_HIDDEN = ("$schema", "schema_")
_WORDS: Mapping[Any, str] = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}
_PLURALS = {"integer": "integers", "number": "numbers", "text": "texts"}


_RESUMES = {
    "yes": "may change on a resume",
    "no": "cannot change on a resume",
    "motion": "may change on a resume if columns, frame rate and splits stay the same",
}


@dataclass(frozen=True)
class Key:
    """A key of a profile.

    Args:
        path: its JSON path, such as `rvqvae.model.width`.
        flag: the flag of training that sets it, with its dashes; empty where there is none.
        values: what may be given, in words.
        baseline: its value in the profile `baseline`, as JSON.
        best: the same of `best`.
        meaning: as in the schema.
        resume: whether it may change when a run is resumed: yes, no, or "motion" where the key may change and the
            motion that comes of it may not.
    """

    path: str
    flag: str
    values: str
    baseline: str
    best: str
    meaning: str
    resume: str

    @property
    def lines(self) -> list[Line]:
        """The key in words, for a terminal."""
        given, values = f" or {self.flag}" if self.flag else "", self.values
        if self.flag and values == _WORDS[bool]:
            words = PRECISIONS if self.flag == "--mixed_precision" else ON_OFF
            values += f" (as a flag: {_either(list(words))})"
        both = self.baseline if self.best == self.baseline else f"{self.baseline}, in best {self.best}"
        facts = f"{values}; baseline: {both}; {_RESUMES[self.resume]}"
        return [[(self.path, "title"), given], f"    {facts}", f"    {self.meaning}"]

    @property
    def group(self) -> str:
        """The object of the profile that the key is listed with: `deepspeed`, or a section of `rvqvae`."""
        above = self.path.split(".")
        return above[1] if above[0] == "rvqvae" else "deepspeed"


def all_keys() -> list[Key]:
    """Returns every key that a profile may hold, in the order of its objects."""
    shown = [load_profile(name).model_dump(mode="json", by_alias=True) for name in _DEFAULTS_OF]
    flags = {path: f"--{flag}" for flag, path in PROFILE_FLAGS.items()}
    found = []
    for path, field, facts in _fields(Profile, "", None):
        baseline, best = (json.dumps(_value_at(values, path, field)) for values in shown)
        meaning = " ".join((field.description or "").split())
        found.append(
            Key(path, flags.get(path, ""), _values(field), baseline, best, meaning, resume=_on_resume(path, facts))
        )
    return found


def keys_about(word: str) -> list[Key]:
    """Returns the keys with a word, in any case, in path, flag or meaning; those with it in their names come first."""
    word, keys = word.lower(), all_keys()
    named = [key for key in keys if word in key.path.lower() or word in key.flag]
    return [*named, *(key for key in keys if key not in named and word in key.meaning.lower())]


def markdown() -> str:
    """Returns the part of `docs/profiles.md` that lists every key, and those of DeepSpeed's that a profile refuses."""
    keys, lines = all_keys(), []
    for group, title in TITLES.items():
        head = title[:1].upper() + title[1:]
        lines += [f"### {head}", "", "| key | flag | values | `baseline` | `best` | on resume | meaning |"]
        lines.append("|---|---|---|---|---|---|---|")
        lines += [_row(key) for key in keys if key.group == group]
        lines.append("")
    lines += ["### DeepSpeed's keys that a profile refuses", "", "| key | in its place |", "|---|---|"]
    lines += [f"| `{key}` | {_cell(instead)} |" for key, instead in NOT_USED.items()]
    lines.append("| `zero_optimization.stage3_…` | " + _cell(NOT_USED["zero_optimization.offload_param"]) + " |")
    return "\n".join(lines) + "\n"


def _row(key: Key) -> str:
    name = key.path.removeprefix(f"rvqvae.{key.group}.")
    best = "" if key.best == key.baseline else f"`{key.best}`"
    flag = f"`{key.flag}`" if key.flag else ""
    cells = (f"`{name}`", flag, key.values, f"`{key.baseline}`", best, key.resume, key.meaning)
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fields(section: type[BaseModel], above: str, facts: Facts | None) -> Iterator[tuple[str, FieldInfo, Facts | None]]:
    """Yields path, field and facts of every key below a section; a key whose value is a section has its keys' place."""
    for name, field in section.model_fields.items():
        if name in _HIDDEN:
            continue
        path = f"{above}{field.alias or name}"
        own = next((entry for entry in field.metadata if isinstance(entry, Facts)), facts)
        below = _section_in(field.annotation)
        if below is None:
            yield path, field, own
        else:
            yield from _fields(below, f"{path}.", own)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    kinds = [annotation, *typing.get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _value_at(values: Any, path: str, field: FieldInfo) -> Any:
    """The value at a path; where an object above it is left out, the default of the key itself."""
    for key in path.split("."):
        if values is None:
            return field.get_default()
        values = values[key]
    return values


def _on_resume(path: str, facts: Facts | None) -> str:
    if facts is None:
        return "yes"
    if facts.resume == "fixed":
        return "no"
    of_motion = isinstance(facts, DataFacts) and facts.store != "no"
    return "motion" if of_motion or path == "rvqvae.data.body_parts" else "yes"


def _values(field: FieldInfo) -> str:
    return _either(_kinds(field.annotation, field.metadata))


def _kinds(annotation: Any, limits: Sequence[Any]) -> list[str]:
    """The values that an annotation takes, in words, one per kind; `limits` are those of the annotation itself."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kinds(inner[0], [*inner[1:], *limits])
    if origin in (typing.Union, types.UnionType):
        return [word for kind in inner for word in _kinds(kind, limits)]
    if origin is typing.Literal:
        return [json.dumps(value).strip('"') for value in inner]
    if origin is list:
        length = {type(limit): limit for limit in _all_limits(limits)}.get(MaxLen)
        words = [
            _PLURALS.get(word.split(" ")[0], "") + "".join(word.partition(" ")[1:]) for word in _kinds(inner[0], ())
        ]
        return [f"list of {f'{length.max_length} ' if length else ''}{_either(words)}"]
    if origin is dict and inner[1] is Any:
        return ["object"]
    if origin is dict:
        return [f"object of names, each with {_either(_kinds(inner[1], ()))}"]
    return [f"{_WORDS[annotation]}{_range(_all_limits(limits))}"]


def _all_limits(metadata: Iterable[Any]) -> list[Any]:
    """The limits in an annotation's metadata, those inside pydantic's fields too."""
    found: list[Any] = []
    for entry in metadata:
        found += _all_limits(entry.metadata) if isinstance(entry, FieldInfo) else [entry]
    return found


def _range(limits: list[Any]) -> str:
    """` from 0 to 1` and the like; empty where there are no limits."""
    words = []
    for limit in limits:
        if isinstance(limit, Gt):
            words.append(f"above {limit.gt}")
        elif isinstance(limit, Ge):
            words.append(f"from {limit.ge}")
        elif isinstance(limit, Lt):
            words.append(f"below {limit.lt}")
        elif isinstance(limit, Le):
            words.append(f"to {limit.le}")
    return f" {' '.join(words)}" if words else ""


def _either(words: Sequence[str]) -> str:
    """`a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
