"""The motion autoencoder of BEAT2 in EMAGE's evaluation: FGD of SMPL-X's 55 joints.

Source: H. Liu et al. 2024, "EMAGE"; `VAESKConv`, its `LocalEncoder` and `FGD` in `emage_evaltools/motion_encoder.py`,
`skeleton.py`, `skeleton_DME.py` and `mertic.py` (so spelled) of github.com/PantoMatrix/PantoMatrix. Weights:
`AESKConv_240_100.bin`. The encoder's layers are skeleton convolutions (Aberman et al. 2020).

Protocol: complete clips at 30 frames per second, cut at the end to a multiple of 32 frames; 330 columns, the 55 joints
as 6D (the first two rows of the matrix, which is our order too), made orthonormal; not normalised. Each clip gives
T / 16 features of 240 numbers, and all of them one Gaussian. Under the matrix root EMAGE adds 1e-6 to both diagonals,
and so do we; a result below 0, which that can give for nearly equal motion, is 0 here.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import SMPLX_JOINTS, SMPLX_PARENTS, Layout
from ds_rvqvae.motion.rotations import matrix_to_rotation_6d, rotation_6d_to_matrix
from ds_rvqvae.tokenizer.scores.frechet import Moments, frechet_distance

_CHANNELS = (6, 6, 6, 12, 12)
"""Channels per edge before and after each layer."""
_KERNEL, _GROUPS, _REACH = 4, 10, 2
_MULTIPLE = 32
_OFFSET = 1e-6

Edge = tuple[int, int]


def smplx_edges() -> list[Edge]:
    """Returns a (parent, joint) per joint; that of the pelvis leads to a joint 55 that is not there."""
    return [(0, len(SMPLX_JOINTS)), *((parent, joint) for joint, parent in enumerate(SMPLX_PARENTS) if parent >= 0)]


def pooled_edges(edges: Sequence[Edge], last: bool) -> tuple[list[list[int]], list[Edge]]:
    """Returns the edges that each new edge is the mean of, and the new edges.

    Chains of edges without a branch are merged in pairs, from the front if their number is even, else after the first
    edge; by the last layer, which makes no new edges, as a whole.
    """
    degrees = np.bincount(np.ravel(edges))
    chains: list[list[int]] = []

    def follow(joint: int, chain: list[int]) -> None:
        if degrees[joint] > 2 and joint != 0:
            chains.append(chain)
            chain = []
        if degrees[joint] == 1:
            chains.append(chain)
            return
        for index, (parent, child) in enumerate(edges):
            if parent == joint:
                follow(child, [*chain, index])

    follow(0, [])
    if last:
        return chains, []
    groups = [
        group
        for chain in chains
        for group in ([chain[:1]] if len(chain) % 2 else [])
        + [chain[start : start + 2] for start in range(len(chain) % 2, len(chain), 2)]
    ]
    return groups, [(edges[group[0]][0], edges[group[-1]][1]) for group in groups]


class SkeletonConv(nn.Module):
    """A convolution over time whose weights join neighbouring edges only; `mask`, from the file, says which.

    Takes `[B, edges * channels, T]`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, padding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.mask = nn.Parameter(torch.zeros(out_channels, in_channels, kernel), requires_grad=False)
        self.padding = padding

    def forward(self, motion: Tensor) -> Tensor:
        return functional.conv1d(motion, self.weight * self.mask, self.bias, stride=2, padding=self.padding)


class _EdgeMeans(nn.Module):
    """Means over the edges of a group; the matrix comes from the file."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels), requires_grad=False)

    def forward(self, motion: Tensor) -> Tensor:
        return self.weight @ motion


class _Layer(nn.Module):
    """Halves the frames, then merges edges."""

    def __init__(self, edges: int, merged: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inside, outside = edges * in_channels, edges * out_channels
        conv = SkeletonConv(inside, outside, _KERNEL, (_KERNEL - 1) // 2)
        self.residual = nn.Sequential(conv, nn.GroupNorm(_GROUPS, outside))
        self.shortcut = SkeletonConv(inside, outside, 1, 0)
        pool = [_EdgeMeans(outside, merged * out_channels)] if merged != edges else []
        self.common = nn.Sequential(*pool, nn.Tanh())

    def forward(self, motion: Tensor) -> Tensor:
        return self.common(self.residual(motion) + self.shortcut(motion))  # type: ignore[no-any-return] # Module is Any


class GestureEncoder(nn.Module):
    """Encodes `[B, T, 330]` to `[B, T / 16, 240]`."""

    def __init__(self) -> None:
        super().__init__()
        edges, self.layers = smplx_edges(), nn.ModuleList()
        for layer, (before, after) in enumerate(pairwise(_CHANNELS)):
            groups, new = pooled_edges(edges, last=layer == len(_CHANNELS) - 2)
            self.layers.append(nn.Sequential(_Layer(len(edges), len(groups), before, after)))
            edges = new

    def forward(self, motion: Tensor) -> Tensor:
        motion = motion.mT
        for layer in self.layers:
            motion = layer(motion)
        return motion.mT


class GestureEvaluator:
    """Gathers features of clips and of their reconstructions.

    Args:
        encoder: state dict of the encoder, complete and of the documented shapes.
    """

    fps = 30.0
    title = "the motion autoencoder of EMAGE's evaluation"

    def __init__(self, encoder: dict[str, Tensor]) -> None:
        self.encoder = GestureEncoder()
        self.encoder.load_state_dict(encoder, strict=True)
        self._columns: NDArray[np.int64] = np.zeros(0, np.int64)
        self.clear()

    def check(self, layout: Layout, place: str) -> None:
        """Raises UserError unless the motion, with all columns of its files, has the 55 joints of SMPL-X as 6D."""
        starts = {part.name: part.start for part in layout if part.kind == "rotation_6d"}
        missing = [name for name in SMPLX_JOINTS if name not in starts]
        if missing:
            raise UserError(
                f"{place}: has no rotations of {missing[0]}, but {self.title} takes the 55 joints of SMPL-X; give "
                "--data_path with BEAT2 motion"
            )
        self._columns = (np.array([starts[name] for name in SMPLX_JOINTS])[:, None] + np.arange(6)).ravel()

    def clear(self) -> None:
        """Removes the gathered features, for the next tokenizer."""
        self._truth, self._found = Moments(), Moments()
        self._covered = 0

    def frames(self, length: int) -> slice | None:
        """Returns the frames to score of a clip; None if it is shorter than 32 frames."""
        return slice(0, length // _MULTIPLE * _MULTIPLE) if length >= _MULTIPLE else None

    def add(self, truth: NDArray[np.float32], found: NDArray[np.float32], covered: NDArray[np.int64]) -> None:
        """Adds the frames of a clip and their reconstruction, `[T, C]` each, all columns of the files.

        Args:
            covered: the columns that were reconstructed; all others are the original's in `found` too.
        """
        self._covered = int(np.isin(self._columns, covered).sum()) // 6
        self._truth.add(self.features(truth))
        self._found.add(self.features(found))

    @torch.no_grad()
    def features(self, motion: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns features `[T / 16, 240]` of motion `[T, C]`."""
        joints = motion[:, self._columns].reshape(len(motion), len(SMPLX_JOINTS), 6)
        rows = matrix_to_rotation_6d(rotation_6d_to_matrix(joints.astype(np.float64))).reshape(1, len(motion), -1)
        features: NDArray[np.float32] = self.encoder(torch.from_numpy(rows).float())[0].numpy()
        if not np.isfinite(features).all():
            raise UserError("--evaluator: the features are not finite; the weights do not fit the motion")
        return features

    def scores(self) -> dict[str, Any]:
        """Returns `fgd`, the number of joints that were reconstructed, and what the distance was made from.

        Raises:
            UserError: fewer than two features.
        """
        if self._truth.count < 2:
            raise UserError("--evaluator: no clip of 32 frames or more, which a distance needs; score a larger split")
        return {
            "fgd": frechet_distance(self._truth, self._found, _OFFSET),
            "fgd_joints": self._covered,
            "evaluator_samples": self._truth.count,
            "evaluator_dimensions": len(self._truth.mean),
            "evaluator": self.title,
        }
