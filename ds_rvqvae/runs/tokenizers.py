"""Open tokenizers: of a run, a checkpoint, a folder, a body or the hub."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import model_config_from_dict
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.layout import layout_from_json, layout_to_json
from ds_rvqvae.runs.abandoned import clear_damaged_tokenizer
from ds_rvqvae.runs.checkpoints import MODEL_FILE, mark_in, step_of
from ds_rvqvae.runs.history import saved_state
from ds_rvqvae.runs.references import Kind, Reference, find_reference, is_of
from ds_rvqvae.runs.start import record_of
from ds_rvqvae.tokenizer.body import BodyTokenizer
from ds_rvqvae.tokenizer.folder import TOKENIZER, TokenizerConfig, explicit_reading, reading_of
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer


def open_tokenizer(name: str | Path | Reference, device: str | torch.device = "cpu") -> MotionTokenizer | BodyTokenizer:
    """Opens the tokenizer that a name stands for; `ds_rvqvae.runs.references` lists the names.

    Args:
        device: of the nets; encoding and decoding run there.

    Raises:
        UserError: as in `find_reference`; or names the folder or file and the problem.
    """
    reference = name if isinstance(name, Reference) else find_reference(name)
    if reference.kind is Kind.BODY:
        return BodyTokenizer.from_pretrained(reference.folder, device=device)
    return open_single(reference, device)


def open_single(name: str | Path | Reference, device: str | torch.device = "cpu") -> MotionTokenizer:
    """Opens a tokenizer as `open_tokenizer` does, but only a single one.

    Raises:
        UserError: also for a body's tokenizer; names the folders of its parts.
    """
    reference = name if isinstance(name, Reference) else find_reference(name)
    if reference.kind is Kind.BODY:
        parts = " ".join(part.name for part in reference.parts())
        raise UserError(f"{reference.name}: is a body's tokenizer; name the folder of one of its parts: {parts}")
    if reference.is_checkpoint:
        return _tokenizer_of_checkpoint(reference.folder).to(device)
    return MotionTokenizer.from_pretrained(reference.folder, device=device)


def motion_state(data: MotionData, config: ModelConfig) -> dict[str, Any]:
    """Returns the description of motion and model that a checkpoint needs to become a tokenizer by itself."""
    return {
        "record": record_of(data),
        "mean": torch.from_numpy(data.mean),
        "std": torch.from_numpy(data.std),
        "layout": layout_to_json(data.layout),
        "fps": data.fps,
        "body_part": data.body_part,
        "reading": reading_of(data.store.settings),
        "model": config.model_dump(mode="json"),
    }


def make_tokenizer(model: RVQVAE, state: dict[str, Any], **details: Any) -> MotionTokenizer:
    """Returns a tokenizer of `model` and the result of `motion_state`; `details` go into its config file."""
    layout = layout_from_json(state["layout"], model.in_features)
    return MotionTokenizer(model, state["mean"], state["std"], layout, state["fps"], _details_of(state) | details)


def config_of_checkpoint(checkpoint: Path) -> TokenizerConfig:
    """Returns the config that a checkpoint's tokenizer would have; the weights stay on disk.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    state = saved_state(checkpoint)
    try:
        mean, std = (state[name].numpy().copy() for name in ("mean", "std"))
        layout = layout_from_json(state["layout"], len(mean))
    except (ValueError, LookupError) as error:
        reason = f"cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(f"{checkpoint / MODEL_FILE}: {reason}") from None
    model = model_config_from_dict(state["model"], str(checkpoint))
    details = _details_of(state) | _progress_of(checkpoint, state)
    return TokenizerConfig(checkpoint, model, layout, state["fps"], mean, std, details)


def keep_exported(run: Path, checkpoint: Path) -> str | None:
    """Makes the tokenizer of a finished run from its last checkpoint, unless it exists and is intact.

    Returns:
        a note; None if the tokenizer existed.

    Raises:
        OSError, UserError: it cannot be written.
    """
    folder = run / TOKENIZER
    try:
        if is_of(MotionTokenizer.from_pretrained(folder).details, checkpoint):
            return None
        reason = "was of another checkpoint"
    except UserError as error:
        reason = "was missing" if not folder.is_dir() else f"was damaged ({error})"
    tokenizer = _tokenizer_of_checkpoint(checkpoint)
    clear_damaged_tokenizer(run)
    tokenizer.save_pretrained(folder)
    return f"{folder} {reason}: made again from {checkpoint.name}"


def _tokenizer_of_checkpoint(checkpoint: Path) -> MotionTokenizer:
    """Makes a tokenizer from a checkpoint: gathers the ranks' fp32 weights, or their moving average if it has one."""
    # DeepSpeed prints its progress, and a program may read our standard output.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    # DeepSpeed's checkpoints are pickles: load only those of the user's own runs.
    states = torch.load(checkpoint / MODEL_FILE, map_location="cpu", weights_only=False)
    state = states["rvqvae"]
    model = RVQVAE(len(state["mean"]), model_config_from_dict(state["model"], str(checkpoint)))
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    if state.get("weight_average"):
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), state["weight_average"]["weights"], strict=True):
                parameter.copy_(average)
    return make_tokenizer(model, state, **_progress_of(checkpoint, state))


def _details_of(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a tokenizer's config file about the motion in `motion_state`, without its columns."""
    return explicit_reading({"body_part": state["body_part"], "reading": state.get("reading")})


def _progress_of(checkpoint: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Returns the training step, the scores and the checkpoint's fingerprint."""
    progress = {"training_step": step_of(checkpoint)}
    progress |= {"scores": state["scores"]} if state.get("scores") else {}
    mark = mark_in(checkpoint)
    return progress if mark is None else progress | {"checkpoint": mark.fingerprint}
