"""Scores and pictures of a model on the clips of a split."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from matplotlib.figure import Figure

from ds_rvqvae.data.motion_data import MotionData
from ds_rvqvae.data.splits import Segment
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.tokenizer.pictures import reconstruction_figure
from ds_rvqvae.tokenizer.score import ScoreSums

_PICTURE_SECONDS = 10


def evaluate_split(
    model: RVQVAE, data: MotionData, split: str, device: torch.device | str, rank: int = 0, world_size: int = 1
) -> dict[str, Any]:
    """Scores of whole clips, dealt out over the ranks; every rank gets the scores of all.

    Args:
        model: fp32, in eval mode, on `device`.
        split: train, val, test or all.
        rank, world_size: this rank's place; more than one takes torch.distributed.
    """
    mean, std = (torch.from_numpy(values).to(device) for values in (data.mean, data.std))
    sums = ScoreSums(model, data.layout, mean, std)
    for segment in data.segments(split)[rank::world_size]:
        sums.add(torch.from_numpy(data.normalised(segment)).to(device))
    if world_size > 1:
        dist.all_reduce(sums.flat)
    return sums.scores(split)


def held_out_split(data: MotionData) -> str:
    """The split that shows how training goes: val, or test or train where the data have none."""
    return next(split for split in ("val", "test", "train") if data.segments(split))


def reconstruction_pictures(
    model: RVQVAE, data: MotionData, splits: tuple[str, ...], device: torch.device | str
) -> Iterator[tuple[str, Figure]]:
    """A figure of the longest clip's first seconds for each split that has clips."""
    for split in splits:
        segments = data.segments(split)
        if segments:
            yield split, _picture(model, data, max(segments, key=lambda part: part.stop - part.start), split, device)


@torch.no_grad()
def _picture(model: RVQVAE, data: MotionData, segment: Segment, split: str, device: torch.device | str) -> Figure:
    stride = model.config.code_stride
    frames = min(segment.stop - segment.start, int(_PICTURE_SECONDS * data.fps)) // stride * stride
    motion = torch.from_numpy(data.normalised(segment)[:frames]).to(device)
    found = model.decode(model.encode(motion.unsqueeze(0)))[0].float().cpu().numpy() * data.std + data.mean
    title = f"{segment.name} ({split}), all {model.config.num_quantizers} levels"
    return reconstruction_figure(data.frames(segment)[:frames], found, data.layout, data.fps, title)
