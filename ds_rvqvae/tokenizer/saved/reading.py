"""Find the files of a tokenizer's folder that belong together, even while they are replaced or after an interruption.

`model.safetensors` carries its complete config in its metadata, so that renaming this one file replaces the tokenizer.
`config.json` is a copy for users and other tools; it is renamed after the weights. In between, the new copy lies in the
folder under an unfinished name: if this copy agrees with the weights, the config in the weights is used. If no copy
agrees, the files of two tokenizers are mixed, or the copy was changed by hand.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ds_rvqvae.errors import UserError
from ds_rvqvae.files import parse_json, read_json, unfinished_files

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
BODY = "body.json"
MARK = "ds_rvqvae_version"
"""A key that our own `config.json` and `body.json` have."""
_OWN_CONFIG, _OWN_CONTENT = "ds_rvqvae", "ds_rvqvae_content"
"""Keys of the weights' metadata: the text of their config, and a hash of this text and of all tensors."""
_LOOKS, _PAUSE = 8, 0.02
"""How many times a folder is read if its files do not agree, for they may be in replacement; seconds between the first
two reads. The pause grows with each read."""
_SHOWN = 3
_MEANING = dict.fromkeys(("body_part", "reading"))
"""Optional keys of a config that change which motion the codes stand for."""


@dataclass
class Weights:
    """An open weights file; all reads are of this one file, even if another takes its name meanwhile."""

    file: Path
    handle: Any
    """The result of `safe_open`."""
    text: str | None
    """Text of the config that the weights were saved with; None in files of versions up to 0.3."""
    values: dict[str, Any] | None
    """The parsed text."""
    content: str | None
    """The hash of the text and of all tensors when they were saved."""

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The tensors' shapes by name."""
        return {name: self.handle.get_slice(name).get_shape() for name in self.handle.keys()}  # noqa: SIM118


@dataclass
class Saved:
    """A tokenizer's files that belong together."""

    folder: Path
    weights: Weights
    values: dict[str, Any]
    """The config that is used."""
    source: Path
    """The file that it was read from."""
    warnings: list[str] = field(default_factory=list)


class MissingError(UserError):
    """A folder does not have the files of a tokenizer."""


class MixedError(UserError):
    """The files of a folder do not belong together when they are read."""


def metadata_of(text: str, content: str) -> dict[str, str]:
    """Returns the metadata of a weights file.

    Args:
        text: text of its `config.json`.
        content: result of `content_of_tensors`.
    """
    return {"format": "pt", _OWN_CONFIG: text, _OWN_CONTENT: content}


def content_of_tensors(text: str, tensors: Mapping[str, tuple[str, NDArray[np.uint8]]]) -> str:
    """Returns a hash of a config's text and of tensors. Each tensor is given by name as a text of its type and shape,
    and its bytes."""
    digest = xxhash.xxh3_128(text.encode())
    for name, (kind, values) in sorted(tensors.items()):
        digest.update(f"\0{name} {kind}\0".encode())
        digest.update(values.data)
    return digest.hexdigest()


def open_saved(folder: Path, content: str | None = None) -> Saved:
    """Opens a tokenizer's weights, with the config that belongs to them.

    Args:
        content: the content hash that the weights must have, if this is a part of a body. They may still have an
            unfinished name.

    Raises:
        UserError: names the folder or file, the problem and what to do.
    """
    wanted = content or content_listed(folder)
    for look in range(_LOOKS):
        time.sleep(look * _PAUSE)
        try:
            return _look(folder, wanted, is_part=content is not None)
        except MixedError as error:
            refusal = error
    raise refusal


def content_listed(folder: Path) -> str | None:
    """Returns the content hash that `body.json` in the parent folder lists for this folder; None if there is none."""
    try:
        listed = read_json(folder.parent / BODY)["contents"][folder.name]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return listed if isinstance(listed, str) else None


def _look(folder: Path, wanted: str | None, *, is_part: bool) -> Saved:
    # In this order, since a writer replaces the weights first: the weights read are never older than the copy.
    theirs, damage = read_copy(folder / CONFIG)
    weights = open_weights(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else None
    if wanted is not None and (weights is None or weights.content != wanted):
        if (pending := _pending_weights(folder, wanted)) is not None:
            return Saved(folder, pending, pending.values or {}, pending.file)
        if is_part:
            raise MixedError(
                f"{folder}: is not the part that {folder.parent / BODY} was saved with; save the body again, or remove "
                f"the key contents of {BODY} if you replaced the part on purpose"
            )
    for name, missing in ((CONFIG, damage == "missing" and not (weights and weights.values)), (WEIGHTS, not weights)):
        if missing:
            raise MissingError(f"{folder}: not a tokenizer's folder: {name} is missing")
    assert weights is not None
    if weights.values is None:
        if theirs is None:
            raise UserError(f"{folder / CONFIG}: not a tokenizer's config: {damage}; copy or export it again")
        return Saved(folder, weights, theirs, folder / CONFIG)
    if theirs is not None and not (differing := _differing(weights.values, theirs)):
        return Saved(folder, weights, theirs, folder / CONFIG)
    own = Saved(folder, weights, weights.values, weights.file)
    if any(read_copy(file)[0] == weights.values for file in unfinished_files(folder, CONFIG)):
        return own
    if theirs is None:
        own.warnings.append(f"{folder / CONFIG}: {damage}; the same config inside {WEIGHTS} is used")
        return own
    if "fingerprint" not in theirs:
        warning = f"{folder / CONFIG}: has no fingerprint, so it is used although it differs from {WEIGHTS} in"
        return Saved(folder, weights, theirs, folder / CONFIG, [f"{warning} {_names(differing)}"])
    raise MixedError(_mixed(folder, weights.values, theirs, differing))


def read_copy(file: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns the contents of a config file, or None and the reason."""
    try:
        if not file.is_file():
            return None, "missing"
        values = read_json(file)
    except (OSError, ValueError) as error:
        return None, f"{type(error).__name__}: {error}"
    return (values, "") if isinstance(values, dict) else (None, "not an object")


def open_weights(file: Path) -> Weights:
    """Opens a weights file; raises UserError if it is not one."""
    from safetensors import SafetensorError, safe_open  # late: many commands do not need it

    try:
        # Not framework="torch": it opens the file by name again to read it, and may then find another file.
        handle: Any = safe_open(file, framework="numpy")
        metadata = handle.metadata() or {}
        text, values = metadata.get(_OWN_CONFIG), None
        if text is not None:
            values = parse_json(text)
            if not isinstance(values, dict):
                raise ValueError(f"its metadata {_OWN_CONFIG} is not an object")
        return Weights(file, handle, text, values, metadata.get(_OWN_CONTENT) if values else None)
    except (OSError, SafetensorError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{file}: cannot be read as weights: {reason}; copy or export it again") from None


def _pending_weights(folder: Path, content: str) -> Weights | None:
    """Returns unfinished weights with this content hash, which are about to be renamed, else None."""
    for file in unfinished_files(folder, WEIGHTS):
        try:
            weights = open_weights(file)
        except UserError:  # still being written, or just renamed
            continue
        if weights.content == content:
            return weights
    return None


def _differing(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Returns the keys of the weights' config whose values differ in its copy; the copy may have more keys."""
    nothing = object()
    return [
        key for key in {**own, **_MEANING} if not _equal(own.get(key), theirs.get(key, nothing if key in own else None))
    ]


def _equal(own: Any, theirs: Any) -> bool:
    # Also compared as text, since NaN equals itself there.
    return bool(own == theirs) or json.dumps(own, sort_keys=True) == json.dumps(theirs, sort_keys=True, default=str)


def _names(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _mixed(folder: Path, own: dict[str, Any], theirs: dict[str, Any], differing: list[str]) -> str:
    if "fingerprint" in differing:
        found = (str(values.get("fingerprint"))[:12] for values in (own, theirs))
        there, said = found
        return (
            f"{folder}: {WEIGHTS} holds the weights of another tokenizer ({there}) than {CONFIG} says ({said}); copy "
            f"both again, or remove {CONFIG} if you want these weights"
        )
    return (
        f"{folder / CONFIG}: differs from the config that {WEIGHTS} was saved with (in {_names(differing)}); if you "
        f"changed it on purpose, remove its key fingerprint to use it; else remove {CONFIG}, or copy both again"
    )
