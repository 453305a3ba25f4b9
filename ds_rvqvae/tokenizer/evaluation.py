"""Scores and pictures of a model on the clips of a split."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.skeleton import Skeleton, figure_of
from ds_rvqvae.tokenizer.frechet import FrechetFeatures
from ds_rvqvae.tokenizer.metrics import ScoreSums


def evaluate_split(
    model: RVQVAE,
    data: MotionData,
    split: str,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
    *,
    skeleton: Skeleton | None = None,
    unit_std: NDArray[np.float32] | None = None,
    features: FrechetFeatures | None = None,
) -> dict[str, Any]:
    """Scores of whole clips, dealt out over the ranks; every rank gets the scores of all.

    Args:
        model: fp32, in eval mode, on `device`.
        split: train, val, test or all.
        rank, world_size: this rank's place; more than one takes torch.distributed.
        skeleton: whose joints are measured; without it `skeleton_of` the data.
        unit_std: `[C]`, what a normalised unit is; see `ScoreSums`.
        features: adds the Fréchet distance. Its sums do not travel: for one rank only.
    """
    if features is not None and world_size > 1:
        raise ValueError("a Fréchet distance is measured by one rank")
    mean, std = (torch.from_numpy(values).to(device) for values in (data.mean, data.std))
    unit = None if unit_std is None else torch.from_numpy(unit_std).to(device)
    sums = ScoreSums(model, data.layout, mean, std, data.fps, skeleton or skeleton_of(data), unit)
    for segment in data.segments(split)[rank::world_size]:
        motion = torch.from_numpy(data.normalised(segment)).to(device)
        reconstruction = sums.add(motion)
        if features is not None and reconstruction is not None:
            features.add(*(clip * std + mean for clip in (motion[: len(reconstruction)], reconstruction)))
    if world_size > 1:
        dist.all_reduce(sums.flat)
    return sums.scores(split) | (features.scores() if features is not None else {})


def skeleton_of(data: MotionData) -> Skeleton:
    """The figure that moves in the files, where they say so; else the built-in one."""
    return figure_of(data.store.skeleton, Path(data.config.path or data.store.folder).stem)


def held_out_split(data: MotionData) -> str:
    """The split that shows how training goes: val, or test or train where the data have none."""
    return next(split for split in ("val", "test", "train") if data.segments(split))
