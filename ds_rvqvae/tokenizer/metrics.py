"""Measure how well a tokenizer reconstructs motion, by number of levels used.

Every score is a mean over the frames of complete clips, so long clips weigh more than short ones.

- `l1`: absolute difference, over columns; normalised units.
- `angle_error_deg`: geodesic angle between rotations made orthonormal by Gram-Schmidt, over joints; degrees.
  Zhou et al. 2019 (6D), Huynh 2009 (the metric). Of a robot's joint that turns about one axis, the difference of its
  angles; joints that slide do not count.
- `velocity_error`: absolute difference of frame differences, over columns; normalised units per frame.
- `jitter`, `jitter_truth`: absolute third difference, over columns, of the reconstruction and of the original motion;
  normalised units per frame³. The third derivative is Flash and Hogan's (1985).
- `mpjpe_mm`: distance of joints from their original positions, with aligned roots, over the joints that the layout
  names and that its rotations can move; millimetres. Ionescu et al. 2014 (Human3.6M); root-aligned as in MoMask.
- `root_error_mm`: distance of the root from its original position; millimetres. In a layout with velocities both
  start at the same position and the errors of velocity add up, so it grows with a clip's length.
- `foot_sliding`, `foot_sliding_truth`: horizontal speed of a foot, in the reconstruction and in the original, while
  the original foot stands: at most 5 cm above its lowest position in the clip and slower than 15 cm/s; in cm/s. The
  height is from Karunratanakul et al. 2023 (GMD); the limit on speed is our own, so the original's speed is always
  below it.
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
from ds_rvqvae.motion.kinematics import Kinematics, angle_between
from ds_rvqvae.motion.layout import Layout, rotation_columns
from ds_rvqvae.motion.skeleton import Skeleton

STANDING_HEIGHT = 0.05
"""Metres: a standing foot is at most this much above its lowest position in the clip."""
STANDING_SPEED = 0.15
"""Metres per second: a standing foot is horizontally slower than this."""

_BY_LEVEL = ("l1", "angle_error_deg", "velocity_error", "jitter", "mpjpe_mm")


class ScoreSums:
    """Sums over complete clips, from which the scores are computed. The sums of several ranks can be added.

    Args:
        model: in eval mode, fp32.
        layout: layout of the model's columns.
        mean, std: `[C]` fp32; normalised motion times `std` plus `mean` is in the data's own units.
        fps: frame rate.
        skeleton: the skeleton that `mpjpe_mm` and `foot_sliding` are measured on; without it both are None.
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
        slides = _slides_of(skeleton)
        hinges = [part.start for part in layout if part.kind == "angle" and part.name not in slides]
        self.hinges = torch.tensor(hinges, dtype=torch.int64, device=device)
        self.has_angles = bool(hinges) or len(self.rotations) > 0
        kinematics = Kinematics(layout, skeleton, device) if skeleton else None
        # If the layout moves no joint, there is nothing to measure.
        self.kinematics = kinematics if kinematics is not None and len(kinematics.measured) else None
        levels, codes = model.config.num_quantizers, model.config.nb_code
        sizes = [7, len(_BY_LEVEL) * levels, levels * codes]
        self.flat = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        totals, errors, counts = torch.split(self.flat, sizes)
        self.clips, self.frames, self.jitter_truth, self.root, *sliding = totals.unbind()
        self.standing, self.sliding, self.sliding_truth = sliding
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
        truth, kinematics = motion * self.std + self.mean, self.kinematics
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
        if kinematics is not None and places is not None and kinematics.has_root:
            self._add_root(kinematics, truth, found, places, found_places)
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

    def _add_root(
        self, kinematics: Kinematics, truth: Tensor, found: Tensor, places: Tensor, found_places: Tensor
    ) -> None:
        """Adds the errors of the root and of the feet; `truth` and `found` in the data's own units, positions in
        metres."""
        feet = kinematics.feet
        roots = [kinematics.roots(motion) for motion in (truth, found)]
        self.root += (roots[1] - roots[0]).norm(dim=1).sum()
        if not len(feet):
            return
        height = places[:, feet, 1] + roots[0][:, 1:2]
        is_low = height <= height.amin(dim=0) + STANDING_HEIGHT
        speeds = [
            (joints[:, feet].diff(dim=0) + root.diff(dim=0)[:, None])[..., [0, 2]].norm(dim=-1) * self.fps
            for joints, root in ((places, roots[0]), (found_places, roots[1]))
        ]
        stands = is_low[1:] & is_low[:-1] & (speeds[0] < STANDING_SPEED)
        self.standing += stands.sum()
        self.sliding_truth += speeds[0][stands].sum()
        self.sliding += speeds[1][stands].sum()

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
        kinematics = self.kinematics
        has_root = kinematics is not None and kinematics.has_root
        standing = self.standing.item()
        return {
            "split": split,
            "clips": int(clips),
            "frames": int(frames),
            **{key: value for key, value in by_levels[-1].items() if key != "levels"},
            "jitter_truth": _mean(self.jitter_truth.item(), frames - 3 * clips),
            "root_error_mm": _mean(1000 * self.root.item(), frames) if has_root else None,
            "foot_sliding": _mean(100 * self.sliding.item(), standing),
            "foot_sliding_truth": _mean(100 * self.sliding_truth.item(), standing),
            "skeleton": self.skeleton.name if self.skeleton is not None and kinematics is not None else None,
            "mpjpe_joints": len(kinematics.measured) if kinematics is not None else 0,
            "code_rate": self.fps / self.model.config.code_stride,
            "usage": (self.counts > 0).double().mean(dim=1).tolist(),
            "perplexity": perplexity,
            "by_levels": by_levels,
        }

    def _by_levels(self, frames: float, clips: float, perplexity: list[float]) -> list[dict[str, Any]]:
        sums = (self.l1, self.angle, self.velocity, self.jitter, 1000 * self.joints)
        counts = (frames, frames, frames - clips, frames - 3 * clips, frames)
        there = (True, self.has_angles, True, True, self.kinematics is not None)
        code_rate = self.fps / self.model.config.code_stride
        rows = []
        for level in range(len(perplexity)):
            row: dict[str, Any] = {"levels": level + 1}
            for key, total, count, is_there in zip(_BY_LEVEL, sums, counts, there, strict=True):
                row[key] = _mean(total[level].item(), count) if is_there else None
            row["bits_per_second"] = code_rate * (level + 1) * math.log2(self.model.config.nb_code)
            entropy = sum(math.log2(value) for value in perplexity[: level + 1] if value > 0)
            row["entropy_bits_per_second"] = code_rate * entropy
            rows.append(row)
        return rows


def _slides_of(skeleton: Skeleton | None) -> set[str]:
    """Returns the names of joints whose angle is a length, not an angle."""
    if skeleton is None or skeleton.slides is None:
        return set()
    return {name for name, slides in zip(skeleton.joint_names, skeleton.slides, strict=True) if slides}


def _mean(total: float, count: float) -> float | None:
    return total / count if count and math.isfinite(total) else None
