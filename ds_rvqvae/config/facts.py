"""Facts about the keys of a profile's `rvqvae` object; they stand on the keys, and lists of keys are derived from them.

A key says its facts in its annotation: `width: Annotated[Count, WEIGHTS] = 512`, where `WEIGHTS` is a `ModelFacts`.
`keys_that` gives the keys of a section that share a fact. pydantic keeps the facts and makes nothing of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is asked of every key. No fact has a default, so that a new key has to say each."""

    resume: Literal["fixed", "free"]
    """fixed: a run that goes on has the value that it began with. Of the model's keys also: a run that starts from a
    tokenizer has the tokenizer's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts(Facts):
    """What is asked of the keys of `rvqvae.model`."""

    codes: Literal["same", "weights", "setting", "setting if set"]
    """What another value does to codes. same: nothing. weights: the weights have other shapes, by which the fingerprint
    of a tokenizer tells. setting if set: the same weights give or mean other codes; the fingerprint covers the value
    where it is not the default. setting: covered always. No new key can be that: the fingerprints of all tokenizers
    would change."""
    without_codebooks: bool
    """Another value than the default asks for a quantizer without codebooks, and without a commitment loss."""
    codebooks_only: bool
    """Means nothing to a quantizer without codebooks, and is refused beside the key that asks for one."""
    lineage: Literal["same", "gradient", "codes", "averages"]
    """What of MoMask's own arithmetic takes the key's place, so that it is refused beside `lineage`: the gradient that
    passes its quantizer, its choice of codes, or its averages. same: the key holds there too."""
    formats: Literal["any", "default", "some"]
    """Which values can be exported to the formats of other systems: any; none but the default; or those that
    `tokenizer/foreign/writing.py` names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts(Facts):
    """What is asked of the keys of `rvqvae.data`."""

    store: Literal["no", "source", "setting"]
    """Whether another value needs another store: no; source: it names the files that a store is made of; setting: it
    says how a store is made of them, and stands in the store."""
    reading: bool
    """Says what the numbers in a file mean, so that a tokenizer keeps it for the files that it is to encode."""


FREE = Facts(resume="free")
"""Of keys of `rvqvae.loss`, `rvqvae.schedule` and `rvqvae.training`: may change whenever a run goes on."""

F = TypeVar("F", bound=Facts)


def facts_of(section: type[BaseModel], kind: type[F]) -> dict[str, F]:
    """The facts of each key of a section, in the section's order."""
    metadata = {key: field.metadata for key, field in section.model_fields.items()}
    return {key: fact for key, entries in metadata.items() for fact in entries if isinstance(fact, kind)}


def keys_that(section: type[BaseModel], kind: type[F], holds: Callable[[F], bool]) -> tuple[str, ...]:
    """The keys of a section for whose facts `holds` is true, in the section's order.

    A key whose value is itself a section counts as one; its own keys have the same facts.
    """
    return tuple(key for key, facts in facts_of(section, kind).items() if holds(facts))


def fixed_keys(section: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a section that cannot change when a run goes on, in the section's order."""
    return keys_that(section, Facts, lambda facts: facts.resume == "fixed")
