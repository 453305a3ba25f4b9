"""Read tokenizer folders without torch."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ds_rvqvae.config.data import DataConfig, is_part_name
from ds_rvqvae.config.facts import DataFacts, keys_that
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import model_config_from_dict
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import parse_json
from ds_rvqvae.motion.clip import Clip, ClipError
from ds_rvqvae.motion.layout import Layout, feature_layout, layout_from_json, missing_channels, take_channels
from ds_rvqvae.tokenizer.saved import reading

FORMAT_VERSION = 1
TOKENIZER = "tokenizer"
"""Name of the folder of a run's tokenizer, and of a body's tokenizer beside the runs of its parts."""
CONFIG, WEIGHTS, CARD = reading.CONFIG, reading.WEIGHTS, reading.CARD
FILES = (CONFIG, WEIGHTS, CARD)
"""All files of a tokenizer's folder."""
BODY = reading.BODY
"""File in the folder of a body's tokenizer; it names the parts, and each part has a folder of its name."""
_OWN_KEYS = (
    *("format_version", reading.MARK, "fingerprint", "model", "in_features", "fps", "code_rate", "joint_names"),
    *("layout", "normalisation"),
)
"""Keys of `config.json` that are not `details`."""
_MOST_LEVELS, _MOST_CODES = 2**12, 2**28
"""Maximum levels, and codes of all levels, of any tokenizer: no tensor in the file bounds them."""
_MOST_COLUMNS = 2**16
"""Maximum columns of a body's motion, and of any motion."""


@dataclass(frozen=True, eq=False)
class TokenizerConfig:
    """The contents of `config.json`."""

    folder: Path
    model: ModelConfig
    layout: Layout
    fps: float
    mean: NDArray[np.float32]
    """float32 `[C]`, like `std`."""
    std: NDArray[np.float32]
    details: dict[str, Any]
    """All other keys: body part, training step, scores."""

    @property
    def in_features(self) -> int:
        return len(self.mean)


def is_tokenizer(folder: Path) -> bool:
    """Returns whether a folder has the files of an exported tokenizer; their content is not checked."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read_config(folder: Path) -> TokenizerConfig:
    """Reads a tokenizer's config, and checks that it belongs to the weights.

    Raises:
        UserError: names the folder or file and the problem.
    """
    return config_of(open_folder(folder))


def open_folder(folder: Path, content: str | None = None) -> reading.Saved:
    """Opens a folder as `ds_rvqvae.tokenizer.saved.reading.open_saved` does; the error for a folder without these files
    also suggests another folder."""
    try:
        saved = reading.open_saved(folder, content)
    except reading.MissingError as error:
        raise UserError(f"{error}{hint_of(folder)}") from None
    for warning in saved.warnings:
        logging.getLogger("ds_rvqvae").warning(warning)
    return saved


def config_of(saved: reading.Saved) -> TokenizerConfig:
    """Returns the config in a tokenizer's files; raises UserError if it is not valid, or does not fit the weights."""
    config, file = saved.values, saved.source
    try:
        if config["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{file}: format_version is {config['format_version']}; this release reads version {FORMAT_VERSION}"
            )
        model = model_config_from_dict(config["model"], str(file))
        features, fps = config["in_features"], config["fps"]
        mean, std = statistics_from(config["normalisation"])
        if len(mean) != features:
            raise ValueError(f"normalisation has {len(mean)} columns, not {features}")
        layout = layout_from_json(config["layout"], features)
        if not isinstance(fps, int | float) or not 0 < fps < 1e5:
            raise ValueError(f"fps is {fps}, not a frame rate")
        if (part := config.get("body_part")) is not None and not is_part_name(part):
            raise ValueError(f"body_part is {part!r}, not the name of a body part")
        details = explicit_reading({key: value for key, value in config.items() if key not in _OWN_KEYS})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{file}: not a tokenizer's config: {type(error).__name__}: {error}") from None
    _check_sizes(model, saved)
    return TokenizerConfig(saved.folder, model, layout, float(fps), mean, std, details)


def _check_sizes(model: ModelConfig, saved: reading.Saved) -> None:
    """Raises UserError if these settings are too large for the weights. The shapes of all tensors are compared only
    after the model is built, and building one that is far too large would take for ever."""
    shapes = saved.weights.shapes
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    for key, size, most in (
        ("depth", model.depth * model.down_t, len(shapes)),
        ("width", model.width, widest),
        ("code_dim", model.code_dim, widest),
        ("num_quantizers", model.num_quantizers, _MOST_LEVELS),
        ("nb_code", model.num_quantizers * model.nb_code, _MOST_CODES),
        ("fsq_levels", model.num_quantizers * math.prod(model.fsq_levels or ()), _MOST_CODES),
    ):
        if size > most:
            raise UserError(
                f"{saved.source}: model.{key} is {str(getattr(model, key))[:20]}, more than {saved.weights.file.name} "
                "can hold; copy or export it again"
            )


@dataclass(frozen=True)
class BodyTable:
    """The contents of `body.json`."""

    parts: list[str]
    layout: Layout | None
    """Layout of the full motion; None in files of older versions, which had no parts of your own."""
    contents: dict[str, str]
    """The content hash of each part's weights; empty in files of versions up to 0.3."""
    text: bytes
    """The bytes of the file."""


def read_body(folder: Path) -> tuple[list[str], Layout | None]:
    """Reads the parts in a body's `body.json` and the layout of the full motion, as `read_body_table` does."""
    table = read_body_table(folder)
    return table.parts, table.layout


def read_body_table(folder: Path) -> BodyTable:
    """Reads a body's `body.json`.

    Raises:
        UserError: names the file and the problem.
    """
    file = folder / BODY
    try:
        text = file.read_bytes()
        values = parse_json(text)
        version, parts, layout = values["format_version"], values["parts"], values.get("layout")
        if layout is not None:
            columns = layout[-1]["columns"][1]
            if columns > _MOST_COLUMNS:
                raise ValueError(f"layout: {columns} columns, more than {_MOST_COLUMNS:,}")
            layout = layout_from_json(layout, columns)
        contents = dict(values.get("contents", {}))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not the file of a body's tokenizer: {reason}; copy or export it again") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{file}: format_version is {version}; this release reads version {FORMAT_VERSION}")
    # Parts are names of folders, so none may lead out of this one.
    if not isinstance(parts, list) or not parts or not all(map(is_part_name, parts)):
        raise UserError(f"{file}: parts are {json.dumps(parts)[:200]}, not names of body parts")
    return BodyTable(parts, layout, contents, text)


def statistics_from(values: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns `mean` and `std`, float32 `[C]`; raises ValueError if they cannot be used to normalise."""
    try:
        with np.errstate(over="ignore"):
            mean, std = (np.asarray(values[key], np.float32) for key in ("mean", "std"))
    except OverflowError:
        raise ValueError("normalisation: a mean or std is too large for float32") from None
    if mean.ndim != 1 or mean.shape != std.shape:
        raise ValueError(f"normalisation: mean has the shape {list(mean.shape)}, std {list(std.shape)}")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError("normalisation: a mean or std is not finite in float32, or a std is not above 0")
    return mean, std


def hint_of(folder: Path) -> str:
    """Returns a suggestion for a folder that is not a tokenizer's."""
    if (folder / BODY).is_file():
        return "; it is a body's tokenizer, with one folder per part; load it with BodyTokenizer"
    if (folder / TOKENIZER / CONFIG).is_file() or (folder / TOKENIZER / BODY).is_file():
        return f"; did you mean {folder / 'tokenizer'}?"
    if (folder.parent / BODY).is_file():
        return f"; the body's tokenizer in {folder.parent} has no such part"
    return ""


READING_KEYS = sorted(keys_that(DataConfig, DataFacts, lambda facts: facts.reading), reverse=True)
"""Keys of `rvqvae.data` that say what the numbers in a motion file mean. A tokenizer keeps those of its training
motion, in this order."""


def reading_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a store's settings that a tokenizer keeps: the entry `reading` of its details, without null keys."""
    return {key: value for key in READING_KEYS if (value := settings.get(key)) is not None}


def check_same_reading(readings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError if the motion of the body parts was read by different rules.

    Args:
        readings: by part, as `reading_of` returns them.
    """
    versions = {part: reading.get("reading_version", 1) for part, reading in readings.items()}
    if len(set(versions.values())) > 1:
        found = ", ".join(f"{part} {version}" for part, version in versions.items())
        raise UserError(
            f"the motion of the parts is read by different rules (rvqvae.data.reading_version: {found}), but a body "
            "needs the same for all; train the parts again with one reading_version"
        )


def explicit_reading(details: dict[str, Any]) -> dict[str, Any]:
    """Returns a saved tokenizer's details with a `reading_version`, which is 1 if they have none."""
    return details | {"reading": {"reading_version": 1, **(details.get("reading") or {})}}


def assumed_at_import(details: Mapping[str, Any]) -> str | None:
    """Returns a warning about settings that a version up to 0.2 assumed when it imported a checkpoint, else None."""
    origin = details.get("imported_from")
    if not isinstance(origin, Mapping) or "settings" in origin:
        return None
    return (
        "imported by a version up to 0.2, which assumed relu, a dilation growth of 3 and the usual frame rate where "
        "the checkpoint gave none; import it again: that tells where each setting comes from"
    )


def reading_config(details: Mapping[str, Any], fps: float, path: str | None = None) -> DataConfig:
    """Returns the settings to read files for a tokenizer: its frame rate, and the reading rules of its training motion.

    Args:
        details: of a `MotionTokenizer`.

    Raises:
        UserError: its config file has settings that are not valid.
    """
    reading = details.get("reading") or {}
    try:
        return DataConfig(path=path, fps=fps, **{key: reading[key] for key in READING_KEYS if key in reading})
    except (ValidationError, TypeError) as error:
        raise UserError(f"the tokenizer's config: reading: {str(error).splitlines()[0]}: {reading}") from None


def columns_for(wanted: Layout, layout: Layout, takes_bare: bool = True) -> NDArray[np.int64]:
    """Returns the indices, in motion of this `layout`, of the columns that a tokenizer takes, int64, in its order.

    Args:
        wanted: the tokenizer's layout.
        takes_bare: take columns without names for the tokenizer's own if their number agrees.

    Raises:
        ClipError: names an entry of the tokenizer's layout that the motion does not have.
    """
    missing = missing_channels(layout, wanted)
    if missing is None:
        return take_channels(layout, [part.name for part in wanted])[0]
    width, wanted_width = layout[-1].stop, wanted[-1].stop
    bare = feature_layout(width)
    # Flattened joint positions have as many columns as what a tokenizer of joint positions takes, but other ones.
    takes_bare = takes_bare and all(part.kind != "relative_position" for part in wanted)
    if layout == bare and takes_bare and width == wanted_width:
        return np.arange(width)
    if width != wanted_width and (layout == bare or wanted == feature_layout(wanted_width)):
        raise ClipError(f"{width} columns, this tokenizer takes {wanted_width}")
    like = next((part for part in layout if part.name == missing.name), None)
    names = ", ".join(part.name for part in layout[:3]) + (", …" if len(layout) > 3 else "")
    has = f"{like.kind} in {like.width} columns" if like else names
    raise ClipError(
        f"no {missing.name} ({missing.kind} in {missing.width} columns), which this tokenizer takes; the motion has "
        f"{has}"
    )


def own_columns(wanted: Layout, clip: Clip, details: Mapping[str, Any], file: str | Path = "") -> NDArray[np.int64]:
    """Returns the indices of a clip's columns that a tokenizer with this layout and these details takes, int64, in its
    order.

    Args:
        file: the clip's file; if given, an error is a UserError that names it.

    Raises:
        ClipError: names an entry of the tokenizer's layout that the motion does not have.
    """
    # A part's columns are rarely stored by themselves; the same number of other columns would go unnoticed.
    try:
        return columns_for(wanted, clip.layout, takes_bare=details.get("body_part") is None)
    except ClipError as error:
        if not file:
            raise
        raise UserError(f"{file}: {error}") from None
