"""The motion encoders of HumanML3D's text-motion matching: FID, diversity and matching of 263 and 251 columns.

Source: C. Guo et al. 2022, "Generating Diverse and Natural 3D Human Motions from Text"; `MovementConvEncoder` and
`MotionEncoderBiGRUCo` in github.com/EricGuo5513/text-to-motion, `networks/modules.py`, and their use in
`networks/evaluator_wrapper.py`. Weights: `checkpoints/t2m/text_mot_match/model/finest.tar`, KIT's under `kit`.

The protocol for a tokenizer is that of MoMask (github.com/EricGuo5513/momask-codes, `evaluation_vqvae_plus_mpjpe` in
`utils/eval_t2m.py` and `Text2MotionDatasetEval` in `data/t2m_dataset.py`). What differs:

- MoMask cuts a clip to a multiple of 4 frames, for one clip of three to one step of 4 less, at a random place. So do
  we, but with a fixed seed, the same cuts for every tokenizer. MoMask repeats this 20 times and gives the mean.
- MoMask leaves the last, incomplete batch of 32 out, after shuffling; here every clip counts.
- MoMask adds the pieces of clips that a text names with its times. They belong to the texts, which are not read here.
- MoMask's tokenizer sees a clip padded to 196 frames with zeros (the evaluator's mean); ours sees the clip alone, and
  zeros are added afterwards, as in T2M-GPT's `utils/eval_trans.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion import recovery
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.tokenizer.scores.frechet import Moments, frechet_distance

MOVEMENT_WIDTH, MOTION_WIDTH, EMBEDDING = 512, 1024, 512
_CONTACTS = 4
"""The last columns, which the encoders do not see."""
_UNIT, _LONGEST = 4, 196
_TOO_LONG = 200
"""Clips of so many frames are left out."""
_SHORTEST = {recovery.HUMANML3D: 40, recovery.KIT: 24}
_FPS = {recovery.HUMANML3D: 20.0, recovery.KIT: 12.5}
_AT_ONCE = 32
_SEED = 0
_NAMES = {recovery.HUMANML3D: "HumanML3D", recovery.KIT: "KIT"}


class MovementEncoder(nn.Module):
    """Encodes groups of four frames, `[B, T, columns]` to `[B, T / 4, 512]`; in eval mode, without dropout."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        # The places of the published sequence, so that its keys fit; dropout has no weights.
        self.main = nn.Sequential(
            nn.Conv1d(columns, MOVEMENT_WIDTH, kernel_size=4, stride=2, padding=1),
            nn.Identity(),
            nn.LeakyReLU(0.2),
            nn.Conv1d(MOVEMENT_WIDTH, MOVEMENT_WIDTH, kernel_size=4, stride=2, padding=1),
            nn.Identity(),
            nn.LeakyReLU(0.2),
        )
        self.out_net = nn.Linear(MOVEMENT_WIDTH, MOVEMENT_WIDTH)

    def forward(self, motion: Tensor) -> Tensor:
        return self.out_net(self.main(motion.mT).mT)  # type: ignore[no-any-return] # torch.nn.Module returns Any


class MotionEncoder(nn.Module):
    """Encodes `[B, T, 512]`, of which `lengths [B]` steps count, to `[B, 512]`, in the order given."""

    def __init__(self) -> None:
        super().__init__()
        self.input_emb = nn.Linear(MOVEMENT_WIDTH, MOTION_WIDTH)
        self.gru = nn.GRU(MOTION_WIDTH, MOTION_WIDTH, batch_first=True, bidirectional=True)
        self.output_net = nn.Sequential(
            nn.Linear(2 * MOTION_WIDTH, MOTION_WIDTH),
            nn.LayerNorm(MOTION_WIDTH),
            nn.LeakyReLU(0.2),
            nn.Linear(MOTION_WIDTH, EMBEDDING),
        )
        self.hidden = nn.Parameter(torch.zeros(2, 1, MOTION_WIDTH))

    def forward(self, movements: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.input_emb(movements), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, last = self.gru(packed, self.hidden.repeat(1, len(movements), 1))
        return self.output_net(torch.cat([last[0], last[1]], dim=-1))  # type: ignore[no-any-return] # as above


class MatchingEvaluator:
    """Gathers embeddings of clips and of their reconstructions.

    Args:
        movement, motion: state dicts of the two encoders, complete and of the documented shapes.
        columns: 263 or 251.
        mean, std: `[columns]`, the evaluator's own normalisation.
    """

    def __init__(
        self,
        movement: dict[str, Tensor],
        motion: dict[str, Tensor],
        columns: int,
        mean: NDArray[np.floating[Any]],
        std: NDArray[np.floating[Any]],
    ) -> None:
        self.columns, self.fps = columns, _FPS[columns]
        self.title = f"the text-motion matching of {_NAMES[columns]}"
        self.movement, self.motion = MovementEncoder(columns - _CONTACTS), MotionEncoder()
        self.movement.load_state_dict(movement, strict=True)
        self.motion.load_state_dict(motion, strict=True)
        self.mean, self.std = (torch.from_numpy(values.astype(np.float32)) for values in (mean, std))
        self.clear()

    def check(self, layout: Layout, place: str) -> None:
        """Raises UserError unless the evaluator takes motion with these columns."""
        if recovery.recovered_width(layout) != self.columns:
            raise UserError(
                f"{place}: {layout[-1].stop} columns, but {self.title} takes the {self.columns} of "
                f"{_NAMES[self.columns]}; give --data_path with such motion"
            )

    def clear(self) -> None:
        """Removes the gathered embeddings, for the next tokenizer, which then gets the same cuts."""
        self._random = np.random.default_rng(_SEED)
        self._truth: list[NDArray[np.float32]] = []
        self._found: list[NDArray[np.float32]] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def frames(self, length: int) -> slice | None:
        """Returns the frames to score of a clip, drawn with a fixed seed; None if the clip is left out."""
        if not _SHORTEST[self.columns] <= length < _TOO_LONG:
            return None
        kept = length // _UNIT * _UNIT - _UNIT * (self._random.integers(3) == 0)
        start = int(self._random.integers(length - kept + 1))
        return slice(start, start + int(kept))

    def add(self, truth: NDArray[np.float32], found: NDArray[np.float32], covered: NDArray[np.int64]) -> None:
        """Adds the frames of a clip and their reconstruction, `[T, columns]` each, in the data's own units."""
        self._waiting.append((torch.from_numpy(truth), torch.from_numpy(found)))
        if len(self._waiting) == _AT_ONCE:
            self._encode_waiting()

    def _encode_waiting(self) -> None:
        if self._waiting:
            truth, found = zip(*self._waiting, strict=True)
            self._truth.append(self.embeddings(truth))
            self._found.append(self.embeddings(found))
            self._waiting.clear()

    @torch.no_grad()
    def embeddings(self, clips: Sequence[Tensor]) -> NDArray[np.float32]:
        """Returns embeddings `[B, 512]` of clips `[T, columns]` in the data's own units, in their order."""
        lengths = torch.tensor([len(clip) for clip in clips])
        padded = torch.zeros(len(clips), _LONGEST, self.columns)
        for row, clip in zip(padded, clips, strict=True):
            row[: len(clip)] = (clip - self.mean) / self.std
        embeddings: NDArray[np.float32] = self.motion(self.movement(padded[..., :-_CONTACTS]), lengths // _UNIT).numpy()
        if not np.isfinite(embeddings).all():
            raise UserError("--evaluator: the embeddings are not finite; --evaluator_std must have no zero")
        return embeddings

    def scores(self) -> dict[str, Any]:
        """Returns `fid`, `diversity` of reconstructions and of the original, `matching` and what they were made from.

        Raises:
            UserError: fewer than two clips fit.
        """
        self._encode_waiting()
        count = sum(map(len, self._truth))
        if count < 2:
            raise UserError(
                f"--evaluator: {count} clips of {_SHORTEST[self.columns]} to {_TOO_LONG - 1} frames are too few for a "
                "distance; score a split with more"
            )
        truth, found = np.concatenate(self._truth), np.concatenate(self._found)
        moments = (Moments(), Moments())
        moments[0].add(truth)
        moments[1].add(found)
        pairs = self._pairs(count)
        return {
            "fid": frechet_distance(*moments),
            "matching": float(np.linalg.norm(truth - found, axis=1).mean()),
            "diversity": diversity(found, pairs),
            "diversity_truth": diversity(truth, pairs),
            "evaluator_samples": count,
            "evaluator_dimensions": EMBEDDING,
            "evaluator": self.title,
        }

    def _pairs(self, count: int) -> NDArray[np.int64] | None:
        """Returns indices `[2, 300]`, or `[2, 100]` of 300 clips or fewer; None of 100 or fewer, as published."""
        times = 300 if count > 300 else 100
        if count <= times:
            return None
        random = np.random.default_rng(_SEED)
        return np.stack([random.choice(count, times, replace=False) for _ in range(2)])


def diversity(embeddings: NDArray[np.float32], pairs: NDArray[np.int64] | None) -> float | None:
    """Returns the mean distance of pairs of embeddings; None without pairs."""
    if pairs is None:
        return None
    return float(np.linalg.norm(embeddings[pairs[0]] - embeddings[pairs[1]], axis=1).mean())
