"""The training loop: step, codebooks, log, evaluate, save."""

import contextlib
from functools import cached_property
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from ds_rvqvae.config.profile import Profile
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.data.order import BatchOrder
from ds_rvqvae.model.losses import Losses, loss_columns, tokenizer_losses
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.process.progress import Progress, Stage
from ds_rvqvae.process.tolerance import tolerated
from ds_rvqvae.runs.abandoned import SCORES
from ds_rvqvae.runs.folder import copies_of
from ds_rvqvae.runs.heartbeat import Heartbeat
from ds_rvqvae.runs.history import Best, best_before
from ds_rvqvae.runs.motion import MOTION_FILE, MotionTable
from ds_rvqvae.runs.tokenizers import motion_state
from ds_rvqvae.train.averaging import WeightAverage
from ds_rvqvae.train.checkpointer import Checkpointer, load_checkpoint, make_universal
from ds_rvqvae.train.engine import build_engine, learning_rate, on_rank_zero_first, start_distributed
from ds_rvqvae.train.evaluator import Evaluator, export_tokenizer
from ds_rvqvae.train.first_latents import first_batches
from ds_rvqvae.train.metrics import StepLog, announce, logger
from ds_rvqvae.train.signals import Agreement, Wanted
from ds_rvqvae.train.summary import sum_up
from ds_rvqvae.train.zero.step import short_step_of


class Trainer:
    """Trains one run from its engine's step to `total_iter`; `Trainer.build` makes one.

    Either call `train`, which does everything, or call `initialize_codebooks` and then `step` repeatedly, and `close`
    at the end.

    Args:
        engine: its module is the RVQ-VAE; on a resume, weights and counters are restored already.
        profile: the run's profile.
        data: training and held-out motion.
        run_folder: the folder for everything that the run writes.
        client_state: that of the checkpoint to resume from; empty for a new run.
        agreement: lets the ranks save or stop together on a signal.
        heartbeat: shows the launcher that this rank makes progress.
        checkpoint: the checkpoint to resume from.
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
        checkpoint: Path | None = None,
    ) -> None:
        self.agreement, self.heartbeat = agreement, heartbeat
        self.engine, self.profile, self.data, self.run_folder = engine, profile, data, run_folder
        self.model: RVQVAE = engine.module
        self.short_step = short_step_of(engine)
        if self.short_step is not None:
            self.short_step.gathers_later = True  # while codebooks are updated
        self.settings = profile.rvqvae.training
        self.device = torch.device(engine.device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.steps_done = self.first_step = int(engine.global_steps)
        """Optimizer steps so far, the skipped ones included."""
        self.loss_columns = loss_columns(profile.rvqvae.loss, data.layout, data.mean, data.std, self.device)
        self.parts = profile.gradient_accumulation_steps * self.world_size
        """Micro batches per step over all ranks."""
        self.order = BatchOrder.of(data, profile.global_batch(self.world_size), self.settings.seed, self.parts)
        self.loader = BatchLoader(
            data,
            self.order,
            rank=self.rank,
            world_size=self.world_size,
            accumulation=profile.gradient_accumulation_steps,
            start_step=self.steps_done,
            num_workers=profile.rvqvae.data.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        self._next_batches: list[Tensor] | None = None
        """Batches of the next step, if the first codes have taken them from the loader already."""
        self.skipped_in_a_row = 0
        decay = self.settings.ema_decay
        self.average = None if decay is None else WeightAverage(engine, decay)
        self.log = StepLog(engine, self.loader, run_folder, self.steps_done)
        self.evaluator = Evaluator(engine, data, run_folder, self.log.board, self.average)
        self.checkpointer = Checkpointer(engine, run_folder, self.settings, checkpoint, self._beside)
        if checkpoint is not None:
            resumed = checkpoint
            best = on_rank_zero_first(lambda: best_before(resumed))
            self._restore(client_state["rvqvae"], best)

    @classmethod
    def build(
        cls,
        profile: Profile,
        data: MotionData,
        run_folder: Path,
        *,
        checkpoint: Path | None = None,
        universal: bool = False,
        init_from: Path | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> Self:
        """Builds the trainer of a run on this rank, with its engine; joins the other ranks if that is not done yet.

        Every rank calls it.

        Args:
            profile: its batch sizes must fit the number of ranks.
            data: with the run's normalisation.
            run_folder: created if it does not exist.
            checkpoint: the checkpoint that the run continues from.
            universal: whether a different number of ranks saved that checkpoint.
            init_from: folder of a tokenizer that the run starts from, if there is no checkpoint.
            heartbeat: this rank's heartbeat, if one was started.

        Raises:
            UserError: the batch cannot be divided among the ranks, or the tokenizer cannot be loaded.
        """
        if not dist.is_initialized():
            start_distributed()
        profile.check_world_size(dist.get_world_size())
        if universal and checkpoint is not None:
            converted = checkpoint
            on_rank_zero_first(lambda: make_universal(converted))
        on_rank_zero_first(lambda: (run_folder / "checkpoints").mkdir(parents=True, exist_ok=True))
        taken = () if init_from is None else (data.mean, data.std)
        engine = build_engine(profile, data.in_features, run_folder, universal, init_from, taken)
        client_state = {} if checkpoint is None else load_checkpoint(engine, checkpoint)
        heartbeat = heartbeat or Heartbeat.start(dist.get_rank())
        agreement = Agreement(heartbeat, run_folder)
        return cls(engine, profile, data, run_folder, client_state, agreement, heartbeat, checkpoint)

    def train(self) -> None:
        """Trains to `total_iter`, or until a signal asks the ranks to stop, and closes the trainer.

        The run's last step logs, saves, evaluates and exports. Signals are noted from the first step on, until the
        trainer is closed.
        """
        if self.checkpointer.saved_step is None:
            with self._stage("finding the first codes", quiet=bool(self.model.quantizer.initialized.item())):
                self.initialize_codebooks()
            with self._stage("scoring the untrained model"):
                self.evaluator.evaluate(self.steps_done, "untrained.json")
        with self.agreement.listening():
            self._loop()
            steps, saved = (self.first_step, self.steps_done), self.checkpointer.saved
            with self._stage("ending the training", quiet=True), self.heartbeat.long_work():
                sum_up(self.log.meter, self.profile, self.data, self.run_folder, steps, saved and saved.fingerprint)
                self.close()

    def _loop(self) -> None:
        progress = Progress(self.settings.total_iter, self.steps_done, self.run_folder.name, shown=self.rank == 0)
        self.log.start_interval()
        with self._stage("taking the first step") as first:
            while self.steps_done < self.settings.total_iter:
                with self.heartbeat.long_work() if self._may_compile() else contextlib.nullcontext():
                    losses = self.step()
                first.end()
                self.heartbeat.beat(self.steps_done)
                progress.step()
                if self._is_due(self.settings.log_every) or self.steps_done == 1:
                    several = self.data.config.window_sizes
                    window_size = self.order.window_size(self.steps_done - 1) if several else None
                    progress.note(self.log.write(self.steps_done, losses, window_size))
                request = self.agreement.after_step()
                # Everything that a step writes is there before its checkpoint, so a resume has nothing to repeat.
                evaluates = self._is_due(self.settings.eval_every)
                saves = self._is_due(self.settings.save_every) or request is not Wanted.NONE
                if evaluates or saves:
                    self.log.end_interval()
                    self._score_and_save(evaluates, saves)
                if request is Wanted.STOP:
                    break
                if saves or evaluates:
                    self.log.start_interval()
        progress.close()

    def _score_and_save(self, evaluates: bool, saves: bool) -> None:
        """Scores after a step, saves a checkpoint if one is due or the scores are best, exports after the last step."""
        scored = None
        with self.heartbeat.long_work():
            if evaluates:
                with self._stage(f"scoring and drawing step {self.steps_done:,}", quiet=True):
                    scored = self.evaluator.evaluate(self.steps_done, SCORES)
            if scored is not None and self.steps_done < self.settings.total_iter:
                scored = None  # free this copy of the model: only the export after the last step needs it
            if saves or self.evaluator.is_best(self.steps_done):
                with self._stage(f"saving step {self.steps_done:,}", quiet=True):
                    self.save()
            if scored is not None:
                with self._stage("exporting the tokenizer", quiet=True):
                    self._export(scored)

    def _stage(self, what: str, quiet: bool = False) -> Stage:
        """A stage whose name rank 0 prints."""
        return Stage(what, announce, shown=self.rank == 0, quiet=quiet)

    def initialize_codebooks(self) -> None:
        """Makes every level's first codes, if the quantizer has none: from the latents of the next global batch, or of
        the next few batches if one has too few."""
        quantizer, config = self.model.quantizer, self.profile.rvqvae.model
        if quantizer.initialized.item():
            return
        self._next_batches = batches = self.loader.next()
        if not quantizer.starts_with_first_step:
            parts = first_batches(self.loader, self.order, self.steps_done, config, self.rank, self.world_size)
            if parts is not None:
                size = len(batches[0])
                batches = [batch for part in parts for batch in torch.split(part, size)]
        self.model.train(quantizer.starts_with_first_step)
        latents = []
        for micro_step, batch in enumerate(batches):
            self.model.set_step(self.settings.seed, self.steps_done, micro_step, self.rank)
            with torch.no_grad():
                latents.append(self.model.encode_latents(batch.to(self.device)).flatten(0, 1))
        quantizer.set_step(self.settings.seed, self.steps_done)
        copies = quantizer.initialize_codebooks(torch.cat(latents))
        if copies:
            logger.warning("first codes: %d of all levels are copies with noise: too few latents are distinct", copies)

    def step(self) -> Losses:
        """Runs one optimizer step: the loader's next batch, engine, codebooks, weight average.

        Returns:
            this rank's losses, fp32 scalars on the device; their means over ranks are the losses of the global batch.

        Raises:
            RuntimeError: `max_skipped_steps` steps in a row had a loss or gradient that was not finite.
        """
        micro_batches, self._next_batches = self._next_batches or self.loader.next(), None
        self._set_learning_rate()
        if not self.model.training:
            self.engine.train()
        gathered = []
        global_batch = self.order.batch(self.steps_done)
        share = (*self.order.bounds(self.steps_done, self.rank, self.world_size), global_batch)
        for micro_step, batch in enumerate(micro_batches):
            motion = batch.to(self.device, non_blocking=True)
            self.model.set_step(self.settings.seed, self.steps_done, micro_step, self.rank)
            output = self.engine(motion)
            if self.short_step is not None and micro_step == len(micro_batches) - 1:
                self.model.quantizer.begin_update(self.short_step.group, share)
            losses = tokenizer_losses(
                output.reconstruction, motion, output.commit_loss, self.profile.rvqvae.loss, self.loss_columns
            )
            # If a batch does not divide evenly, micro batches differ by one window; the engine takes plain means.
            weight = len(batch) * self.parts / global_batch
            self.engine.backward(losses.loss if weight == 1 else losses.loss * weight)
            self.engine.step()
            losses = Losses(*(loss.detach() for loss in losses))
            gathered.append(losses if weight == 1 else Losses(*(torch.stack(losses) * weight)))
        applied = self.engine.was_step_applied()
        self.model.quantizer.update_codebooks(applied=applied, share=share)
        if self.short_step is not None:
            self.short_step.wait()
        if applied and self.average is not None:
            self.average.update()
        self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1
        if not applied:
            self._report_skipped()
        self.log.count(global_batch)
        self.steps_done += 1
        if len(gathered) == 1:
            return gathered[0]
        return Losses(*torch.stack([torch.stack(losses) for losses in gathered]).mean(dim=0))

    def save(self) -> None:
        """Saves a checkpoint of the present step, unless there is one. Every rank calls it.

        Raises:
            SaveFailedError: too many saves in a row failed, or the one of the last step.
        """
        if self.checkpointer.saved_step == self.steps_done:
            return
        self.log.sync()
        self.checkpointer.save(self.steps_done, self._state(), self.evaluator.is_best(self.steps_done))
        if self.checkpointer.saved_step != self.steps_done:
            self.evaluator.note_not_saved(self.steps_done)
        elif self.checkpointer.saved is not None:
            self.evaluator.note_saved(self.steps_done, self.checkpointer.saved.fingerprint)

    def _export(self, model: RVQVAE) -> None:
        """Makes the tokenizer of the last step, after its checkpoint, whose fingerprint it stores."""
        saved, scores = self.checkpointer.saved, self.evaluator.scores_of(self.steps_done)
        fingerprint = saved.fingerprint if saved else ""
        export_tokenizer(model, self.data, self.run_folder, self.steps_done, scores or {}, fingerprint)

    def close(self) -> None:
        """Ends threads, closes files and destroys the engine. Every rank calls it once."""
        for end in (self.loader.close, self.agreement.close, self.log.close, self.engine.destroy):
            with tolerated("at the end of the training, after all was saved"):
                end()

    def _beside(self) -> dict[str, bytes]:
        """The further files of a checkpoint, by name."""
        files = {MOTION_FILE: self._motion}
        with tolerated("the checkpoint has no copies of metrics.jsonl and similar files"):
            files |= copies_of(self.run_folder)
        return files

    @cached_property
    def _motion(self) -> bytes:
        return MotionTable.of(self.data).to_bytes()

    def _state(self) -> dict[str, Any]:
        """The state that DeepSpeed does not save itself."""
        state = motion_state(self.data, self.model.config)
        state["weight_average"] = self.average.state() if self.average else None
        state["usage_counts"] = self.model.quantizer.usage_counts.cpu()
        state["scores"] = self.evaluator.scores_of(self.steps_done)
        state["last_scores"] = self.evaluator.last_scores
        state |= {"best_l1": self.evaluator.best_l1, "skipped_in_a_row": self.skipped_in_a_row}
        state["distinct_replacements"] = self.model.quantizer.distinct_replacements
        return state

    def _restore(self, state: dict[str, Any], best: Best | None) -> None:
        """Restores the state that DeepSpeed does not.

        Args:
            best: the best of the history's checkpoints that still exist.
        """
        self.model.quantizer.distinct_replacements = state.get("distinct_replacements", False)
        self.model.quantizer.usage_counts.copy_(state["usage_counts"])
        if self.average is not None and state.get("weight_average"):
            self.average.restore(state["weight_average"])
        self.evaluator.restore(state.get("last_scores", state["scores"]), best)
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def _may_compile(self) -> bool:
        """Whether the next step may compile: its windows may be the first of their length in this process."""
        lengths = len(self.order.batches)
        return self.settings.compile and lengths > 1 and self.steps_done - self.first_step < 2 * lengths

    def _is_due(self, every: int) -> bool:
        return self.steps_done % every == 0 or self.steps_done == self.settings.total_iter

    def _report_skipped(self) -> None:
        """Logs the clips of a step that was not applied; raises RuntimeError after too many such steps in a row."""
        samples = self.order.step(self.steps_done)
        starts = self.data.training_windows[samples.window_size][samples.windows]
        clips = ", ".join(sorted(set(self.data.clip_names(starts))))
        logger.warning("step %d skipped: a loss or gradient was not finite; its clips: %s", self.steps_done + 1, clips)
        if self.skipped_in_a_row >= self.settings.max_skipped_steps:
            raise RuntimeError(
                f"{self.skipped_in_a_row} steps in a row had a loss or gradient that was not finite; run.log names "
                "their clips: repair the data or lower the learning rate, then --resume from the newest checkpoint"
            )

    def _set_learning_rate(self) -> None:
        base, schedule = self.profile.learning_rate(self.world_size), self.profile.rvqvae.schedule
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.steps_done, base, schedule, self.settings.total_iter)
