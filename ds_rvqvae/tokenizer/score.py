"""How well a tokenizer reconstructs motion, by number of levels used."""

import math
from typing import Any

import torch
from torch import Tensor

from ds_rvqvae.data.clips import MIN_FRAMES
from ds_rvqvae.data.layout import Layout, rotation_columns
from ds_rvqvae.model.codes import perplexity_of
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.tokenizer.geometry import angle_between


class ScoreSums:
    """Sums over whole clips, from which scores follow. Sums of several ranks add up.

    Args:
        model: in eval mode, fp32.
        layout: of the model's columns.
        mean, std: `[C]` fp32, what normalised motion is multiplied by and moved to be in the data's own units.

    `flat` is one fp64 tensor, so that ranks are merged by one all-reduce.
    """

    def __init__(self, model: RVQVAE, layout: Layout, mean: Tensor, std: Tensor):
        self.model = model
        device = mean.device
        self.mean, self.std = mean, std
        self.rotations = torch.from_numpy(rotation_columns(layout)).to(device)
        levels, codes = model.config.num_quantizers, model.config.nb_code
        sizes = [3, levels, levels, levels, levels * codes]
        self.flat = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        totals, self.l1, self.angle, self.velocity, counts = self.flat.split(sizes)
        self.clips, self.frames, self.differences = totals.unbind()
        self.counts = counts.view(levels, codes)

    @torch.no_grad()
    def add(self, motion: Tensor) -> Tensor | None:
        """Adds one clip `[T, C]`, normalised, and gives its reconstruction from all levels.

        The clip is cut to a multiple of the down-sampling; one of fewer than 16 frames is left out, which gives None.
        """
        stride = self.model.config.code_stride
        frames = len(motion) // stride * stride
        if frames < MIN_FRAMES:
            return None
        motion = motion[:frames]
        codes = self.model.encode(motion.unsqueeze(0))
        for level in range(codes.shape[-1]):
            reconstruction = self.model.decode(codes[..., : level + 1])[0].float()
            self._add_level(level, motion, reconstruction)
            self.counts[level] += torch.bincount(codes[0, :, level], minlength=self.counts.shape[1])
        self.clips += 1
        self.frames += frames
        self.differences += frames - 1
        return reconstruction

    def _add_level(self, level: int, motion: Tensor, reconstruction: Tensor) -> None:
        self.l1[level] += (reconstruction - motion).abs().mean(dim=1).sum()
        self.velocity[level] += (reconstruction - motion).diff(dim=0).abs().mean(dim=1).sum()
        if len(self.rotations):
            truth, found = ((frames * self.std + self.mean)[:, self.rotations] for frames in (motion, reconstruction))
            self.angle[level] += angle_between(found, truth).mean(dim=1).sum()

    def scores(self, split: str) -> dict[str, Any]:
        """The scores of all clips added.

        Returns:
            `split`, `clips`, `frames`; with all levels `l1` (normalised units), `angle_error_deg` (mean over frames and
            joints; None without rotations) and `velocity_error` (L1 of frame differences, normalised units); `usage`
            (share of codes in use, 0 to 1) and `perplexity` by level; `by_levels`, the errors with 1 … Q levels.
        """
        frames, differences = self.frames.item(), self.differences.item()

        def mean(total: Tensor, count: float) -> list[float | None]:
            return [value / count if count and math.isfinite(value) else None for value in total.tolist()]

        angles = mean(self.angle, frames) if len(self.rotations) else [None] * len(self.angle)
        rows = zip(mean(self.l1, frames), angles, mean(self.velocity, differences), strict=True)
        by_levels = [
            {"levels": index + 1, "l1": l1, "angle_error_deg": angle, "velocity_error": velocity}
            for index, (l1, angle, velocity) in enumerate(rows)
        ]
        last = {key: value for key, value in by_levels[-1].items() if key != "levels"}
        return {
            "split": split,
            "clips": int(self.clips.item()),
            "frames": int(frames),
            **last,
            "usage": (self.counts > 0).double().mean(dim=1).tolist(),
            "perplexity": perplexity_of(self.counts).tolist(),
            "by_levels": by_levels,
        }
