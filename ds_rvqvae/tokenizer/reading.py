"""Motion as a tokenizer takes it: the settings its files are read with, the columns that are its own, the figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from ds_rvqvae.data.clips import ClipError
from ds_rvqvae.data.layout import Layout, feature_layout, missing_channels, take_channels
from ds_rvqvae.data.skeleton import Skeleton, builtin_skeleton, skeleton_from_json
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import DataConfig

READING_KEYS = ("up_axis", "metres_per_unit")
"""Keys of `rvqvae.data` that say what the numbers in a file mean. A tokenizer keeps those of its training motion."""


def reading_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer keeps of a store's settings, where it is not the default: the entry `reading` of its details."""
    defaults = DataConfig()
    found = {key: settings.get(key, getattr(defaults, key)) for key in READING_KEYS}
    return {key: value for key, value in found.items() if value != getattr(defaults, key)}


def reading_config(details: Mapping[str, Any], fps: float, path: str | None = None) -> DataConfig:
    """How files are read for a tokenizer: at its frame rate, as the motion was that it was trained on.

    Args:
        details: of a `MotionTokenizer`.

    Raises:
        UserError: where its config file says what cannot be.
    """
    reading = details.get("reading") or {}
    try:
        return DataConfig(path=path, fps=fps, **{key: reading[key] for key in READING_KEYS if key in reading})
    except (ValidationError, TypeError) as error:
        raise UserError(f"the tokenizer's config: reading: {str(error).splitlines()[0]}: {reading}") from None


def figure_of(skeleton: dict[str, Any] | None, motion: str) -> Skeleton:
    """The skeleton that files of motion bring (`Take.skeleton`), named after them.

    The built-in one stands in where they bring none, or one that is no figure in metres: no joint will match it then,
    and no distance is measured.
    """
    try:
        return builtin_skeleton() if skeleton is None else skeleton_from_json(skeleton, motion)
    except ClipError:
        return builtin_skeleton()


def columns_for(wanted: Layout, layout: Layout, takes_bare: bool = True) -> np.ndarray:
    """The columns of motion laid out as `layout` that a tokenizer takes, int64, in its order.

    Args:
        wanted: the tokenizer's layout.
        takes_bare: columns about which nothing is known are taken for the tokenizer's own, where they are as many.

    Raises:
        ClipError: naming a channel that the motion does not have.
    """
    missing = missing_channels(layout, wanted)
    if missing is None:
        return take_channels(layout, [part.name for part in wanted])[0]
    width, wanted_width = layout[-1].stop, wanted[-1].stop
    bare = feature_layout(width)
    if layout == bare and takes_bare and width == wanted_width:
        return np.arange(width)
    if width != wanted_width and (layout == bare or wanted == feature_layout(wanted_width)):
        raise ClipError(f"{width} columns, this tokenizer takes {wanted_width}")
    like = next((part for part in layout if part.name == missing.name), None)
    names = ", ".join(part.name for part in layout[:3]) + (", …" if len(layout) > 3 else "")
    has = f"{like.kind} in {like.width} columns" if like else names
    raise ClipError(
        f"no {missing.name} ({missing.kind} in {missing.width} columns), which this tokenizer takes; it has {has}"
    )
