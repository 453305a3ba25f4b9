"""What a run tells about itself: `metrics.jsonl`, TensorBoard and the log. Rank 0 writes; the others pass through."""

import json
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.errors import PrintableFormatter
from ds_rvqvae.files import AppendedLines, parse_json, sync, whole_file
from ds_rvqvae.model.losses import Losses
from ds_rvqvae.model.vq import perplexity_of
from ds_rvqvae.process.terminal import PLAIN, Block, terminal_of
from ds_rvqvae.process.tolerance import tolerated
from ds_rvqvae.runs.folder import METRICS
from ds_rvqvae.runs.log import RunLog
from ds_rvqvae.train.engine import Monitors
from ds_rvqvae.train.readings import RankMeter, Reading, board_tags, gather_readings, metrics_of

logger = logging.getLogger("ds_rvqvae")


def start_log(file: Path, rank: int) -> None:
    """Sends rank 0's messages, and errors of any rank, to `file`; rank 0's warnings to the terminal as well, but for
    those of libraries."""
    to_file = RunLog(file, f"rank {rank}")
    to_file.setLevel(logging.ERROR if rank else logging.INFO)
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    to_terminal.addFilter(lambda record: rank == 0 and record.levelno == logging.WARNING)
    logger.handlers[:] = [to_file, to_terminal]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # What libraries warn of, and what ends a thread, TensorBoard's for one, is for the log, a line each.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers[:] = [to_file]
    level = logging.ERROR if rank else logging.WARNING  # what other ranks warn of goes nowhere
    threading.excepthook = lambda failed: logger.log(
        level, "thread %s ended: %s: %s", getattr(failed.thread, "name", ""), failed.exc_type.__name__, failed.exc_value
    )


def announce(*blocks: Block) -> None:
    """Rank 0 says something about the run, on the terminal and in the log: lines and tables."""
    logger.info(PLAIN.text(blocks))
    if dist.get_rank() == 0:
        print(terminal_of(sys.stderr).text(blocks), file=sys.stderr, flush=True)


class MetricsFile:
    """`metrics.jsonl`: a line of JSON a logged step.

    Args:
        file: appended to; lines past `step`, and those that a crash spoilt, are cut first.
        step: the step that the run goes on from.
    """

    def __init__(self, file: Path, step: int) -> None:
        kept: list[bytes] = []
        self.earlier: list[dict[str, Any]] = []
        """The lines before `step`."""
        damaged = 0
        lines = file.read_bytes().split(b"\n") if file.exists() else []
        for line in filter(None, lines):
            values = _values_of(line)
            if values is None:
                damaged += 1
            elif values["step"] > step:
                break
            else:
                kept.append(line + b"\n")
                self.earlier.append(values)
        with whole_file(file, synced=True) as content:
            content.write(b"".join(kept))
        self._path, self._file, self._waits = file, AppendedLines(file), False
        if damaged:
            logger.warning("%s: %d damaged lines cut", file, damaged)
        if (lost := _lost_after([values["step"] for values in self.earlier], step)) is not None:
            logger.warning("%s: the lines of steps %d to %d are lost", file, lost + 1, step)

    def write(self, metrics: dict[str, Any]) -> None:
        """Appends a line; numbers that are not finite become null, as JSON has none.

        Lines that find no room on the disk are kept and written with a later one; the first of them is said.
        """
        line = json.dumps({key: _finite(value) for key, value in metrics.items()})
        why = self._file.write(line.encode() + b"\n")
        if why and not self._waits:
            logger.warning("%s: cannot be written: %s; its lines are kept for later", self._path, why)
        self._waits = why is not None

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        sync(self._path)

    def close(self) -> None:
        self._file.close()


def _values_of(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where a crash spoilt it."""
    try:
        values: dict[str, Any] = parse_json(line)
        loss = values["loss"]
        return values if type(values["step"]) is int and (loss is None or type(loss) in (int, float)) else None
    except (ValueError, KeyError, TypeError):
        return None


def _lost_after(steps: Sequence[int], step: int) -> int | None:
    """The last step of those that are logged, where there must have been later ones up to `step`; None elsewhere."""
    if not steps:
        return 0 if step else None  # the first is always logged
    expected = 2 * steps[-1] - steps[-2] if len(steps) > 1 else math.inf
    return steps[-1] if expected <= step else None


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Board:
    """TensorBoard and the profile's other monitors, as `Monitors` has them; one x axis for all tags, samples over all
    ranks. None of them ends the training: where one fails it falls silent, with a warning.

    Points at and past the first sample to come are purged, so that no step shows twice after a resume, whether from a
    checkpoint or, where the run died before its first, from the start. What a crash of the machine spoilt of those
    before is mended first.

    Args:
        run_folder: only files in it are mended; the profile may name a folder that several runs write to.
        earlier: the lines of `metrics.jsonl` up to the step that the engine stands at.
    """

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, run_folder: Path, earlier: Sequence[dict[str, Any]] = ()
    ) -> None:
        self._monitors: Monitors = engine.monitor
        if self._writer is not None:
            with tolerated("TensorBoard's files of before are not looked at"):
                if run_folder.resolve() in self._file.resolve().parents:
                    self._mend(engine, earlier)
            self._monitors.attempt("tb_monitor", lambda: self._start(engine.global_samples))

    def scalars(self, values: dict[str, float | None], samples: int) -> None:
        """Scalars by tag, to every monitor of the profile; None is left out."""
        self._monitors.write_events([(tag, value, samples) for tag, value in values.items() if value is not None])

    def histogram(self, tag: str, values: Tensor, samples: int) -> None:
        """Of the values that are finite; none where no value is."""
        values = values[values.isfinite()].cpu()
        if self._writer is None or not len(values):
            return
        self._monitors.attempt("tb_monitor", lambda: self._writer.add_histogram(tag, values, samples))

    def image(self, tag: str, pixels: NDArray[np.uint8], samples: int) -> None:
        """`pixels [height, width, 3]` uint8."""
        self._monitors.attempt("tb_monitor", lambda: self._writer.add_image(tag, pixels, samples, dataformats="HWC"))

    def sync(self) -> None:
        """Waits until all that was written is on the disk."""
        self._monitors.attempt("tb_monitor", self._sync)

    def _sync(self) -> None:
        self._writer.flush()
        if "://" not in self._writer.file_writer.event_writer._file_name:  # a store of objects has no files to wait for
            sync(self._file)

    @property
    def _writer(self) -> Any:
        """TensorBoard's; None on ranks other than 0, in profiles without it, and once it failed."""
        return getattr(self._monitors.tb_monitor, "summary_writer", None)

    def _start(self, samples: int) -> None:
        """Takes back the points from the first sample to come on."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = Event(session_log=SessionLog(status=SessionLog.START), step=samples + 1 if samples else 0)
        self._writer.file_writer.add_event(start)

    @property
    def _file(self) -> Path:
        """That this start writes."""
        return Path(self._writer.file_writer.event_writer._file_name)

    def _mend(self, engine: deepspeed.DeepSpeedEngine, earlier: Sequence[dict[str, Any]]) -> None:
        """What is lost can be written again where the global batch never changed: lines have steps, points samples."""
        batch = engine.train_batch_size()
        known = earlier if engine.global_samples == engine.global_steps * batch else ()
        points = {line["step"] * batch: _finite_tags(line) for line in known if line["loss"] is not None}
        from ds_rvqvae.runs.event_files import mend_event_files

        for note in mend_event_files(self._file.parent, _EVERY_TAG, points, [self._file]):
            logger.warning(note)


_EVERY_TAG = "Train/loss"


def _tags_of(line: dict[str, Any]) -> dict[str, float | None]:
    """TensorBoard's scalars of a line of `metrics.jsonl`; of versions of before some are missing."""
    names = (*Losses._fields, "lr", "grad_norm", "skipped_steps")
    tags = {f"Train/{name}": line.get(name) for name in names}
    tags |= {f"Speed/{name}": line.get(name) for name in ("samples_per_s", "data_wait")}
    for name in ("perplexity", "usage"):
        tags |= {f"Train_{name}/level_{level + 1}": value for level, value in enumerate(line.get(name, ()))}
    return tags | board_tags(line)


def _finite_tags(line: dict[str, Any]) -> dict[str, float]:
    return {tag: value for tag, value in _tags_of(line).items() if value is not None}


class SpikeAlarm:
    """Says when a logged loss stands far above the ones before it."""

    def __init__(self, earlier: Iterable[float | None] = (), remembered: int = 20, factor: float = 3.0) -> None:
        self._losses = deque((loss for loss in earlier if loss is not None), maxlen=remembered)
        self._factor = factor

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is more than `factor` times the median of the losses before it, of which it takes five."""
        earlier = sorted(self._losses)
        if not math.isfinite(loss):
            return True
        self._losses.append(loss)
        return len(earlier) >= 5 and loss > self._factor * earlier[len(earlier) // 2]


class MemoryAlarm:
    """Says, once for each rank, that its card is nearly full, and that torch had to empty its cache to find room."""

    def __init__(self, full: float = 0.9) -> None:
        self._full = full
        self._said: set[tuple[str, int]] = set()

    def look(self, readings: Sequence[Reading]) -> list[str]:
        """Warnings for readings by rank; empty where there is nothing new to say."""
        full = self._new("full", [_share_used(reading) > self._full for reading in readings])
        retried = self._new("retried", [(reading.allocation_retries or 0) > 0 for reading in readings])
        warnings = []
        if full:
            cards = "; ".join(f"rank {rank}: {_fullness(readings[rank])}" for rank in full)
            warnings.append(
                f"over {self._full:.0%} of the card's memory is in use ({cards}); should it run out, "
                "lower --batch_size or give --gradient_checkpointing"
            )
        if retried:
            ranks = ", ".join(f"rank {rank} {readings[rank].allocation_retries:.0f} times" for rank in retried)
            warnings.append(
                f"torch found no room on the card and emptied its cache ({ranks}), which costs time; lower "
                "--batch_size or set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment"
            )
        return warnings

    def _new(self, kind: str, ranks: Iterable[bool]) -> list[int]:
        """The ranks of which this was not said before."""
        new = [rank for rank, concerned in enumerate(ranks) if concerned and (kind, rank) not in self._said]
        self._said |= {(kind, rank) for rank in new}
        return new


def _share_used(reading: Reading) -> float:
    """Of the card's memory; 0 where it is not known."""
    return (reading.memory_used_gib or 0.0) / (reading.card_memory_gib or math.inf)


def _fullness(reading: Reading) -> str:
    text = f"{reading.memory_used_gib:.1f} of {reading.card_memory_gib:.1f} GiB"
    if reading.memory_reserved_gib is None:
        return text
    return f"{text}, {reading.memory_reserved_gib:.1f} of them torch's, whose tensors took {reading.memory_gib:.1f}"


class StepLog:
    """Measures what passed between logged steps, and writes it to `metrics.jsonl`, TensorBoard and the log.

    Every rank has one and measures; rank 0's writes.

    Args:
        engine: the one that trains.
        loader: whose waits for data are measured.
        run_folder: `metrics.jsonl` is in it.
        step: the step that the run goes on from.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, loader: BatchLoader, run_folder: Path, step: int) -> None:
        self._engine, self._loader = engine, loader
        self._device = torch.device(engine.device)
        self._file = MetricsFile(run_folder / METRICS, step) if dist.get_rank() == 0 else None
        self.board = Board(engine, run_folder, self._file.earlier if self._file else ())
        self._spikes = SpikeAlarm(line["loss"] for line in self._file.earlier) if self._file else SpikeAlarm()
        self._started, self._windows = time.perf_counter(), 0
        self.meter, self._memory_alarm = RankMeter(self._device), MemoryAlarm()

    def start_interval(self) -> None:
        """Training steps begin: speed and memory are measured from here on, without what went on before."""
        self.meter.enter_steps()
        self._begin()
        self._loader.take_wait()

    def end_interval(self) -> None:
        """Training steps end, and other work begins."""
        self.meter.leave_steps()

    def count(self, windows: int) -> None:
        """A step over so many windows of all ranks was trained."""
        self._windows += windows

    def write(self, step: int, losses: Losses, window_size: int | None = None) -> dict[str, str]:
        """Writes a logged step; every rank calls it.

        Args:
            step: steps so far.
            losses: this rank's, of the last step.
            window_size: of the last step, where a run has several.

        Returns:
            what the progress bar shows.
        """
        numbers = torch.cat([torch.stack(losses), torch.tensor([self._loader.take_wait()], device=self._device)])
        (*loss_values, waited), readings = gather_readings(numbers, self.meter.read())
        seconds = time.perf_counter() - self._started
        speed = self._windows / seconds if seconds else 0.0
        counts = self._engine.module.quantizer.take_usage_counts()
        norm = self._engine.get_global_grad_norm()
        metrics: dict[str, Any] = {
            "step": step,
            **({} if window_size is None else {"window_size": window_size}),
            **dict(zip(Losses._fields, loss_values, strict=True)),
            "perplexity": perplexity_of(counts).tolist(),
            "usage": (counts > 0).float().mean(dim=1).tolist(),
            "lr": self._engine.optimizer.param_groups[0]["lr"],
            "grad_norm": None if norm is None else float(norm),
            "skipped_steps": self._engine.skipped_steps,
            "samples_per_s": speed,
            "data_wait": waited / seconds if seconds else 0.0,
            **metrics_of(readings),
        }
        with tolerated(f"step {step}: not all is logged"):
            if self._file is not None:
                self._file.write(metrics)
            self._show(metrics)
        for warning in self._memory_alarm.look(readings):
            logger.warning("step %d: %s", step, warning)
        self._begin()
        return {"loss": f"{metrics['loss']:.4f}", "samples/s": f"{speed:.1f}"}

    def sync(self) -> None:
        """Waits until all that was logged is on the disk."""
        self.board.sync()
        if self._file is not None:
            with tolerated("what was logged may not be on the disk"):
                self._file.sync()

    def close(self) -> None:
        """Ends the files and the metering."""
        self.sync()
        if self._file is not None:
            self._file.close()
        self.meter.close()

    def _begin(self) -> None:
        self._started, self._windows = time.perf_counter(), 0

    def _show(self, metrics: dict[str, Any]) -> None:
        """A logged step on TensorBoard."""
        tags = _tags_of(metrics)
        tags["Train/loss_spike"] = float(self._spikes.is_spike(metrics["loss"]))
        if tags["Train/loss_spike"]:
            logger.warning("step %d: the loss jumped to %.4g", metrics["step"], metrics["loss"])
        self.board.scalars(tags, self._engine.global_samples)
