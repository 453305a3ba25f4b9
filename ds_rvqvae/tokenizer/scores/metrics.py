"""Measure how well a tokenizer reconstructs motion, by number of levels used.

Every score is a mean over the frames of complete clips, so long clips weigh more than short ones.

- `l1`: absolute difference, over columns; normalised units.
- `angle_error_deg`: geodesic angle between rotations made orthonormal by Gram-Schmidt, over joints; degrees.
  Zhou et al. 2019 (6D), Huynh 2009 (the metric). Of a robot's joint that turns about one axis, the difference of its
  angles; joints that slide do not count.
- `velocity_error`: absolute difference of frame differences, over columns; normalised units per frame.
- `jitter`, `jitter_truth`: absolute third difference, over columns, of the reconstruction and of the original motion;
  normalised units per frame³. The third derivative is Flash and Hogan's (1985).
- `mpjpe_mm` and the other errors of joints: see `joints.py`.
- `usage`: fraction of `nb_code` in use; `perplexity`: exp of the entropy of code use.
- `bits_per_second`: codes per second times log2 `nb_code`, summed over levels; `entropy_bits_per_second`: the same
  with log2 of the level's perplexity, the bits needed if each code is stored by itself, without its neighbours. With
  few frames it is too small: n codes have a perplexity of at most n.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ds_rvqvae.model.exact import exactly
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.model.vq import perplexity_of
from ds_rvqvae.motion.clip import MIN_FRAMES
from ds_rvqvae.motion.kinematics import angle_between, joints_of
from ds_rvqvae.motion.layout import Layout, rotation_columns
from ds_rvqvae.motion.skeleton import Skeleton, slides_of
from ds_rvqvae.tokenizer.scores.joints import KEYS, JointErrors

_BY_LEVEL = ("l1", "angle_error_deg", "velocity_error", "jitter", "mpjpe_mm")


class ScoreSums:
    """Sums over complete clips, from which the scores are computed. The sums of several ranks can be added.

    Args:
        model: in eval mode, fp32.
        layout: layout of the model's columns.
        mean, std: `[C]` fp32; normalised motion times `std` plus `mean` is in the data's own units.
        fps: frame rate.
        skeleton: the skeleton that errors of joints are measured on; published columns without names need none.
        unit_std: `[C]`, the size of one normalised unit in `l1`, `velocity_error` and `jitter`; by default `std`. It
            makes tokenizers with different normalisation comparable.

    `flat` is one fp64 tensor, so that one all-reduce merges the ranks.
    """

    def __init__(
        self,
        model: RVQVAE,
        layout: Layout,
        mean: Tensor,
        std: Tensor,
        fps: float,
        skeleton: Skeleton | None = None,
        unit_std: Tensor | None = None,
    ) -> None:
        self.model, self.fps, self.skeleton = model, fps, skeleton
        device = mean.device
        self.mean, self.std = mean, std
        self.units = None if unit_std is None else std / unit_std
        self.rotations = torch.from_numpy(rotation_columns(layout)).to(device)
        slides = slides_of(skeleton)
        hinges = [part.start for part in layout if part.kind == "angle" and part.name not in slides]
        self.hinges = torch.tensor(hinges, dtype=torch.int64, device=device)
        self.has_angles = bool(hinges) or len(self.rotations) > 0
        self.joint_places = joints_of(layout, skeleton, device)
        levels, codes = model.config.num_quantizers, model.config.nb_code
        sizes = [3, JointErrors.SIZE, len(_BY_LEVEL) * levels, levels * codes]
        self.flat = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        totals, of_joints, errors, counts = torch.split(self.flat, sizes)
        self.clips, self.frames, self.jitter_truth = totals.unbind()
        self.joint_errors = None if self.joint_places is None else JointErrors(self.joint_places, fps, of_joints)
        self.l1, self.angle, self.velocity, self.jitter, self.joints = errors.view(len(_BY_LEVEL), levels)
        self.counts = counts.view(levels, codes)

    def add(self, motion: Tensor) -> Tensor | None:
        """Adds one clip `[T, C]`, normalised, and returns its reconstruction from all levels.

        The clip is cut to a multiple of the down-sampling; if fewer than 16 frames remain it is left out, and the
        result is None.
        """
        with exactly(self.model):
            return self._add(motion)

    def _add(self, motion: Tensor) -> Tensor | None:
        stride = self.model.config.code_stride
        frames = len(motion) // stride * stride
        if frames < MIN_FRAMES:
            return None
        motion = motion[:frames]
        truth, kinematics = motion * self.std + self.mean, self.joint_places
        places = kinematics.places(truth) if kinematics is not None else None
        codes = self.model.encode(motion.unsqueeze(0))
        for level in range(codes.shape[-1]):
            reconstruction = self.model.decode(codes[..., : level + 1])[0].float()
            found = reconstruction * self.std + self.mean
            self._add_differences(level, motion, reconstruction)
            if self.has_angles:
                self.angle[level] += self._angles(truth, found).mean(dim=1).sum()
            if kinematics is not None and places is not None:
                found_places = kinematics.places(found)
                apart = (found_places - places)[:, kinematics.measured].norm(dim=-1)
                self.joints[level] += apart.mean(dim=1).sum()
            self.counts[level] += torch.bincount(codes[0, :, level], minlength=self.counts.shape[1])
        self.jitter_truth += self._in_units(motion.diff(n=3, dim=0)).abs().mean(dim=1).sum()
        if self.joint_errors is not None and places is not None:
            self.joint_errors.add(truth, found, places, found_places)
        self.clips += 1
        self.frames += frames
        return reconstruction

    def _angles(self, truth: Tensor, found: Tensor) -> Tensor:
        """Returns by how many degrees each joint differs, `[T, joints]`: of rotations, then of joints with an angle."""
        turned = angle_between(found[:, self.rotations], truth[:, self.rotations])
        hinged = torch.rad2deg((found[:, self.hinges] - truth[:, self.hinges]).abs())
        return torch.cat([turned, hinged], dim=1)

    def _add_differences(self, level: int, motion: Tensor, reconstruction: Tensor) -> None:
        difference = self._in_units(reconstruction - motion)
        self.l1[level] += difference.abs().mean(dim=1).sum()
        self.velocity[level] += difference.diff(dim=0).abs().mean(dim=1).sum()
        self.jitter[level] += self._in_units(reconstruction.diff(n=3, dim=0)).abs().mean(dim=1).sum()

    def _in_units(self, difference: Tensor) -> Tensor:
        return difference if self.units is None else difference * self.units

    def scores(self, split: str) -> dict[str, Any]:
        """Returns the scores of all clips added; the module's docstring explains them.

        Returns:
            `split`, `clips`, `frames`; the errors with all levels, and `jitter_truth`; `skeleton`, the name of the
            skeleton that `mpjpe_mm` was measured on, and `mpjpe_joints`, the number of joints; `code_rate` in codes
            per second; `usage` and `perplexity` by level; `by_levels`, errors and bits with 1 … Q levels. A score that
            cannot be measured (no rotations, no joint of the skeleton, no root position, a foot that never stands) is
            None, and so is one whose sum is not finite.
        """
        frames, clips = self.frames.item(), self.clips.item()
        perplexity = perplexity_of(self.counts).tolist()
        by_levels = self._by_levels(frames, clips, perplexity)
        joints, ratios = self.joint_places, self.ratios()
        return {
            "split": split,
            "clips": int(clips),
            "frames": int(frames),
            **{key: value for key, value in by_levels[-1].items() if key != "levels"},
            **{key: _mean(*ratios[key]) if key in ratios else None for key in ("jitter_truth", *KEYS)},
            "skeleton": None if joints is None else joints.name,
            "mpjpe_joints": 0 if joints is None else len(joints.measured),
            "code_rate": self.fps / self.model.config.code_stride,
            "usage": (self.counts > 0).double().mean(dim=1).tolist(),
            "perplexity": perplexity,
            "by_levels": by_levels,
        }

    def ratios(self) -> dict[str, tuple[float, float]]:
        """Returns total and count of each score with all levels that is a mean: the score is total / count, and
        totals and counts of several clips add up. Scores that these columns do not have are left out."""
        frames, clips = self.frames.item(), self.clips.item()
        found = {key: (totals[-1].item(), count) for key, (totals, count) in self._level_totals(frames, clips).items()}
        found["jitter_truth"] = (self.jitter_truth.item(), frames - 3 * clips)
        return found | ({} if self.joint_errors is None else self.joint_errors.ratios(frames))

    def _level_totals(self, frames: float, clips: float) -> dict[str, tuple[Tensor, float]]:
        """Returns totals by level, and the count, of each score by levels that these columns have."""
        sums = (self.l1, self.angle, self.velocity, self.jitter, 1000 * self.joints)
        counts = (frames, frames, frames - clips, frames - 3 * clips, frames)
        there = (True, self.has_angles, True, True, self.joint_places is not None)
        rows = zip(_BY_LEVEL, sums, counts, there, strict=True)
        return {key: (totals, count) for key, totals, count, is_there in rows if is_there}

    def _by_levels(self, frames: float, clips: float, perplexity: list[float]) -> list[dict[str, Any]]:
        found = self._level_totals(frames, clips)
        code_rate = self.fps / self.model.config.code_stride
        rows = []
        for level in range(len(perplexity)):
            row: dict[str, Any] = {"levels": level + 1}
            for key in _BY_LEVEL:
                row[key] = _mean(found[key][0][level].item(), found[key][1]) if key in found else None
            row["bits_per_second"] = code_rate * (level + 1) * math.log2(self.model.config.nb_code)
            entropy = sum(math.log2(value) for value in perplexity[: level + 1] if value > 0)
            row["entropy_bits_per_second"] = code_rate * entropy
            rows.append(row)
        return rows


def _mean(total: float, count: float) -> float | None:
    return total / count if count and math.isfinite(total) else None
