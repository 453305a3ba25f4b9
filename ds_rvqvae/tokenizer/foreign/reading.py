"""Other people's checkpoints in: weights that MoMask, GestureLSM or T2M-GPT saved, as a tokenizer."""

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ds_rvqvae.config.data import BODY_PARTS
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import model_config_from_dict
from ds_rvqvae.data.formats.base import missing_key
from ds_rvqvae.data.formats.features import read_statistics
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.layout import Layout, feature_layout, select_columns, smplx_layout
from ds_rvqvae.tokenizer.foreign.formats import FIRST_WEIGHT, FORMATS, ForeignFormat, net_keys
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

_VECTORS_AN_UPDATE = 4096
"""Latents in MoMask's batch: 256 windows of 64 frames, 4 frames each."""
_UPDATES = 100_000
"""Enough for the averages' inertia to be full at any `mu` in use (0.99 takes 891)."""

StateDict = dict[str, Tensor]


def import_foreign(
    file: str | Path,
    format: str,
    *,
    mean: str | Path | Sequence[str | Path] | None = None,
    std: str | Path | Sequence[str | Path] | None = None,
    fps: float | None = None,
    body_part: str | None = None,
    activation: str = "relu",
    norm: str | None = None,
    dilation_growth_rate: int = 3,
) -> MotionTokenizer:
    """Makes a tokenizer whose codes and motion are those of the system that saved `file`.

    Args:
        file: what its trainer saved, or the bare state dict.
        format: "momask", "gesturelsm" or "t2mgpt".
        mean, std: `.npy` files of one number a column; several are put one after another. With `body_part` they may
            cover all of SMPL-X's columns, or as many of the first as are needed. Without them motion is taken as it is.
        fps: frames a second of its motion; by default 20 (MoMask and T2M-GPT; 12.5 with KIT-ML's 251 columns) or 30.
        body_part: says that the columns are this part's of SMPL-X data; without it they are features without a name.
        activation, norm, dilation_growth_rate: what weights do not tell. Norms are seen, but not which kind it is.

    GestureLSM's `embedding_proj` is folded into the codebooks, which is what its forward pass computes; its decoding of
    codes forgets the layer, and gives other motion.

    None of these systems saves the averages that codebooks are trained by. They are set as if each update so far had
    brought 4,096 vectors, MoMask's batch, spread evenly over the codes, with full inertia (`updates` 100,000): no code
    is dead when a fine-tuning starts, and with batches of that size its first updates move codes by a hundredth of the
    way to their new vectors, as they do late in a training.

    Raises:
        UserError: the file cannot be read, or holds anything but such a tokenizer; names the key and its shape.
    """
    known, file = _format(format), Path(file)
    if activation != "relu":
        raise UserError(
            f"--activation {activation}: {known.title} has ReLU outside its residual blocks all the same, which cannot "
            "be expressed here; only relu can be imported"
        )
    weights = _state_dict(file, known)
    settings = {"activation": activation, "norm": norm, "dilation_growth_rate": dilation_growth_rate}
    features, config = _infer(weights, known, settings, file)
    projected = known.can_project and any(".embedding_proj." in key for key in weights)
    _check(weights, features, config, known, projected, file)
    books = _codebooks(weights, config, known, projected)
    if config.num_quantizers > 1 and all(torch.equal(books[0], book) for book in books[1:]):
        config, books = config.model_copy(update={"shared_codebook": True}), books[:1]
    model = RVQVAE(features, config)
    nets = {ours: weights[theirs] for ours, theirs in net_keys(config).items()}
    model.load_state_dict(nets | _quantizer_state(torch.stack(books), config))
    layout, columns = _layout(features, body_part, file)
    statistics = _statistics(mean, std, columns, features)
    if fps is None:
        fps = 12.5 if known.fps == 20.0 and features == 251 else known.fps
    origin = {"format": format, "file": file.name, "embedding_proj": projected}
    return MotionTokenizer(model, *statistics, layout, fps, {"body_part": body_part, "imported_from": origin})


def _format(name: str) -> ForeignFormat:
    if name not in FORMATS:
        raise UserError(f"--format {name}: known are {', '.join(FORMATS)}")
    return FORMATS[name]


def _state_dict(file: Path, known: ForeignFormat) -> StateDict:
    """The state dict of the net in a file, without prefixes, in fp32."""
    content = _load(file)
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: holds a {type(content).__name__}, not what {known.title} saves")
    keys = [key for key in known.weights_keys if isinstance(content.get(key), Mapping)]
    if keys:
        content = content[keys[0]]
    elif not any(str(key).endswith(FIRST_WEIGHT) for key in content):
        reason = missing_key([str(key) for key in content], " or ".join(known.weights_keys))
        raise UserError(f"{file}: {reason}; not what {known.title} saves")
    prefixes = [str(key).removesuffix(FIRST_WEIGHT) for key in content if str(key).endswith(FIRST_WEIGHT)]
    if not prefixes:
        raise UserError(f"{file}: {FIRST_WEIGHT} is missing; not what {known.title} saves")
    if len(prefixes) > 1:
        raise UserError(f"{file}: {len(prefixes)} keys end in {FIRST_WEIGHT}, so that it holds several nets; save one")
    return {str(key).removeprefix(prefixes[0]): _fp32(value, str(key), file) for key, value in content.items()}


def _load(file: Path) -> Any:
    if file.exists() and not file.is_file():
        raise UserError(f"{file}: no regular file; name the checkpoint itself")
    try:
        opened = file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    with opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(opened, map_location="cpu", weights_only=True)
        except Exception as error:  # torch, zipfile and pickle raise a dozen unrelated types on damaged files
            if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
                raise UserError(
                    f"{file}: holds Python objects besides tensors, which are never loaded; where you trust it, save "
                    'its state dict alone, as torch.save({"net": state_dict}, file)'
                ) from None
            raise UserError(f"{file}: no file of torch's, or damaged") from None


def _fp32(value: Any, key: str, file: Path) -> Tensor:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
        raise UserError(f"{file}: {key} is a {type(value).__name__}, not a dense tensor with values")
    if not value.is_floating_point():
        raise UserError(f"{file}: {key} {list(value.shape)} is {value.dtype}, not floating-point weights")
    weights = value.detach().float()
    if not torch.isfinite(weights).all():
        raise UserError(f"{file}: {key} {list(value.shape)} holds NaN or infinite values")
    return weights


def _infer(weights: StateDict, known: ForeignFormat, settings: dict[str, Any], file: Path) -> tuple[int, ModelConfig]:
    """Columns and settings of the model, from the shapes of its weights and `settings`."""

    def shape(key: str, dimensions: int) -> torch.Size:
        if key not in weights:
            raise UserError(f"{file}: {key} is missing; not what {known.title} saves")
        if not weights[key].numel():
            raise UserError(f"{file}: {key} {list(weights[key].shape)} is empty")
        if weights[key].dim() != dimensions:
            raise UserError(f"{file}: {key} {list(weights[key].shape)} does not have {dimensions} dimensions")
        return weights[key].shape

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, key) is not None for key in weights)

    width, features, _ = shape(FIRST_WEIGHT, 3)
    down_t = count(r"encoder\.model\.\d+\.0\.weight")
    nb_code, code_dim = shape(known.codebook_key(0), 2)
    values = settings | {
        "width": width,
        "down_t": down_t,
        "code_dim": code_dim,
        "nb_code": nb_code,
        "num_quantizers": 1 if known.one_codebook else count(r"quantizer\.layers\.\d+\.codebook"),
    }
    if down_t:
        kernel = shape("encoder.model.2.0.weight", 3)[2]
        if kernel % 4:
            # An odd stride leaves their encoders a frame short, which these nets make up for.
            raise UserError(
                f"{file}: encoder.model.2.0.weight has kernel {kernel}, for a stride of {kernel / 2:g}; only an even "
                "stride gives codes that stand for whole groups of frames"
            )
        values["stride_t"] = kernel // 2
        values["depth"] = count(r"encoder\.model\.2\.1\.model\.\d+\.conv1\.weight")
        _check_norm(weights, width, settings["norm"], file)
    return features, model_config_from_dict(values, str(file))


def _check_norm(weights: StateDict, width: int, norm: str | None, file: Path) -> None:
    first = "encoder.model.2.1.model.0.norm1"
    if f"{first}.running_mean" in weights:
        raise UserError(f"{file}: {first}.running_mean [{width}]: batch norm, which these nets do not have")
    if f"{first}.weight" in weights and norm is None:
        raise UserError(f"{file}: {first}.weight may be layer or group norm; say which: --norm LN or --norm GN")
    if f"{first}.weight" not in weights and norm is not None:
        raise UserError(f"--norm {norm}: {file} has no {first}.weight; leave --norm out")
    if norm == "GN" and width % 32:
        raise UserError(f"--norm GN: has 32 groups, which {file}'s {width} channels do not divide into; try --norm LN")


def _check(
    weights: StateDict, features: int, config: ModelConfig, known: ForeignFormat, projected: bool, file: Path
) -> None:
    """Raises UserError unless the keys and shapes are exactly those of a model of this config."""
    with torch.device("meta"):
        model = RVQVAE(features, config)
    ours = model.state_dict()
    expected = {theirs: list(ours[key].shape) for key, theirs in net_keys(config).items()}
    for level in range(config.num_quantizers):
        expected[known.codebook_key(level)] = [config.nb_code, config.code_dim]
        if projected:
            weight, bias = known.projection_keys(level)
            expected |= {weight: [config.code_dim, config.code_dim], bias: [config.code_dim]}
    for key, shape in expected.items():
        if key not in weights:
            raise UserError(f"{file}: {key} {shape} is missing")
        if list(weights[key].shape) != shape:
            raise UserError(f"{file}: {key} is {list(weights[key].shape)}, where the other weights need {shape}")
    for key in weights:
        if key not in expected:
            raise UserError(f"{file}: {key} {list(weights[key].shape)} is nothing that a {known.title} tokenizer has")


def _codebooks(weights: StateDict, config: ModelConfig, known: ForeignFormat, projected: bool) -> list[Tensor]:
    """The codebook `[nb_code, code_dim]` of each level, as its forward pass uses it."""
    books = []
    for level in range(config.num_quantizers):
        book = weights[known.codebook_key(level)]
        if projected:
            weight, bias = (weights[key] for key in known.projection_keys(level))
            book = functional.linear(book, weight, bias)
        books.append(book)
    return books


def _quantizer_state(books: Tensor, config: ModelConfig) -> StateDict:
    """Buffers of the quantizer for `books [Q or 1, K, D]`; see `import_foreign` on the averages."""
    levels_a_book = config.num_quantizers / len(books)
    count = torch.full(books.shape[:2], levels_a_book * _VECTORS_AN_UPDATE / config.nb_code)
    return {
        "quantizer.codebooks": books,
        "quantizer.ema_sum": books * count.unsqueeze(-1),
        "quantizer.ema_count": count,
        "quantizer.initialized": torch.tensor(True),
        "quantizer.updates": torch.tensor(_UPDATES),
    }


def _layout(features: int, body_part: str | None, file: Path) -> tuple[Layout, NDArray[np.int64] | None]:
    """The layout, and where a body part is named, its columns in SMPL-X's."""
    if body_part is None:
        return feature_layout(features), None
    if body_part not in BODY_PARTS:
        raise UserError(f"--body_part {body_part}: known are {', '.join(BODY_PARTS)}")
    columns, layout = select_columns(smplx_layout(), body_part)
    if len(columns) != features:
        raise UserError(f"--body_part {body_part}: has {len(columns)} columns, {file} takes {features}")
    return layout, columns


def _statistics(mean: Any, std: Any, columns: NDArray[np.int64] | None, features: int) -> tuple[Tensor, Tensor]:
    """Mean and std `[features]`; the identity without files."""
    if mean is None and std is None:
        return torch.zeros(features), torch.ones(features)
    if mean is None or std is None:
        raise UserError("--mean, --std: give both or neither")
    found = []
    for flag, files in (("--mean", mean), ("--std", std)):
        paths = [files] if isinstance(files, str | Path) else list(files)
        values = np.concatenate([read_statistics(path, positive=flag == "--std") for path in paths])
        if len(values) != features and columns is not None and columns.max() < len(values):
            values = values[columns]
        if len(values) != features:
            raise UserError(f"{flag} {paths[0]}: {len(values)} numbers, where the checkpoint takes {features} columns")
        found.append(torch.from_numpy(values))
    zeros = (found[1] == 0).nonzero().flatten().tolist()
    if zeros:
        raise UserError(f"--std: column {zeros[0]} of {features} is 0, which cannot be divided by; put a 1 there")
    return found[0], found[1]
