"""From a run to its tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch

from ds_rvqvae.data.layout import Layout, layout_from_json, layout_to_json
from ds_rvqvae.data.motion_data import MotionData
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.profile import ModelConfig, model_config_from_dict
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer
from ds_rvqvae.train.checkpoints import checkpoint_step, checkpoints


def motion_state(data: MotionData, config: ModelConfig) -> dict[str, Any]:
    """What a checkpoint says of the motion and the model, so that it makes a tokenizer by itself."""
    return {
        "mean": torch.from_numpy(data.mean),
        "std": torch.from_numpy(data.std),
        "layout": layout_to_json(data.layout),
        "fps": data.fps,
        "body_part": data.config.body_part if data.store.has_body_parts else None,
        "model": config.model_dump(mode="json"),
    }


def make_tokenizer(model: RVQVAE, state: dict[str, Any], **details: Any) -> MotionTokenizer:
    """A tokenizer of `model` and what `motion_state` gave; `details` go into its config file."""
    layout: Layout = layout_from_json(state["layout"], model.in_features)
    details = {"body_part": state["body_part"], **details}
    return MotionTokenizer(model, state["mean"], state["std"], layout, state["fps"], details)


def tokenizer_of_run(run_folder: Path) -> MotionTokenizer:
    """The newest tokenizer of a run: the exported one, or where training goes on, the newest checkpoint's.

    Raises:
        UserError: the folder is no run, or has neither.
    """
    if not (run_folder / "profile.json").is_file():
        raise UserError(f"{run_folder}: not a run's folder: it has no profile.json")
    newest = checkpoints(run_folder / "checkpoints")
    exported = run_folder / "tokenizer"
    if exported.is_dir():
        step = json.loads((exported / "config.json").read_text(encoding="utf-8")).get("training_step", 0)
        if not newest or step >= (checkpoint_step(newest[-1]) or 0):
            return MotionTokenizer.from_pretrained(exported)
    if not newest:
        raise UserError(f"{run_folder}: has no checkpoint yet")
    return _tokenizer_of_checkpoint(newest[-1])


def _tokenizer_of_checkpoint(checkpoint: Path) -> MotionTokenizer:
    """Gathers the ranks' fp32 weights."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # DeepSpeed's checkpoints are pickles: those of the user's own runs only.
    states = torch.load(checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    state = states["rvqvae"]
    model = RVQVAE(len(state["mean"]), model_config_from_dict(state["model"], str(checkpoint)))
    weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return make_tokenizer(model, state, training_step=checkpoint_step(checkpoint))
