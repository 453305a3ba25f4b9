"""The folders of tokenizers as far as they can be told without torch."""

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
"""The folder of a run\'s tokenizer, and of a body\'s beside the runs of its parts."""
CONFIG, WEIGHTS, CARD = reading.CONFIG, reading.WEIGHTS, reading.CARD
FILES = (CONFIG, WEIGHTS, CARD)
"""All that a tokenizer's folder has."""
BODY = reading.BODY
"""In the folder of a body's tokenizer: names its parts, each of which lies in a folder of its name."""
_OWN_KEYS = (
    *("format_version", reading.MARK, "fingerprint", "model", "in_features", "fps", "code_rate", "joint_names"),
    *("layout", "normalisation"),
)
"""Keys of `config.json` that are not `details`."""
_MOST_LEVELS, _MOST_CODES = 2**12, 2**28
"""Levels, and codes of all levels, of any tokenizer: their counters are in no file."""
_MOST_COLUMNS = 2**16
"""Of a body's motion, as of any."""


@dataclass(frozen=True, eq=False)
class TokenizerConfig:
    """What `config.json` says."""

    folder: Path
    model: ModelConfig
    layout: Layout
    fps: float
    mean: NDArray[np.float32]
    """float32 `[C]`, as is `std`."""
    std: NDArray[np.float32]
    details: dict[str, Any]
    """What else it says: body part, training step, scores."""

    @property
    def in_features(self) -> int:
        return len(self.mean)


def is_tokenizer(folder: Path) -> bool:
    """Whether a folder holds an exported tokenizer, whatever its state."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read_config(folder: Path) -> TokenizerConfig:
    """Reads a tokenizer's config, which is that of its weights.

    Raises:
        UserError: naming the folder or file and what is wrong with it.
    """
    return config_of(open_folder(folder))


def open_folder(folder: Path, content: str | None = None) -> reading.Saved:
    """As `ds_rvqvae.tokenizer.saved.reading.open_saved`, and says what may have been meant by a folder that has none
    of the files."""
    try:
        saved = reading.open_saved(folder, content)
    except reading.MissingError as error:
        raise UserError(f"{error}{hint_of(folder)}") from None
    for warning in saved.warnings:
        logging.getLogger("ds_rvqvae").warning(warning)
    return saved


def config_of(saved: reading.Saved) -> TokenizerConfig:
    """What a tokenizer's files say; raises UserError where that cannot be, or cannot be theirs."""
    config, file = saved.values, saved.source
    try:
        if config["format_version"] != FORMAT_VERSION:
            raise UserError(f"{file}: format_version {config['format_version']}, known here: {FORMAT_VERSION}")
        model = model_config_from_dict(config["model"], str(file))
        features, fps = config["in_features"], config["fps"]
        mean, std = statistics_from(config["normalisation"])
        if len(mean) != features:
            raise ValueError(f"normalisation has {len(mean)} columns, not {features}")
        layout = layout_from_json(config["layout"], features)
        if not isinstance(fps, int | float) or not 0 < fps < 1e5:
            raise ValueError(f"fps is {fps}, not a number of frames a second")
        if (part := config.get("body_part")) is not None and not is_part_name(part):
            raise ValueError(f"body_part is {part!r}, not the name of a body part")
        details = explicit_reading({key: value for key, value in config.items() if key not in _OWN_KEYS})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{file}: not a tokenizer's config: {type(error).__name__}: {error}") from None
    _check_sizes(model, saved)
    return TokenizerConfig(saved.folder, model, layout, float(fps), mean, std, details)


def _check_sizes(model: ModelConfig, saved: reading.Saved) -> None:
    """Raises UserError where a model of these settings could not be built, or be that of the weights; the shapes of all
    tensors are compared with those of the model only once it is built, and one too large takes for ever."""
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
    """What `body.json` says."""

    parts: list[str]
    layout: Layout | None
    """Of the whole motion; None in a file of before there were parts of one's own."""
    contents: dict[str, str]
    """What the parts' weights say of their content; none in files of versions up to 0.3."""
    text: bytes
    """All of it."""


def read_body(folder: Path) -> tuple[list[str], Layout | None]:
    """The parts that a body's `body.json` names, and the layout of the whole motion, as `read_body_table`."""
    table = read_body_table(folder)
    return table.parts, table.layout


def read_body_table(folder: Path) -> BodyTable:
    """Reads a body's `body.json`.

    Raises:
        UserError: naming the file and what is wrong with it.
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
        raise UserError(f"{file}: not a body's: {type(error).__name__}: {error}; copy or export it again") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{file}: format_version {version}, known here: {FORMAT_VERSION}")
    # Names of folders: none that leads out of this one.
    if not isinstance(parts, list) or not parts or not all(map(is_part_name, parts)):
        raise UserError(f"{file}: parts are {json.dumps(parts)[:200]}, not names of body parts")
    return BodyTable(parts, layout, contents, text)


def statistics_from(values: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`mean` and `std`, float32 `[C]`; raises ValueError where they cannot normalise."""
    try:
        with np.errstate(over="ignore"):
            mean, std = (np.asarray(values[key], np.float32) for key in ("mean", "std"))
    except OverflowError:
        raise ValueError("normalisation: a mean or std is beyond what float32 can hold") from None
    if mean.ndim != 1 or mean.shape != std.shape:
        raise ValueError(f"normalisation: mean has the shape {list(mean.shape)}, std {list(std.shape)}")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError("normalisation: a mean or std is not finite in float32, or a std is not above 0")
    return mean, std


def hint_of(folder: Path) -> str:
    """What may have been meant by a folder that is no tokenizer's."""
    if (folder / BODY).is_file():
        return "; it is a body's, with a tokenizer in the folder of each part, which BodyTokenizer loads"
    if (folder / TOKENIZER / CONFIG).is_file() or (folder / TOKENIZER / BODY).is_file():
        return f"; did you mean {folder / 'tokenizer'}?"
    if (folder.parent / BODY).is_file():
        return f"; the body in {folder.parent} has no such part"
    return ""


READING_KEYS = sorted(keys_that(DataConfig, DataFacts, lambda facts: facts.reading), reverse=True)
"""Keys of `rvqvae.data` that say what the numbers in a file mean. A tokenizer keeps those of its training motion, in
this order."""


def reading_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer keeps of a store's settings: the entry `reading` of its details, without keys that are null."""
    return {key: value for key in READING_KEYS if (value := settings.get(key)) is not None}


def check_same_reading(readings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError where the motion of body parts was read by other rules.

    Args:
        readings: by part, as `reading_of` gives them.
    """
    versions = {part: reading.get("reading_version", 1) for part, reading in readings.items()}
    if len(set(versions.values())) > 1:
        found = ", ".join(f"{part} {version}" for part, version in versions.items())
        raise UserError(
            f"the motion of the parts is read by different rules (rvqvae.data.reading_version: {found}), of which a "
            "body has one; train them anew with the same"
        )


def explicit_reading(details: dict[str, Any]) -> dict[str, Any]:
    """The details of a tokenizer that was saved, with its `reading_version`; it is 1 where they do not say."""
    return details | {"reading": {"reading_version": 1, **(details.get("reading") or {})}}


def assumed_at_import(details: Mapping[str, Any]) -> str | None:
    """What nothing has vouched for in a tokenizer that a version up to 0.2 made of another system's checkpoint."""
    origin = details.get("imported_from")
    if not isinstance(origin, Mapping) or "settings" in origin:
        return None
    return (
        "imported by a version up to 0.2, which took relu, a dilation growth of 3 and the usual frame rate where "
        "nothing said otherwise; import it again, which says what came from where"
    )


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


def columns_for(wanted: Layout, layout: Layout, takes_bare: bool = True) -> NDArray[np.int64]:
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


def own_columns(wanted: Layout, clip: Clip, details: Mapping[str, Any], file: str | Path = "") -> NDArray[np.int64]:
    """The columns of a clip that a tokenizer with this layout and these details takes, int64, in its order.

    Args:
        file: that the clip is of; where one is named, what is wrong with it is a UserError that names it.

    Raises:
        ClipError: naming a channel that the motion does not have.
    """
    # A part's columns are rarely stored by themselves; as many of something else would go unnoticed.
    try:
        return columns_for(wanted, clip.layout, takes_bare=details.get("body_part") is None)
    except ClipError as error:
        if not file:
            raise
        raise UserError(f"{file}: {error}") from None
