"""From a run to its tokenizer."""

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
from ds_rvqvae.motion.layout import Layout, layout_from_json, layout_to_json
from ds_rvqvae.runs.checkpoints import LATEST, MODEL_FILE, latest, named_checkpoint, step_of
from ds_rvqvae.tokenizer.body import BodyTokenizer
from ds_rvqvae.tokenizer.folder import BODY, reading_of
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer


def load_any_tokenizer(name: str) -> MotionTokenizer | BodyTokenizer:
    """The tokenizer in a folder, a body's or one by itself, or that of a repository on the Hugging Face hub.

    Raises:
        UserError: naming the folder or file and what is wrong with it.
    """
    folder = Path(name)
    if (folder / BODY).is_file():
        return BodyTokenizer.from_pretrained(folder)
    if (folder / "tokenizer" / BODY).is_file():
        raise UserError(f"{folder}: not a tokenizer folder; the tokenizer of these runs is {folder / 'tokenizer'}")
    return MotionTokenizer.from_pretrained(name)


def motion_state(data: MotionData, config: ModelConfig) -> dict[str, Any]:
    """What a checkpoint says of the motion and the model, so that it makes a tokenizer by itself."""
    return {
        "motion": data.fingerprint(),
        "mean": torch.from_numpy(data.mean),
        "std": torch.from_numpy(data.std),
        "layout": layout_to_json(data.layout),
        "fps": data.fps,
        "body_part": data.body_part,
        "reading": reading_of(data.store.settings),
        "model": config.model_dump(mode="json"),
    }


def make_tokenizer(model: RVQVAE, state: dict[str, Any], **details: Any) -> MotionTokenizer:
    """A tokenizer of `model` and what `motion_state` gave; `details` go into its config file."""
    layout: Layout = layout_from_json(state["layout"], model.in_features)
    kept = {"body_part": state["body_part"]}
    if state.get("reading"):
        kept["reading"] = state["reading"]
    details = {**kept, **details}
    return MotionTokenizer(model, state["mean"], state["std"], layout, state["fps"], details)


def tokenizer_of_run(run_folder: Path, which: str | None = None) -> MotionTokenizer:
    """The tokenizer of a run.

    Args:
        which: a checkpoint: `latest`, `best` or `global_stepN`. Without it the exported tokenizer, or where training
            went on after it, the newest checkpoint's.

    Raises:
        UserError: the folder is no run, or has no such checkpoint, or a damaged one.
    """
    if not (run_folder / "profile.json").is_file():
        raise UserError(f"{run_folder}: not a run's folder: it has no profile.json")
    exported, newest = run_folder / "tokenizer", latest(run_folder / "checkpoints")
    if which is None and exported.is_dir():
        tokenizer = MotionTokenizer.from_pretrained(exported)
        if newest is None or tokenizer.details.get("training_step", 0) >= step_of(newest):
            return tokenizer
    try:
        return _tokenizer_of_checkpoint(named_checkpoint(run_folder / "checkpoints", which or LATEST))
    except ValueError as error:
        raise UserError(f"{run_folder}: {error}") from None


def _tokenizer_of_checkpoint(checkpoint: Path) -> MotionTokenizer:
    """Gathers the ranks' fp32 weights."""
    # DeepSpeed prints what it does, and standard output may be read by a program.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    # DeepSpeed's checkpoints are pickles: those of the user's own runs only.
    states = torch.load(checkpoint / MODEL_FILE, map_location="cpu", weights_only=False)
    state = states["rvqvae"]
    model = RVQVAE(len(state["mean"]), model_config_from_dict(state["model"], str(checkpoint)))
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    if state.get("weight_average"):
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), state["weight_average"]["weights"], strict=True):
                parameter.copy_(average)
    details = {"scores": state["scores"]} if state.get("scores") else {}
    return make_tokenizer(model, state, training_step=step_of(checkpoint), **details)
