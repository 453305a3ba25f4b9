"""The trained artefact: a folder that turns motion into codes and back, normalisation included."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ds_rvqvae import __version__
from ds_rvqvae.data.layout import Layout, layout_from_json, layout_to_json
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.profile import model_config_from_dict

FORMAT_VERSION = 1


class MotionTokenizer(nn.Module):
    """An RVQ-VAE with the normalisation it was trained with.

    Args:
        model: the trained net.
        mean, std: `[C]` of the training motion.
        layout: what the columns are.
        fps: frames a second of the motion it takes.
        details: what else the config file should say (body part, training step, scores).

    In eval mode and fp32 unless `from_pretrained` is asked for bf16.
    """

    def __init__(
        self,
        model: RVQVAE,
        mean: Tensor,
        std: Tensor,
        layout: Layout,
        fps: float,
        details: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32))
        self.layout, self.fps, self.details = layout, fps, dict(details or {})
        self.eval()

    @property
    def code_stride(self) -> int:
        """Frames a code stands for."""
        return self.model.config.code_stride

    @torch.no_grad()
    def encode(self, motion: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Motion `[T, C]` in the data's own units to codes `[ceil(T / code_stride), Q]`, int64.

        Frames that do not fill a code are padded with copies of the last. An array gives an array, a tensor a tensor.
        """
        frames = self._frames(motion)
        missing = -len(frames) % self.code_stride
        if missing:
            frames = torch.cat([frames, frames[-1:].expand(missing, -1)])
        codes = self.model.encode(((frames - self.mean) / self.std).unsqueeze(0))[0]
        return codes.cpu().numpy() if isinstance(motion, np.ndarray) else codes

    @torch.no_grad()
    def decode(self, codes: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Codes `[T', q]`, q <= Q, -1 for a dropped level, to motion `[T' * code_stride, C]` in data units."""
        indices = torch.as_tensor(codes, device=self.mean.device, dtype=torch.int64)
        motion = self.model.decode(indices.unsqueeze(0))[0].float() * self.std + self.mean
        return motion.cpu().numpy() if isinstance(codes, np.ndarray) else motion

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `model.safetensors` and `config.json`; the folder is whole or it is not there."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
            unfinished = Path(place) / folder.name
            unfinished.mkdir()
            tensors = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
            save_file(tensors, unfinished / "model.safetensors")
            (unfinished / "config.json").write_text(json.dumps(self._config(), indent=2) + "\n", encoding="utf-8")
            if folder.exists():
                folder.rename(Path(place) / "older")
            unfinished.rename(folder)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "MotionTokenizer":
        """Loads what `save_pretrained` wrote.

        Raises:
            UserError: naming the folder or file and what is wrong with it.
        """
        folder = Path(folder)
        config_file, weights_file = folder / "config.json", folder / "model.safetensors"
        for file in (config_file, weights_file):
            if not file.is_file():
                raise UserError(f"{folder}: not a tokenizer folder: {file.name} is missing")
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
            if config["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{config_file}: format_version {config['format_version']}, known here: {FORMAT_VERSION}"
                )
            model_config = model_config_from_dict(config["model"], str(config_file))
            layout = layout_from_json(config["layout"], config["in_features"])
            model = RVQVAE(config["in_features"], model_config)
            blank = torch.zeros(config["in_features"])
            known = ("format_version", "ds_rvqvae_version", "model", "in_features", "layout", "fps", "code_rate")
            details = {key: value for key, value in config.items() if key not in known}
            tokenizer = cls(model, blank, blank.clone(), layout, float(config["fps"]), details)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{config_file}: not a tokenizer's config: {type(error).__name__}: {error}") from None
        try:
            tokenizer.load_state_dict(load_file(weights_file))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{weights_file}: does not hold this config's weights: {reason}") from None
        tokenizer.to(device)
        # Normalisation stays in fp32; codebooks keep it by themselves.
        tokenizer.model.to(dtype)
        return tokenizer

    def _frames(self, motion: Tensor | np.ndarray) -> Tensor:
        frames = torch.as_tensor(motion, device=self.mean.device, dtype=torch.float32)
        if frames.dim() != 2 or frames.shape[1] != len(self.mean) or not len(frames):
            raise ValueError(f"motion is {tuple(frames.shape)}; this tokenizer takes [frames, {len(self.mean)}]")
        return frames

    def _config(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "ds_rvqvae_version": __version__,
            "model": self.model.config.model_dump(mode="json"),
            "in_features": self.model.in_features,
            "layout": layout_to_json(self.layout),
            "fps": self.fps,
            "code_rate": self.fps / self.code_stride,
            **self.details,
        }
