"""Import checkpoints of other systems: weights that MoMask, GestureLSM or T2M-GPT saved, as a tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.names import BODY_PARTS
from ds_rvqvae.config.profile import model_config_from_dict
from ds_rvqvae.data.formats.features import known_rate, read_statistics
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.layout import Layout, feature_layout, select_columns, smplx_layout
from ds_rvqvae.motion.rotations import same_rate
from ds_rvqvae.tokenizer.folder import reading_of
from ds_rvqvae.tokenizer.foreign.formats import DATASETS, FORMATS, OUTER_ACTIVATION, ForeignFormat, net_keys
from ds_rvqvae.tokenizer.foreign.options import Said, checkpoint_in, read_options, statistics_files
from ds_rvqvae.tokenizer.foreign.settings import SHAPES, Settings
from ds_rvqvae.tokenizer.foreign.weights import (
    StateDict,
    check_weights,
    codebooks_of,
    possible_norms,
    quantizer_state,
    read_weights,
    shapes_of,
)
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

Files = str | Path | Sequence[str | Path]
_SAY_STATISTICS = "--mean FILE --std FILE or --no_normalisation"


def import_foreign(
    file: str | Path,
    format: str,
    *,
    options: str | Path | None = None,
    mean: Files | None = None,
    std: Files | None = None,
    no_normalisation: bool = False,
    fps: float | None = None,
    body_part: str | None = None,
    activation: str | None = None,
    norm: str | None = None,
    dilation_growth_rate: int | None = None,
) -> MotionTokenizer:
    """Makes a tokenizer with the same codes and motion as the system that saved `file`.

    Nothing is assumed. A setting that the shapes of the weights do not give must come from the system's option file,
    which is searched for where the system puts it, or from an argument, which overrides the file.
    `details["imported_from"]` tells the source of each setting.

    Args:
        file: the checkpoint that the system's trainer saved, or only its state dict, or the folder of the model.
        format: "momask", "gesturelsm" or "t2mgpt".
        options: the option file, instead of those around the checkpoint.
        mean, std: `.npy` files with one number per column, used as they are; several files are concatenated. With a
            body part they may cover all of SMPL-X's columns, or the first ones up to the last that is needed.
        no_normalisation: the net takes motion without normalisation.
        fps: frame rate of its motion.
        body_part: the columns are those of this part of SMPL-X data; without it, and if no option file names a part,
            they are features without names.
        activation: activation of the residual blocks.
        norm: norm of the residual blocks, "none", "LN" or "GN"; needed if the weights fit both LN and GN.
        dilation_growth_rate: as in `ModelConfig`.

    GestureLSM's `embedding_proj` is folded into the codebooks, as its forward pass computes. Its own decoding of codes
    leaves that layer out, and gives other motion.

    Raises:
        UserError: the file cannot be read, or is not such a tokenizer (names the key and its shape); an option file and
            the shapes disagree; or a setting is missing (names all arguments to give).
    """
    known = _format(format)
    file = checkpoint_in(Path(file), known)
    weights = read_weights(file, known)
    flags = {"activation": activation, "norm": norm, "dilation_growth_rate": dilation_growth_rate}
    given = [key for key, value in (*flags.items(), ("fps", fps), ("body_part", body_part)) if value is not None]
    settings = Settings(file, known, read_options(file, known, None if options is None else Path(options), given))
    shapes = shapes_of(weights, known, file)
    values = _model_settings(settings, weights, shapes, flags)
    fps = settings.choose("fps", fps, "--fps N", _rates(settings, shapes["in_features"], fps))
    layout, columns = _layout(settings, shapes["in_features"], body_part)
    statistics = _statistics(settings, columns, shapes["in_features"], {"mean": mean, "std": std}, no_normalisation)
    projected = known.can_project and any(".embedding_proj." in key for key in weights)
    model = _model(settings, weights, shapes["in_features"], values, projected)
    assert fps is not None and statistics is not None
    part = settings.found["body_part"].value if "body_part" in settings.found else None
    reading = _reading(settings, fps, None if part else shapes["in_features"])
    origin = {"format": format, "file": file.name, "embedding_proj": projected, "settings": settings.told()}
    details = {"body_part": part, "imported_from": origin, "reading": reading}
    return MotionTokenizer(model, *statistics, layout, fps, details)


def _format(name: str) -> ForeignFormat:
    if name not in FORMATS:
        raise UserError(f"--format {name}: known formats are {', '.join(FORMATS)}")
    return FORMATS[name]


def _model_settings(
    settings: Settings, weights: StateDict, shapes: dict[str, int], flags: dict[str, Any]
) -> dict[str, Any]:
    """Returns values for `ModelConfig`; a value that nothing gives is omitted, and listed as missing."""
    for key, value in shapes.items():
        settings.from_shapes(key, value)
    values: dict[str, Any] = {key: value for key, value in shapes.items() if key != "in_features"}
    if "depth" not in shapes:
        # Without residual blocks the settings below do not exist.
        return values
    if shapes["depth"] > 1:
        wanted = "--dilation_growth_rate N"
        values["dilation_growth_rate"] = settings.choose("dilation_growth_rate", flags["dilation_growth_rate"], wanted)
    values["activation"] = settings.choose("activation", flags["activation"], "--activation relu|silu|gelu")
    if values["activation"] not in (None, OUTER_ACTIVATION):
        values["outer_activation"] = OUTER_ACTIVATION
        settings.set("outer_activation", OUTER_ACTIVATION, f"{settings.known.title}'s nets, always")
    found = _norm(settings, possible_norms(weights, shapes["width"]), flags["norm"])
    # Both norms have the same shapes; the missing setting is named after the shapes are compared.
    values["norm"] = None if found == "none" else found or "LN"
    for key in ("mu", "quantize_dropout_prob"):
        if said := settings.options.of(key):
            values[key] = said[-1].value
            settings.set(key, said[-1].value, said[-1].where)
    return {key: value for key, value in values.items() if value is not None}


def _norm(settings: Settings, possible: tuple[str, ...], norm: str | None) -> str | None:
    width, file = settings.found["width"].value, settings.file
    if norm not in (None, "none", "LN", "GN"):
        raise UserError(f"--norm {norm}: known norms are none, LN, GN")
    if norm is not None and norm not in possible:
        if norm == "GN" and "LN" in possible:
            raise UserError(
                f"--norm GN: has 32 groups, but the {width} channels of {file} cannot be divided by 32; try --norm LN"
            )
        has = "has weights of norms" if norm == "none" else "has no weights of norms"
        raise UserError(f"--norm {norm}: {file} {has}; {'give LN or GN' if norm == 'none' else 'leave --norm out'}")
    if norm is None:
        for one in settings.options.of("norm"):
            if one.value not in possible:
                settings.refuse(one, f"the shapes in {file.name} are those of norm {' or '.join(possible)}")
    if len(possible) == 1:
        settings.set("norm", possible[0], SHAPES)
        return possible[0]
    chosen: str | None = settings.choose("norm", norm, "--norm LN|GN")
    return chosen


def _rates(settings: Settings, features: int, flag: float | None) -> list[Said]:
    """Returns the frame rate in the option file, or that of the data set that it names."""
    if said := settings.options.of("fps"):
        return said
    rates = []
    for one in settings.options.of("dataset"):
        if one.value in DATASETS:
            columns, fps = DATASETS[one.value]
            if columns != features and flag is None:
                raise UserError(
                    f"{one.file} says {one.text}, which has {columns} columns, but {settings.file.name} takes "
                    f"{features}: give its frame rate, --fps N"
                )
            rates.append(Said(fps, one.text, one.file))
    return rates


def _reading(settings: Settings, fps: float, features: int | None) -> dict[str, Any]:
    """Returns the reading rules for its motion: the given rate, even if such files usually have another one."""
    usual = known_rate(features) if features else None
    if usual is None or same_rate(fps, usual):
        return reading_of(DataConfig().model_dump())
    rate = settings.found["fps"].source
    settings.set("source_fps", fps, f"{rate}; files of {features} columns have {usual:g}, but are read as {fps:g}")
    return reading_of(DataConfig(source_fps=fps).model_dump())


def _layout(settings: Settings, features: int, body_part: str | None) -> tuple[Layout, NDArray[np.int64] | None]:
    """Returns the layout and, if a body part is named, its columns in SMPL-X's layout."""
    if body_part is not None and body_part not in BODY_PARTS:
        raise UserError(f"--body_part {body_part}: known parts are {', '.join(BODY_PARTS)}")
    said = settings.options.of("body_part")
    if body_part is None and not said:
        return feature_layout(features), None
    # GestureLSM's `vqvae_lower_path` may name the legs with the translation, and its face includes the jaw.
    said = list({one.value: one for one in (_with_more(one, features) for one in said)}.values())
    part = settings.choose("body_part", body_part, "--body_part PART", said)
    if part is None:
        return feature_layout(features), None
    columns, layout = select_columns(smplx_layout(), part)
    if len(columns) != features:
        if body_part is None:
            settings.refuse(said[0], f"{settings.file.name} takes {features} columns, this part has {len(columns)}")
        others = [other for other in BODY_PARTS if len(select_columns(smplx_layout(), other)[0]) == features]
        hint = f"; {' and '.join(others)} has {features}" if others else ""
        raise UserError(f"--body_part {part}: has {len(columns)} columns, {settings.file} takes {features}{hint}")
    return layout, columns


def _with_more(one: Said, features: int) -> Said:
    """Returns the larger part that includes the named one, if it fits the weights' columns; else the option itself."""
    for part in BODY_PARTS:
        if part.startswith(f"{one.value}_") and len(select_columns(smplx_layout(), part)[0]) == features:
            return Said(part, one.text, one.file)
    return one


def _statistics(
    settings: Settings,
    columns: NDArray[np.int64] | None,
    features: int,
    given: dict[str, Files | None],
    no_normalisation: bool,
) -> tuple[Tensor, Tensor] | None:
    """Returns mean and std `[features]`; None, and listed as missing, if nothing gives them."""
    files = {name: paths for name, paths in given.items() if paths is not None}
    if no_normalisation:
        if files:
            raise UserError("--no_normalisation: motion is not normalised; leave --mean and --std out")
        settings.set("normalisation", "none", "--no_normalisation")
        return torch.zeros(features), torch.ones(features)
    if len(files) == 1:
        raise UserError("--mean, --std: give both, or neither of them")
    kept = f"where {settings.known.title} keeps it"
    if not files:
        found = statistics_files(settings.file, settings.known, settings.options)
        if isinstance(found, str):
            settings.miss(_SAY_STATISTICS + (f" ({found})" if found else ""))
            return None
        files = dict(found)
    arrays = []
    for name, named in files.items():
        paths = [Path(named)] if isinstance(named, str | Path) else [Path(path) for path in named]
        flag = f"--{name}" if given[name] is not None else ""
        values = np.concatenate([read_statistics(path, positive=name == "std") for path in paths])
        if not flag and columns is None and len(values) > features:
            settings.miss(f"--body_part PART ({paths[0].name} has {len(values)} columns, the shapes {features})")
            return None
        arrays.append(_of_columns(values, columns, features, f"{flag} {paths[0]}".strip()))
        settings.set(name, " ".join(map(str, paths)), flag or kept)
    return arrays[0], _above_zero(arrays[1], "--std" if given["std"] is not None else settings.found["std"].value)


def _of_columns(values: NDArray[np.float32], columns: NDArray[np.int64] | None, features: int, name: str) -> Tensor:
    if len(values) != features and columns is not None and columns.max() < len(values):
        values = values[columns]
    if len(values) != features:
        hint = "" if name.startswith("--") else f"; give {_SAY_STATISTICS}"
        raise UserError(f"{name}: has {len(values)} numbers, but the checkpoint takes {features} columns{hint}")
    return torch.from_numpy(values)


def _above_zero(std: Tensor, name: str) -> Tensor:
    zeros = (std == 0).nonzero().flatten().tolist()
    if zeros:
        raise UserError(f"{name}: column {zeros[0]} of {len(std)} is 0, and division by 0 fails; put a 1 there")
    return std


def _model(settings: Settings, weights: StateDict, features: int, values: dict[str, Any], projected: bool) -> RVQVAE:
    """Returns the model with its weights; raises UserError if they do not fit, or a setting is missing."""
    known, file = settings.known, settings.file
    config = model_config_from_dict(values, str(file))
    check_weights(weights, features, config, known, projected, file)
    config, books = _shared(settings, config, codebooks_of(weights, config, known, projected))
    settings.check()
    model = RVQVAE(features, config)
    nets = {ours: weights[theirs] for ours, theirs in net_keys(config).items()}
    model.load_state_dict(nets | quantizer_state(torch.stack(books), config))
    return model


def _shared(settings: Settings, config: ModelConfig, books: list[Tensor]) -> tuple[ModelConfig, list[Tensor]]:
    """Merges equal codebooks of all levels into a shared one, unless the option file says that each has its own."""
    equal = len(books) > 1 and all(torch.equal(books[0], book) for book in books[1:])
    said = settings.options.of("shared_codebook")
    for one in said:
        if one.value and len(books) > 1 and not equal:
            settings.refuse(one, f"the codebooks of {settings.file.name} differ")
    shared = equal and all(one.value for one in said)
    settings.set("shared_codebook", shared, said[0].where if said else "weights")
    return (config.model_copy(update={"shared_codebook": True}), books[:1]) if shared else (config, books)
