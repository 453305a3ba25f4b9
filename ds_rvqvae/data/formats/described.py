"""Skeletons, robots and names of joints that keys of `rvqvae.data` give by the name of a file.

The file is read when a reader is opened, and the key then holds its content. So a store and a tokenizer have it
themselves. A run's profile keeps the name of the file.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ds_rvqvae.config.data import DESCRIBED, DataConfig
from ds_rvqvae.data.formats.bvh.file import read_joints
from ds_rvqvae.data.formats.bvh.kept import turning_tree
from ds_rvqvae.data.formats.bvh.skeletons import bvh_skeleton, load_skeleton
from ds_rvqvae.data.formats.robots.model import robot_from_file
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_json
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.process.home import expanded


def described(config: DataConfig) -> DataConfig:
    """Returns the settings with the content of each described file in place of its name; raises UserError."""
    changed: dict[str, Any] = {}
    for key in DESCRIBED:
        value = getattr(config, key)
        if isinstance(value, str):
            file = expanded(value)
            try:
                changed[key] = _READ[key](file)
            except OSError as error:
                raise UserError(f"rvqvae.data.{key}: {file}: cannot be read: {error.strerror or error}") from None
            except ClipError as error:
                raise UserError(f"rvqvae.data.{key}: {file}: {error}") from None
    return config.with_values(changed) if changed else config


def said(value: Any) -> str:
    """Returns a setting's value for messages: in JSON, or as the size and the hash of an object."""
    text = json.dumps(value, sort_keys=True)
    if not isinstance(value, dict):
        return text
    names = value.get("joint_names", value)
    return f"an object of {len(names)} joints ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _skeleton(file: Path) -> dict[str, Any]:
    """Returns `joint_names`, `parents` and, if the file has them, `offsets` in metres."""
    if file.suffix.lower() == ".json":
        return _object(file)
    if file.suffix.lower() == ".bvh":
        return bvh_skeleton(file, needs_unit=False)
    skeleton = load_skeleton(file)
    return {
        "joint_names": list(skeleton.joint_names),
        "parents": list(skeleton.parents),
        "offsets": skeleton.offsets.tolist(),
    }


def _robot(file: Path) -> dict[str, Any]:
    if file.suffix.lower() == ".json":
        return _object(file)
    return robot_from_file(file)


def _joints_of(file: Path) -> dict[str, Any]:
    """Returns the names and parents of a BVH file's joints that turn; a parent of -1 has no such joint above it."""
    return turning_tree(read_joints(file))


def _names(file: Path) -> dict[str, Any]:
    names = _object(file)
    if not names or not all(isinstance(name, str) and name for name in names.values()):
        raise ClipError("not an object of names: each joint's name in the files, and the name that it gets")
    return names


def _object(file: Path) -> dict[str, Any]:
    try:
        entries = read_json(file)
    except ValueError as error:
        raise ClipError(f"not JSON: {error}") from None
    if not isinstance(entries, Mapping):
        raise ClipError("not a JSON object")
    return dict(entries)


_READ: dict[str, Callable[[Path], dict[str, Any]]] = {
    "skeleton": _skeleton,
    "robot": _robot,
    "joint_names": _names,
    "skeleton_of": _joints_of,
}
"""How each key's file is read."""
