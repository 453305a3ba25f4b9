"""Score a model on the clips of a split."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.skeleton import Skeleton, figure_of
from ds_rvqvae.tokenizer.scores.frechet import FrechetFeatures
from ds_rvqvae.tokenizer.scores.metrics import ScoreSums
from ds_rvqvae.tokenizer.scores.spread import ClipScore


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
    clips: list[ClipScore] | None = None,
    multiple: int = 1,
) -> dict[str, Any]:
    """Scores complete clips, divided among the ranks; every rank returns the scores of all clips.

    Args:
        model: fp32, in eval mode, on `device`.
        split: train, val, test or all.
        rank, world_size: this rank and the number of ranks; more than one rank needs torch.distributed.
        skeleton: the skeleton whose joints are measured; by default `skeleton_of` the data.
        unit_std: `[C]`, the size of one normalised unit; see `ScoreSums`.
        features: adds the Fréchet distance. Its sums are not reduced over ranks, so it works on one rank only.
        clips: gets the scores of each clip of this rank.
        multiple: clips are cut to a multiple of so many frames, besides the model's own down-sampling.
    """
    if features is not None and world_size > 1:
        raise ValueError("the Fréchet distance is measured on one rank only")
    mean, std = (torch.from_numpy(values).to(device) for values in (data.mean, data.std))
    unit = None if unit_std is None else torch.from_numpy(unit_std).to(device)
    skeleton = skeleton or skeleton_of(data)
    sums, own = (ScoreSums(model, data.layout, mean, std, data.fps, skeleton, unit) for _ in range(2))
    for segment in data.segments(split)[rank::world_size]:
        motion = torch.from_numpy(data.normalised(segment)).to(device)
        own.flat.zero_()
        reconstruction = own.add(motion[: len(motion) // multiple * multiple])
        sums.flat += own.flat
        if clips is not None and reconstruction is not None:
            clips.append(ClipScore(segment.name, segment.start, len(reconstruction), own.ratios()))
        if features is not None and reconstruction is not None:
            features.add(*(clip * std + mean for clip in (motion[: len(reconstruction)], reconstruction)))
    if world_size > 1:
        dist.all_reduce(sums.flat)
    return sums.scores(split) | (features.scores() if features is not None else {})


def skeleton_of(data: MotionData) -> Skeleton:
    """Returns the skeleton of the files, or the built-in one if they have none."""
    return figure_of(data.store.skeleton, Path(data.config.path or data.store.folder).stem, data.layout)


def held_out_split(data: MotionData) -> str:
    """Returns the split that training is evaluated on: val, else test, else train, the first that has clips."""
    return next(split for split in ("val", "test", "train") if data.segments(split))
