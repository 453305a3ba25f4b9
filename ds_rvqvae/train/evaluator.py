"""Evaluates the model during a run: scores and pictures, and at the end the tokenizer."""

import contextlib
import math
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.process.tolerance import tolerated
from ds_rvqvae.runs.abandoned import SCORES, clear_damaged_tokenizer
from ds_rvqvae.runs.history import Best
from ds_rvqvae.runs.pieces import write_json
from ds_rvqvae.runs.tokenizers import make_tokenizer, motion_state
from ds_rvqvae.tokenizer.folder import TOKENIZER
from ds_rvqvae.tokenizer.scores.evaluation import evaluate_split, held_out_split
from ds_rvqvae.train.averaging import WeightAverage
from ds_rvqvae.train.engine import fp32_model
from ds_rvqvae.train.metrics import Board, announce

_OF_JOINTS = ("mpjpe_mm", "pa_mpjpe_mm", "root_error_mm", "foot_sliding")
"""Scores of joints that TensorBoard gets if they were measured; `scores.json` has all."""


class Evaluator:
    """Scores the held-out split with fp32 weights, or their average, and keeps the best score so far.

    Args:
        engine: its module is the RVQ-VAE.
        data: training and held-out motion.
        run_folder: scores and pictures go into its `eval`, the tokenizer into its `tokenizer`.
        board: gets scores and pictures too.
        average: the average of the weights, if the run keeps one.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        data: MotionData,
        run_folder: Path,
        board: Board,
        average: WeightAverage | None = None,
    ) -> None:
        self._engine, self._data, self._run_folder = engine, data, run_folder
        self._board, self._average = board, average
        self._device = torch.device(engine.device)
        self._scores: dict[str, Any] = {}
        self._best_step: int | None = None
        self._best_before: tuple[float, int | None] = math.inf, None
        self.best_l1 = math.inf
        """Lowest L1 of the history's checkpoints and of the latest evaluation; a resumed run sets it."""

    def evaluate(self, step: int, file: str) -> RVQVAE:
        """Scores the present model, after `step` steps, and writes `eval/FILE`; every rank calls it.

        Returns:
            the model with the scored weights, in eval mode.
        """
        with self._average.in_place() if self._average else contextlib.nullcontext():
            model = fp32_model(self._engine)
        split = held_out_split(self._data)
        scores = evaluate_split(model, self._data, split, self._device, dist.get_rank(), dist.get_world_size())
        scores["step"] = step
        self._scores = scores
        if step and scores["l1"] is not None and scores["l1"] < self.best_l1:
            self._best_before = self.best_l1, self._best_step
            self.best_l1, self._best_step = scores["l1"], step
        if dist.get_rank() == 0:
            self._show(model, split, file)
        return model

    def scores_of(self, step: int) -> dict[str, Any] | None:
        """The scores after `step` steps, if the last evaluation was at that step."""
        return self._scores if self._scores.get("step") == step else None

    @property
    def last_scores(self) -> dict[str, Any] | None:
        """Scores of the history's last evaluation; None before the first evaluation of trained weights."""
        return self._scores if self._scores.get("step") else None

    def restore(self, last_scores: dict[str, Any] | None, best: Best | None) -> None:
        """Restores the scores of an earlier start."""
        self._scores = last_scores or {}
        if best is not None:
            self.best_l1, self._best_step = best.l1, best.mark.step

    def is_best(self, step: int) -> bool:
        """Whether the model after `step` steps was scored and has the best score so far."""
        return self._best_step == step

    def note_saved(self, step: int, fingerprint: str) -> None:
        """Called on rank 0 when the model after `step` steps was saved: its scores then name the checkpoint."""
        if self.scores_of(step) is not None:
            with tolerated(f"step {step}: scores not written"):
                write_json(self._run_folder / "eval" / SCORES, {**self._scores, "checkpoint": fingerprint})

    def note_not_saved(self, step: int) -> None:
        """Called when the model after `step` steps was not saved: then it is not the best, which must be on disk."""
        if self._best_step == step:
            self.best_l1, self._best_step = self._best_before

    def _show(self, model: RVQVAE, split: str, file: str) -> None:
        """Writes, on rank 0, scores to `eval/FILE`, pictures next to it, and both to TensorBoard. A failure is only a
        warning, because the other ranks continue to train."""
        scores, step = self._scores, self._scores["step"]
        with tolerated(f"step {step}: scores not written"):
            # Their checkpoint is known only after it is saved.
            named = scores | ({"checkpoint": None} if file == SCORES else {})
            write_json(self._run_folder / "eval" / file, named)
        names = ("l1", "angle_error_deg", "velocity_error", *(key for key in _OF_JOINTS if scores[key] is not None))
        with tolerated(f"step {step}: scores not printed"):
            announce(evaluation_line(scores, self.best_l1, self._best_step))
        group = split.capitalize()
        tags = {f"{group}/{name}": scores[name] for name in names}
        tags |= {f"{group}_usage/level_{level + 1}": value for level, value in enumerate(scores["usage"])}
        samples = self._engine.global_samples
        self._board.scalars(tags, samples)
        for level, count in enumerate(self._engine.module.quantizer.average_counts()):
            self._board.histogram(f"Train_code_counts/level_{level + 1}", count, samples)
        for shown in dict.fromkeys(("train", split)):
            with tolerated(f"step {step}: no picture of {shown}"):
                self._draw(model, shown, samples)

    def _draw(self, model: RVQVAE, split: str, samples: int) -> None:
        """Draws a clip of a split next to its reconstruction."""
        from ds_rvqvae.viz.reconstruction import reconstruction_pictures, save_figure  # late: matplotlib may be broken

        for name, figure in reconstruction_pictures(model, self._data, (split,), self._device):
            pixels = save_figure(figure, self._run_folder / "eval" / f"reconstruction_{name}.png")
            self._board.image(f"Reconstruction/{name}", pixels, samples)


def evaluation_line(scores: dict[str, Any], best_l1: float, best_step: int | None, columns: int = 80) -> str:
    """An evaluation as one line, shortened to fit into `columns` characters if possible.

    Args:
        scores: with their `step`, which is 0 before training.
        best_l1, best_step: the lowest L1 so far, and its step; None before the first.
    """
    step, l1, angle = scores["step"], scores["l1"], scores["angle_error_deg"]
    start = f"step {step:,}, {scores['split']}: "
    if l1 is None:
        return f"{start}no clip is long enough to be scored"
    perplexities = scores["perplexity"]
    in_use = sum(value > 1.01 for value in perplexities)  # a level that always gives the same code has 1
    levels = f"levels {in_use}/{len(perplexities)}"
    perplexity = f", perplexity {sum(perplexities) / len(perplexities):.0f}"
    for title, digits, more in (("angle ", 4, perplexity), ("angle ", 4, ""), ("angle ", 3, ""), ("", 3, "")):
        best = "before training" if not step else "best"
        if step and best_step != step:
            best = "no best yet" if best_step is None else f"best {best_l1:.{digits}f} at {best_step:,}"
        degrees = "" if angle is None else f"{title}{angle:.2f} deg, "
        line = f"{start}{degrees}L1 {l1:.{digits}f} ({best}), {levels}{more}"
        if len(line) <= columns:
            break
    return line


def export_tokenizer(
    model: RVQVAE, data: MotionData, run_folder: Path, step: int, scores: dict[str, Any], checkpoint: str
) -> None:
    """Writes, on rank 0, the tokenizer of `model` into the run's `tokenizer`; every rank calls it.

    Args:
        checkpoint: fingerprint of the checkpoint with these weights; only rank 0's is used.

    A failure is logged, with the command that exports the tokenizer later.
    """
    if dist.get_rank() == 0:
        details = {"training_step": step, "scores": scores, "checkpoint": checkpoint}
        command = f"ds-rvqvae export {run_folder} --out DIR"
        with tolerated(f"step {step}: tokenizer not exported", f"`{command}` does it"):
            tokenizer = make_tokenizer(model, motion_state(data, model.config), **details)
            clear_damaged_tokenizer(run_folder)
            tokenizer.save_pretrained(run_folder / TOKENIZER)
    dist.barrier()
