"""Score a model on the clips of a split."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.store.splits import Segment
from ds_rvqvae.model.exact import exactly
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.skeleton import Skeleton, figure_of
from ds_rvqvae.tokenizer.scores.frechet import FrechetFeatures
from ds_rvqvae.tokenizer.scores.metrics import ScoreSums
from ds_rvqvae.tokenizer.scores.published.loading import Evaluator
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
    evaluator: Evaluator | None = None,
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
        evaluator: adds the distances of a published evaluator, which cuts clips in its own way; on one rank only.
    """
    if (features is not None or evaluator is not None) and world_size > 1:
        raise ValueError("Fréchet distances are measured on one rank only")
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
        if evaluator is not None:
            _add_published(evaluator, model, data, segment, device)
    if world_size > 1:
        dist.all_reduce(sums.flat)
    scores = sums.scores(split)
    for further in (features, evaluator):
        scores |= further.scores() if further is not None else {}
    return scores


def _add_published(
    evaluator: Evaluator, model: RVQVAE, data: MotionData, segment: Segment, device: torch.device | str
) -> None:
    """Adds a clip, with all columns of its files, to a published evaluator.

    The tokenizer's columns come from the reconstruction of the frames that the evaluator takes, all others from the
    original. Up to a multiple of the down-sampling the last frame is repeated; what is decoded there is cut off.
    """
    frames = evaluator.frames(segment.stop - segment.start)
    if frames is None:
        return
    truth = np.array(data.store.clip(segment.name)[segment.start : segment.stop][frames])
    motion = data.normalise(truth[:, data.columns])
    padded = np.pad(motion, ((0, -len(motion) % model.config.code_stride), (0, 0)), mode="edge")
    with exactly(model), torch.no_grad():
        codes = model.encode(torch.from_numpy(padded).to(device).unsqueeze(0))
        decoded = model.decode(codes)[0, : len(motion)].float().cpu().numpy()
    found = truth.copy()
    found[:, data.columns] = decoded * data.std + data.mean
    evaluator.add(truth, found, data.columns)


def skeleton_of(data: MotionData) -> Skeleton:
    """Returns the skeleton of the files, or the built-in one if they have none."""
    return figure_of(data.store.skeleton, Path(data.config.path or data.store.folder).stem, data.layout)


def held_out_split(data: MotionData) -> str:
    """Returns the split that training is evaluated on: val, else test, else train, the first that has clips."""
    return next(split for split in ("val", "test", "train") if data.segments(split))
