"""The training loop: step, codebooks, log, evaluate, save."""

import contextlib
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ds_rvqvae.config.profile import Profile
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.data.order import BatchOrder
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.losses import Losses, loss_columns, tokenizer_losses
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.model.vq import perplexity_of
from ds_rvqvae.runs.heartbeat import Heartbeat
from ds_rvqvae.runs.tokenizers import make_tokenizer, motion_state
from ds_rvqvae.tokenizer.evaluation import evaluate_split, held_out_split
from ds_rvqvae.train.averaging import WeightAverage
from ds_rvqvae.train.checkpointer import Keeping, SaveFailedError, save_checkpoint
from ds_rvqvae.train.engine import fp32_model, learning_rate
from ds_rvqvae.train.first_latents import count_steps, stretch
from ds_rvqvae.train.metrics import Board, MemoryAlarm, MetricsFile, SpikeAlarm, logger
from ds_rvqvae.train.readings import RankMeter, board_tags, gather_readings, metrics_of
from ds_rvqvae.train.signals import Agreement, Request
from ds_rvqvae.train.summary import sum_up
from ds_rvqvae.viz.reconstruction import reconstruction_pictures, save_figure

_TOLERATED_FAILED_SAVES = 3


@dataclasses.dataclass
class Interval:
    """The host's clock and the steps since the last logged one."""

    started: float
    windows: int = 0
    """Over all ranks."""


class Trainer:
    """Trains one run from where its engine stands to `total_iter`.

    Args:
        engine: its module is the RVQ-VAE; weights and counters already restored on a resume.
        profile: the run's.
        data: training and held-out motion.
        run_folder: where everything goes.
        client_state: of the checkpoint resumed from; empty at the start.
        agreement: by which ranks save or stop together on a signal.
        heartbeat: by which the launcher sees that this rank gets on.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        profile: Profile,
        data: MotionData,
        run_folder: Path,
        client_state: dict[str, Any],
        agreement: Agreement,
        heartbeat: Heartbeat,
    ) -> None:
        self.agreement, self.heartbeat = agreement, heartbeat
        self.engine, self.profile, self.data, self.run_folder = engine, profile, data, run_folder
        self.model = engine.module
        self.settings = profile.rvqvae.training
        self.device = torch.device(engine.device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.step = self.first_step = engine.global_steps
        self.loss_columns = loss_columns(profile.rvqvae.loss, data.layout, data.mean, data.std, self.device)
        self.parts = profile.gradient_accumulation_steps * self.world_size
        """Micro batches of a step over all ranks."""
        self.order = BatchOrder.of(data, profile.global_batch(self.world_size), self.settings.seed, self.parts)
        self.loader = BatchLoader(
            data,
            self.order,
            rank=self.rank,
            world_size=self.world_size,
            accumulation=profile.gradient_accumulation_steps,
            start_step=self.step,
            num_workers=profile.rvqvae.data.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        decay = self.settings.ema_decay
        self.average = None if decay is None else WeightAverage(engine, decay)
        self.best_l1 = math.inf
        self.scores: dict[str, Any] = {}
        """Of the last evaluation."""
        self.is_best = False
        """Whether the model as it is now scores best so far on held-out motion."""
        self.skipped_in_a_row = self.failed_saves = 0
        self.saved_step = self.step if client_state else None
        if client_state:
            self._restore(client_state["rvqvae"])
        self.board = Board(engine)
        self.metrics = MetricsFile(run_folder / "metrics.jsonl", self.step) if self.rank == 0 else None
        self.spikes = SpikeAlarm(line["loss"] for line in self.metrics.earlier) if self.metrics else SpikeAlarm()
        self.interval = Interval(time.perf_counter())
        self.meter, self.memory_alarm = RankMeter(self.device), MemoryAlarm()

    def train(self) -> None:
        """Runs to `total_iter`, or to the step at which the ranks are asked to stop.

        The last step of all logs, saves, evaluates and exports.
        """
        bar = self._progress_bar()
        first_batch = None
        if self.saved_step is None:
            if not self.model.quantizer.initialized.item():
                first_batch = self.loader.next()
                self._initialize_codebooks(first_batch)
            self._evaluate("untrained.json")
        self._start_interval()
        while self.step < self.settings.total_iter:
            with self.heartbeat.long_work() if self._may_compile() else contextlib.nullcontext():
                losses = self._train_step(first_batch or self.loader.next())
            first_batch = None
            self.step += 1
            self.is_best = False
            self.heartbeat.beat(self.step)
            bar.update()
            if self._is_due(self.settings.log_every) or self.step == 1:
                bar.set_postfix(self._log(losses), refresh=False)
            request = self.agreement.after_step()
            # All that a step leaves is there before its checkpoint is, so that a resume has nothing to make up for.
            evaluates = self._is_due(self.settings.eval_every)
            saves = self._is_due(self.settings.save_every) or request is not Request.NONE
            if evaluates or saves:
                self.meter.leave_steps()
            with self.heartbeat.long_work():
                if evaluates:
                    self._evaluate("scores.json", export=self.step == self.settings.total_iter)
                if saves or self.is_best:
                    self._save()
            if request is Request.STOP:
                break
            if saves or evaluates:
                self._start_interval()
        bar.close()
        self._close()

    def _may_compile(self) -> bool:
        """Whether the next step's windows may be the first of their length in this process."""
        lengths = len(self.order.batches)
        return self.settings.compile and lengths > 1 and self.step - self.first_step < 2 * lengths

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.total_iter

    def _train_step(self, micro_batches: list[Tensor]) -> Tensor:
        """One optimizer step. Gives this rank's losses `[6]` on the device, whose mean over ranks is the batch's."""
        self._set_learning_rate()
        self.engine.train()
        gathered = []
        global_batch = self.order.batch(self.step)
        for micro_step, batch in enumerate(micro_batches):
            motion = batch.to(self.device, non_blocking=True)
            self.model.set_step(self.settings.seed, self.step, micro_step, self.rank)
            output = self.engine(motion)
            losses = tokenizer_losses(
                output.reconstruction, motion, output.commit_loss, self.profile.rvqvae.loss, self.loss_columns
            )
            # Micro batches of a length that does not divide evenly differ by a window; the engine takes plain means.
            weight = len(batch) * self.parts / global_batch
            self.engine.backward(losses.loss if weight == 1 else losses.loss * weight)
            self.engine.step()
            gathered.append(torch.stack([loss.detach() for loss in losses]) * weight)
        applied = self.engine.was_step_applied()
        share = (*self.order.bounds(self.step, self.rank, self.world_size), global_batch)
        self.model.quantizer.update_codebooks(applied=applied, share=share)
        if applied and self.average is not None:
            self.average.update()
        self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1
        if not applied:
            self._report_skipped()
        self.interval.windows += global_batch
        return torch.stack(gathered).mean(dim=0)

    def _report_skipped(self) -> None:
        """Names the clips of a step that was not applied; raises RuntimeError after too many in a row."""
        samples = self.order.step(self.step)
        starts = self.data.training_windows[samples.window_size][samples.windows]
        clips = ", ".join(sorted(set(self.data.clip_names(starts))))
        logger.warning("step %d skipped: a loss or gradient was not finite; its clips: %s", self.step + 1, clips)
        if self.skipped_in_a_row >= self.settings.max_skipped_steps:
            raise RuntimeError(
                f"{self.skipped_in_a_row} steps in a row had a loss or gradient that was not finite; run.log names "
                "their clips: mend the data or lower the learning rate, then --resume from the newest checkpoint"
            )

    def _set_learning_rate(self) -> None:
        base = self.profile.learning_rate(self.world_size)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, base, self.profile.rvqvae.schedule, self.settings.total_iter)

    def _initialize_codebooks(self, micro_batches: list[Tensor]) -> None:
        """Every level's first codes, from the latents of the first global batch, or of the first few where it has too
        few: without dropout, but the lineage's from those that its first step quantizes."""
        config = self.profile.rvqvae.model
        batches = micro_batches
        if not config.lineage:
            steps, latents = count_steps(self.order, self.step, config)
            if steps > 1:
                logger.info("first codes: %d of a level from %d latents, %d batches", config.nb_code, latents, steps)
                wanted = range(self.step, self.step + steps)
                parts = stretch(self.loader, self.order, wanted, self.rank, self.world_size)
                batches = [batch for part in parts for batch in part.split(len(micro_batches[0]))]
        self.model.train(config.lineage)
        latents = []
        for micro_step, batch in enumerate(batches):
            self.model.set_step(self.settings.seed, self.step, micro_step, self.rank)
            with torch.no_grad():
                latents.append(self.model.encode_latents(batch.to(self.device)).flatten(0, 1))
        self.model.quantizer.set_step(self.settings.seed, self.step)
        copies = self.model.quantizer.initialize_codebooks(torch.cat(latents))
        if copies:
            logger.warning("first codes: %d of all levels are copies, a little apart: too few latents differ", copies)

    def _start_interval(self) -> None:
        """Speed and memory of steps are measured without what saving and evaluating took."""
        self.meter.enter_steps()
        self.interval = Interval(time.perf_counter())
        self.loader.take_wait()

    def _log(self, losses: Tensor) -> dict[str, str]:
        """Writes a logged step's metrics and gives what the progress bar shows."""
        numbers = torch.cat([losses, torch.tensor([self.loader.take_wait()], device=self.device)])
        (*loss_values, waited), readings = gather_readings(numbers, self.meter.read())
        seconds = time.perf_counter() - self.interval.started
        speed = self.interval.windows / seconds if seconds else 0.0
        counts = self.model.quantizer.take_usage_counts()
        norm = self.engine.get_global_grad_norm()
        metrics: dict[str, Any] = {
            "step": self.step,
            **({"window_size": self.order.window_size(self.step - 1)} if self.data.config.window_sizes else {}),
            **dict(zip(Losses._fields, loss_values, strict=True)),
            "perplexity": perplexity_of(counts).tolist(),
            "usage": (counts > 0).float().mean(dim=1).tolist(),
            "lr": self.engine.optimizer.param_groups[0]["lr"],
            "grad_norm": None if norm is None else float(norm),
            "skipped_steps": self.engine.skipped_steps,
            "samples_per_s": speed,
            "data_wait": waited / seconds if seconds else 0.0,
            **metrics_of(readings),
        }
        if self.metrics is not None:
            self.metrics.write(metrics)
        self._show(metrics)
        for warning in self.memory_alarm.look(readings):
            logger.warning("step %d: %s", self.step, warning)
        self.interval = Interval(time.perf_counter())
        return {"loss": f"{metrics['loss']:.4f}", "samples/s": f"{speed:.1f}"}

    def _show(self, metrics: dict[str, Any]) -> None:
        """A logged step on TensorBoard."""
        tags = {f"Train/{name}": metrics[name] for name in (*Losses._fields, "lr", "grad_norm", "skipped_steps")}
        tags["Train/loss_spike"] = float(self.spikes.is_spike(metrics["loss"]))
        if tags["Train/loss_spike"]:
            logger.warning("step %d: the loss jumped to %.4g", self.step, metrics["loss"])
        tags["Speed/samples_per_s"], tags["Speed/data_wait"] = metrics["samples_per_s"], metrics["data_wait"]
        for name in ("perplexity", "usage"):
            tags |= {f"Train_{name}/level_{level + 1}": value for level, value in enumerate(metrics[name])}
        self.board.scalars(tags | board_tags(metrics), self.engine.global_samples)

    def _evaluate(self, file: str, export: bool = False) -> None:
        """Scores the held-out split with fp32 weights, or their average, into `eval/FILE`; exports those if asked."""
        with self.average.in_place() if self.average else contextlib.nullcontext():
            model = fp32_model(self.engine)
        split = held_out_split(self.data)
        scores = evaluate_split(model, self.data, split, self.device, self.rank, self.world_size)
        scores["step"] = self.step
        self.scores = scores
        if self.step and scores["l1"] is not None:
            self.is_best = scores["l1"] < self.best_l1
            self.best_l1 = min(self.best_l1, scores["l1"])
        if self.rank == 0:
            try:
                self._show_evaluation(model, split, scores, file)
            except OSError as error:
                logger.warning("step %d: scores and pictures not written: %s", self.step, error)
        if export:
            self._export(model, scores)

    def _show_evaluation(self, model: RVQVAE, split: str, scores: dict[str, Any], file: str) -> None:
        """Rank 0: scores into `eval/FILE`, pictures beside it, all of it to TensorBoard."""
        folder = self.run_folder / "eval"
        folder.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        samples = self.engine.global_samples
        names = ("l1", "angle_error_deg", "velocity_error")
        group = split.capitalize()
        tags = {f"{group}/{name}": scores[name] for name in names}
        tags |= {f"{group}_usage/level_{level + 1}": value for level, value in enumerate(scores["usage"])}
        self.board.scalars(tags, samples)
        for level, count in enumerate(self.model.quantizer.average_counts()):
            self.board.histogram(f"Train_code_counts/level_{level + 1}", count, samples)
        splits = tuple(dict.fromkeys(("train", split)))
        for name, figure in reconstruction_pictures(model, self.data, splits, self.device):
            pixels = save_figure(figure, folder / f"reconstruction_{name}.png")
            self.board.image(f"Reconstruction/{name}", pixels, samples)
        logger.info("step %d, %s: %s", self.step, split, {name: scores[name] for name in names})

    def _save(self) -> None:
        """Saves, unless this step is saved already; a failure is reported and tried again at the next interval.

        Raises:
            SaveFailedError: after as many failures in a row as are tolerated.
        """
        if self.saved_step == self.step:
            return
        self.board.flush()
        state = motion_state(self.data, self.model.config)
        state["weight_average"] = self.average.state() if self.average else None
        state["usage_counts"] = self.model.quantizer.usage_counts.cpu()
        state["scores"] = self.scores if self.scores.get("step") == self.step else None
        state |= {"best_l1": self.best_l1, "skipped_in_a_row": self.skipped_in_a_row}
        state["distinct_replacements"] = self.model.quantizer.distinct_replacements
        keeping = Keeping(self.settings.keep_checkpoints, self.settings.keep_every, self.is_best)
        try:
            saved = save_checkpoint(self.engine, self.run_folder / "checkpoints", {"rvqvae": state}, keeping)
        except SaveFailedError as failure:
            self.failed_saves += 1
            logger.warning("step %d: no checkpoint saved, the older ones stay: %s", self.step, failure)
            if self.failed_saves >= _TOLERATED_FAILED_SAVES or self.step == self.settings.total_iter:
                raise
            return
        self.failed_saves, self.saved_step = 0, self.step
        logger.info("step %d: saved %s", self.step, saved)

    def _restore(self, state: dict[str, Any]) -> None:
        """What DeepSpeed did not restore."""
        self.model.quantizer.distinct_replacements = state.get("distinct_replacements", False)
        self.model.quantizer.usage_counts.copy_(state["usage_counts"])
        if self.average is not None and state.get("weight_average"):
            self.average.restore(state["weight_average"])
        self.best_l1, self.skipped_in_a_row = state["best_l1"], state["skipped_in_a_row"]

    def _export(self, model: RVQVAE, scores: dict[str, Any]) -> None:
        """The tokenizer, in `tokenizer/`."""
        if self.rank == 0:
            state = motion_state(self.data, self.model.config)
            tokenizer = make_tokenizer(model, state, training_step=self.step, scores=scores)
            try:
                tokenizer.save_pretrained(self.run_folder / "tokenizer")
            except (OSError, UserError) as error:
                command = f"ds-rvqvae export {self.run_folder} --out DIR"
                logger.warning("step %d: tokenizer not exported: %s; `%s` does it", self.step, error, command)
        dist.barrier()

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.settings.total_iter,
            initial=self.step,
            disable=self.rank != 0,
            unit="step",
            desc=self.run_folder.name,
            mininterval=0.5,
            dynamic_ncols=True,
        )

    def _close(self) -> None:
        self.loader.close()
        self.agreement.close()
        self.board.flush()
        if self.metrics is not None:
            self.metrics.close()
        sum_up(self.meter, self.profile, self.data, self.run_folder, (self.first_step, self.step))
        self.meter.close()
