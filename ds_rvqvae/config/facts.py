"""Facts about the keys of a profile's `rvqvae` object, stated on each key; lists of keys are derived from them.

A key states its facts in its annotation: `width: Annotated[Count, WEIGHTS] = 512`, where `WEIGHTS` is a `ModelFacts`.
`keys_that` returns the keys of a section that share a fact. pydantic stores the facts and does not use them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts that every key has. None has a default, so that a new key must state each."""

    resume: Literal["fixed", "free"]
    """fixed: a resumed run keeps the value that it began with; for keys of the model, a run that starts from a
    tokenizer also keeps the tokenizer's value. free: the value may change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts(Facts):
    """Facts of the keys of `rvqvae.model`."""

    codes: Literal["same", "weights", "setting", "setting if set"]
    """The effect of another value on codes. same: none. weights: the weights have other shapes, which changes the
    fingerprint of a tokenizer. setting if set: the same weights give other codes, or give codes another meaning; the
    fingerprint covers the value if it is not the default. setting: the same, but the fingerprint always covers the
    value. A new key cannot be `setting`: the fingerprints of all tokenizers would change."""
    without_codebooks: bool
    """Whether a value other than the default selects a quantizer without codebooks and without a commitment loss."""
    codebooks_only: bool
    """Whether the key has no meaning for a quantizer without codebooks, so that it is refused beside the key that
    selects one."""
    lineage: Literal["same", "gradient", "codes", "averages"]
    """The part of MoMask's own arithmetic that replaces the key, so that it is refused beside `lineage`: the gradient
    through its quantizer, its choice of codes, or its averages. same: the key is used there too."""
    formats: Literal["any", "default", "some"]
    """Values that can be exported to the formats of other systems: any; only the default; or those that
    `tokenizer/foreign/writing.py` names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts(Facts):
    """Facts of the keys of `rvqvae.data`."""

    store: Literal["no", "source", "setting", "setting if set"]
    """Whether another value needs another store: no; source: it names the files that a store is made from; setting: it
    says how a store is made from them, and is saved in the store; setting if set: the same, but null is not saved."""
    reading: bool
    """Whether the key says what the numbers in a file mean, so that a tokenizer keeps it for the files that it will
    encode."""


FREE = Facts(resume="free")
"""Facts of keys of `rvqvae.loss`, `rvqvae.schedule` and `rvqvae.training`: they may change when a run is resumed."""

F = TypeVar("F", bound=Facts)


def facts_of(section: type[BaseModel], kind: type[F]) -> dict[str, F]:
    """Returns the facts of each key of a section, in the section's order."""
    metadata = {key: field.metadata for key, field in section.model_fields.items()}
    return {key: fact for key, entries in metadata.items() for fact in entries if isinstance(fact, kind)}


def keys_that(section: type[BaseModel], kind: type[F], holds: Callable[[F], bool]) -> tuple[str, ...]:
    """Returns the keys of a section for whose facts `holds` is true, in the section's order.

    A key whose value is itself a section counts as one; its own keys have the same facts.
    """
    return tuple(key for key, facts in facts_of(section, kind).items() if holds(facts))


def fixed_keys(section: type[BaseModel]) -> tuple[str, ...]:
    """Returns the keys of a section that cannot change when a run is resumed, in the section's order."""
    return keys_that(section, Facts, lambda facts: facts.resume == "fixed")
