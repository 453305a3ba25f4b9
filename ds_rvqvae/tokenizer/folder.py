"""The folders of tokenizers as far as they can be told without torch."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from ds_rvqvae.files import whole_folder
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import Layout, feature_layout, layout_from_json, missing_channels, take_channels

FORMAT_VERSION = 1
TOKENIZER = "tokenizer"
"""The folder of a run\'s tokenizer, and of a body\'s beside the runs of its parts."""
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD)
"""All that a tokenizer's folder has."""
BODY = "body.json"
"""In the folder of a body's tokenizer: names its parts, each of which lies in a folder of its name."""
_MARK = "ds_rvqvae_version"
"""A key that our own `config.json` and `body.json` have."""
_OWN_KEYS = (
    *("format_version", _MARK, "fingerprint", "model", "in_features", "fps", "code_rate", "joint_names"),
    *("layout", "normalisation"),
)
"""Keys of `config.json` that are not `details`."""


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
    """Reads a tokenizer's `config.json`.

    Raises:
        UserError: naming the folder or file and what is wrong with it.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a tokenizer's folder: {name} is missing{hint_of(folder)}")
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["format_version"] != FORMAT_VERSION:
            raise UserError(f"{file}: format_version {config['format_version']}, known here: {FORMAT_VERSION}")
        model = model_config_from_dict(config["model"], str(file))
        features, fps = config["in_features"], config["fps"]
        layout = layout_from_json(config["layout"], features)
        mean, std = statistics_from(config["normalisation"])
        if len(mean) != features:
            raise ValueError(f"normalisation has {len(mean)} columns, not {features}")
        if not isinstance(fps, int | float) or not 0 < fps < 1e5:
            raise ValueError(f"fps is {fps}, not a number of frames a second")
        if (part := config.get("body_part")) is not None and not is_part_name(part):
            raise ValueError(f"body_part is {part!r}, not the name of a body part")
        details = explicit_reading({key: value for key, value in config.items() if key not in _OWN_KEYS})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not a tokenizer's config: {type(error).__name__}: {error}") from None
    return TokenizerConfig(folder, model, layout, float(fps), mean, std, details)


def read_body(folder: Path) -> tuple[list[str], Layout | None]:
    """The parts that a body's `body.json` names, and the layout of the whole motion.

    Returns:
        the names, and None for the layout in a file of before there were parts of one's own.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    file = folder / BODY
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version, parts, layout = values["format_version"], values["parts"], values.get("layout")
        if layout is not None:
            layout = layout_from_json(layout, layout[-1]["columns"][1])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not a body's: {type(error).__name__}: {error}") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{file}: format_version {version}, known here: {FORMAT_VERSION}")
    # Names of folders: none that leads out of this one.
    if not isinstance(parts, list) or not parts or not all(map(is_part_name, parts)):
        raise UserError(f"{file}: parts are {json.dumps(parts)}, not names of body parts")
    return parts, layout


def statistics_from(values: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`mean` and `std`, float32 `[C]`; raises ValueError where they cannot normalise."""
    mean, std = (np.asarray(values[key], np.float32) for key in ("mean", "std"))
    if mean.ndim != 1 or mean.shape != std.shape:
        raise ValueError(f"normalisation: mean has the shape {list(mean.shape)}, std {list(std.shape)}")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError("normalisation: a mean or std is not finite, or a std is not above 0")
    return mean, std


@contextmanager
def whole_tokenizer_folder(folder: Path, table: str) -> Iterator[Path]:
    """A folder to write in, which takes the name `folder` at the end; it is whole or it is not there.

    Args:
        folder: replaced where it is empty or was written by us, which its file `table` (`config.json` or `body.json`)
            shows; files beside ours stay.

    Raises:
        UserError: the folder exists and holds something else.
    """
    folder = folder.absolute()
    _check_replaceable(folder, table)
    with whole_folder(folder) as unfinished:
        yield unfinished
        for entry in list(folder.iterdir()) if folder.exists() else []:
            if not (unfinished / entry.name).exists():
                entry.rename(unfinished / entry.name)


def _check_replaceable(folder: Path, table: str) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = _MARK in json.loads((folder / table).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(f"{folder}: exists and is no tokenizer of ours; name another folder")


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
