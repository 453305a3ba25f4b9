"""Read the weights of a published evaluator, and tell by their keys and shapes which one it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion import recovery
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.motion.rotations import same_rate
from ds_rvqvae.tokenizer.scores.published.gestures import GestureEncoder, GestureEvaluator
from ds_rvqvae.tokenizer.scores.published.matching import MatchingEvaluator, MotionEncoder, MovementEncoder
from ds_rvqvae.tokenizer.weights import load_saved

Evaluator = MatchingEvaluator | GestureEvaluator
_META = ("Comp_v6_KLD01", "Comp_v6_KLD005")
"""Folders beside `text_mot_match` whose `meta` has the evaluator's mean and std: text-to-motion's and MoMask's."""
_FIRST = "main.0.weight"


def load_evaluator(file: Path, mean: Path | None = None, std: Path | None = None) -> Evaluator:
    """Loads a published evaluator.

    Args:
        file: `finest.tar` of the text-motion matching (keys `movement_encoder` and `motion_encoder`), or
            `AESKConv_240_100.bin` of EMAGE's evaluation (key `model_state`).
        mean, std: `.npy` files of the matching evaluator's own normalisation; by default `meta/mean.npy` and
            `meta/std.npy` in `Comp_v6_KLD01` or `Comp_v6_KLD005` beside `text_mot_match`, the first that is there.
            EMAGE's evaluator has none.

    Raises:
        UserError: not a file that torch saved, no such evaluator, a weight of another shape, or no mean and std.
    """
    content = load_saved(file, "torch.save(checkpoint, file) with the state dicts of its encoders")
    if isinstance(content, Mapping):
        if isinstance(content.get("movement_encoder"), Mapping) and isinstance(content.get("motion_encoder"), Mapping):
            return _matching(file, content, mean, std)
        if isinstance(content.get("model_state"), Mapping):
            if mean or std:
                raise UserError("--evaluator_mean, --evaluator_std: EMAGE's evaluator has no normalisation; leave out")
            return GestureEvaluator(_gesture_weights(file, content["model_state"]))
    raise UserError(
        f"--evaluator {file}: not an evaluator that is known here; give text_mot_match/model/finest.tar of "
        "HumanML3D or KIT, or EMAGE's AESKConv_240_100.bin"
    )


def _matching(file: Path, content: Mapping[str, Any], mean: Path | None, std: Path | None) -> MatchingEvaluator:
    first = content["movement_encoder"].get(_FIRST)
    width = first.shape[1] + 4 if isinstance(first, Tensor) and first.dim() == 3 else 0
    if width not in (recovery.HUMANML3D, recovery.KIT):
        shape = list(first.shape) if isinstance(first, Tensor) else "missing"
        raise UserError(
            f"--evaluator {file}: movement_encoder {_FIRST} is {shape}, not [512, 259, 4] (HumanML3D) or "
            "[512, 247, 4] (KIT)"
        )
    with torch.device("meta"):
        nets = MovementEncoder(width - 4), MotionEncoder()
    movement, motion = (
        _checked(file, key, content[key], net)
        for key, net in zip(("movement_encoder", "motion_encoder"), nets, strict=True)
    )
    values = _normalisation(file, width, mean, std)
    return MatchingEvaluator(movement, motion, width, *values)


def _gesture_weights(file: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    with torch.device("meta"):
        net = GestureEncoder()
    # Training on several GPUs puts "module." before each key. The decoder is not needed.
    names = {str(key).replace("module.", ""): value for key, value in content.items()}
    own = {key.removeprefix("encoder."): value for key, value in names.items() if key.startswith("encoder.")}
    return _checked(file, "model_state encoder", own, net)


def _checked(file: Path, place: str, weights: Mapping[str, Any], net: nn.Module) -> dict[str, Tensor]:
    """Returns the weights in fp32; raises UserError unless keys and shapes are those of the net."""
    found: dict[str, Tensor] = {}
    expected = {key: list(value.shape) for key, value in net.state_dict().items()}
    for key, shape in expected.items():
        value = weights.get(key)
        is_plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
        if not isinstance(value, Tensor) or not is_plain or not value.is_floating_point():
            raise UserError(f"--evaluator {file}: {place} {key} {shape} is missing or holds no floating-point numbers")
        if list(value.shape) != shape:
            raise UserError(f"--evaluator {file}: {place} {key} is {list(value.shape)}, not {shape}")
        found[key] = value.detach().float()
        if not torch.isfinite(found[key]).all():
            raise UserError(f"--evaluator {file}: {place} {key} holds NaN or infinite values")
    further = [str(key) for key in weights if key not in expected]
    if further:
        raise UserError(f"--evaluator {file}: {place} {further[0]} is not a weight of this evaluator")
    return found


def _normalisation(
    file: Path, width: int, mean: Path | None, std: Path | None
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    if (mean is None) != (std is None):
        raise UserError("--evaluator_mean and --evaluator_std: give both, or none")
    if mean is None or std is None:
        folders = [file.resolve().parent.parent.parent / name / "meta" for name in _META]
        folder = next((one for one in folders if (one / "mean.npy").is_file() and (one / "std.npy").is_file()), None)
        if folder is None:
            raise UserError(
                f"--evaluator {file}: no {_META[0]}/meta/mean.npy and std.npy beside text_mot_match; give "
                "--evaluator_mean and --evaluator_std (the evaluator's own, not the data set's Mean.npy and Std.npy)"
            )
        mean, std = folder / "mean.npy", folder / "std.npy"
    values = _vector("--evaluator_mean", mean, width), _vector("--evaluator_std", std, width)
    if (values[1] <= 0).any():
        raise UserError(f"--evaluator_std {std}: column {int(np.argmax(values[1] <= 0))} is not above 0")
    return values


def _vector(flag: str, file: Path, width: int) -> NDArray[np.floating[Any]]:
    try:
        values: Any = np.load(file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{flag} {file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, EOFError):
        raise UserError(f"{flag} {file}: not a .npy file of numbers") from None
    if not isinstance(values, np.ndarray) or values.shape != (width,) or values.dtype.kind != "f":
        shape = list(values.shape) if isinstance(values, np.ndarray) else "not one array"
        raise UserError(f"{flag} {file}: {shape}, but the evaluator needs floats [{width}]")
    if not np.isfinite(values).all():
        raise UserError(f"{flag} {file}: holds NaN or infinite values")
    return values


def check_fits(evaluator: Evaluator | None, layout: Layout, fps: float, path: str) -> None:
    """Raises UserError unless an evaluator takes motion with these columns at this frame rate; `path` names it."""
    if evaluator is None:
        return
    evaluator.check(layout, path)
    if not same_rate(fps, evaluator.fps):
        raise UserError(
            f"{path}: {fps:g} fps, but {evaluator.title} takes {evaluator.fps:g}; score a tokenizer of that frame rate"
        )
