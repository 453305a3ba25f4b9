"""A run's records: `metrics.jsonl`, TensorBoard and the log. Only rank 0 writes them."""

import json
import logging
import math
import os
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
    """Sends rank 0's messages, and errors of any rank, to `file`. Rank 0's warnings go to the terminal too, except
    those of libraries."""
    to_file = RunLog(file, f"rank {rank}")
    to_file.setLevel(logging.ERROR if rank else logging.INFO)
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    to_terminal.addFilter(lambda record: rank == 0 and record.levelno == logging.WARNING)
    logger.handlers[:] = [to_file, to_terminal]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Warnings of libraries, and errors that end a thread (TensorBoard's, for one), go to the log, one line each.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers[:] = [to_file]
    # Each rank would print them. Errors are still printed too; with TORCH_LOGS the user asks for torch's messages.
    for library in ("DeepSpeed", *(() if os.environ.get("TORCH_LOGS") else ("torch",))):
        for handler in logging.getLogger(library).handlers:
            handler.setLevel(max(handler.level, logging.ERROR))
        logging.getLogger(library).addHandler(to_file)
    level = logging.ERROR if rank else logging.WARNING  # warnings of other ranks are not written anywhere
    threading.excepthook = lambda failed: logger.log(
        level, "thread %s ended: %s: %s", getattr(failed.thread, "name", ""), failed.exc_type.__name__, failed.exc_value
    )


def announce(*blocks: Block) -> None:
    """Prints lines and tables about the run, on rank 0, to the terminal and to the log."""
    logger.info(PLAIN.text(blocks))
    if dist.get_rank() == 0:
        print(terminal_of(sys.stderr).text(blocks), file=sys.stderr, flush=True)


class MetricsFile:
    """`metrics.jsonl`: one line of JSON per logged step.

    Args:
        file: is appended to; lines past `step`, and lines damaged by a crash, are removed first.
        step: the step that the run continues from.
    """

    def __init__(self, file: Path, step: int) -> None:
        kept: list[bytes] = []
        self.earlier: list[dict[str, Any]] = []
        """The lines up to `step`."""
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
            logger.warning("%s: %d damaged lines removed", file, damaged)
        if (lost := _lost_after([values["step"] for values in self.earlier], step)) is not None:
            logger.warning("%s: the lines of steps %d to %d are lost", file, lost + 1, step)

    def write(self, metrics: dict[str, Any]) -> None:
        """Appends a line; numbers that are not finite become null, because JSON has none.

        Lines for which the disk has no room are kept and written with a later one; the first of them gives a warning.
        """
        line = json.dumps({key: _finite(value) for key, value in metrics.items()})
        why = self._file.write(line.encode() + b"\n")
        if why and not self._waits:
            logger.warning("%s: cannot be written: %s; its lines are kept and written later", self._path, why)
        self._waits = why is not None

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        sync(self._path)

    def close(self) -> None:
        self._file.close()


def _values_of(line: bytes) -> dict[str, Any] | None:
    """The values of a line; None if the line is damaged."""
    try:
        values: dict[str, Any] = parse_json(line)
        loss = values["loss"]
        return values if type(values["step"]) is int and (loss is None or type(loss) in (int, float)) else None
    except (ValueError, KeyError, TypeError):
        return None


def _lost_after(steps: Sequence[int], step: int) -> int | None:
    """The last logged step, if lines between it and `step` are missing; else None."""
    if not steps:
        return 0 if step else None  # step 1 is always logged
    expected = 2 * steps[-1] - steps[-2] if len(steps) > 1 else math.inf
    return steps[-1] if expected <= step else None


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Board:
    """TensorBoard and the profile's other monitors (see `Monitors`). All tags have the same x axis: samples over all
    ranks. A monitor that fails gives a warning and stays silent; the training continues.

    Points from the next sample on are purged, so that no step appears twice after a resume from a checkpoint, or after
    a restart of a run that died before its first one. Earlier points that a crash of the machine damaged are repaired
    first.

    Args:
        run_folder: only files in it are repaired; the profile may name a folder that several runs write to.
        earlier: the lines of `metrics.jsonl` up to the engine's step.
    """

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, run_folder: Path, earlier: Sequence[dict[str, Any]] = ()
    ) -> None:
        self._monitors: Monitors = engine.monitor
        if self._writer is not None:
            with tolerated("TensorBoard's earlier files are not checked"):
                if run_folder.resolve() in self._file.resolve().parents:
                    self._mend(engine, earlier)
            self._monitors.attempt("tb_monitor", lambda: self._start(engine.global_samples))

    def scalars(self, values: dict[str, float | None], samples: int) -> None:
        """Writes scalars by tag to every monitor of the profile; None is left out."""
        self._monitors.write_events([(tag, value, samples) for tag, value in values.items() if value is not None])

    def histogram(self, tag: str, values: Tensor, samples: int) -> None:
        """Writes a histogram of the finite values, if there are any."""
        values = values[values.isfinite()].cpu()
        if self._writer is None or not len(values):
            return
        self._monitors.attempt("tb_monitor", lambda: self._writer.add_histogram(tag, values, samples))

    def image(self, tag: str, pixels: NDArray[np.uint8], samples: int) -> None:
        """Writes an image, `pixels [height, width, 3]` uint8."""
        self._monitors.attempt("tb_monitor", lambda: self._writer.add_image(tag, pixels, samples, dataformats="HWC"))

    def sync(self) -> None:
        """Waits until everything written is on the disk."""
        self._monitors.attempt("tb_monitor", self._sync)

    def _sync(self) -> None:
        self._writer.flush()
        if "://" not in self._writer.file_writer.event_writer._file_name:  # an object store has no file to wait for
            sync(self._file)

    @property
    def _writer(self) -> Any:
        """TensorBoard's writer; None on ranks other than 0, in profiles without it, and after it failed."""
        return getattr(self._monitors.tb_monitor, "summary_writer", None)

    def _start(self, samples: int) -> None:
        """Purges the points from the next sample on."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = Event(session_log=SessionLog(status=SessionLog.START), step=samples + 1 if samples else 0)
        self._writer.file_writer.add_event(start)

    @property
    def _file(self) -> Path:
        """The file that this start writes."""
        return Path(self._writer.file_writer.event_writer._file_name)

    def _mend(self, engine: deepspeed.DeepSpeedEngine, earlier: Sequence[dict[str, Any]]) -> None:
        """Repairs earlier files. Lost points can be written again only if the global batch never changed: lines count
        steps, points count samples."""
        batch = engine.train_batch_size()
        known = earlier if engine.global_samples == engine.global_steps * batch else ()
        points = {line["step"] * batch: _finite_tags(line) for line in known if line["loss"] is not None}
        from ds_rvqvae.runs.event_files import mend_event_files

        for note in mend_event_files(self._file.parent, _EVERY_TAG, points, [self._file]):
            logger.warning(note)


_EVERY_TAG = "Train/loss"


def _tags_of(line: dict[str, Any]) -> dict[str, float | None]:
    """TensorBoard's scalars of a line of `metrics.jsonl`; lines of earlier versions lack some."""
    names = (*Losses._fields, "lr", "grad_norm", "skipped_steps")
    tags = {f"Train/{name}": line.get(name) for name in names}
    tags |= {f"Speed/{name}": line.get(name) for name in ("samples_per_s", "data_wait")}
    for name in ("perplexity", "usage"):
        tags |= {f"Train_{name}/level_{level + 1}": value for level, value in enumerate(line.get(name, ()))}
    return tags | board_tags(line)


def _finite_tags(line: dict[str, Any]) -> dict[str, float]:
    return {tag: value for tag, value in _tags_of(line).items() if value is not None}


class SpikeAlarm:
    """Detects a logged loss far above the ones before it."""

    def __init__(self, earlier: Iterable[float | None] = (), remembered: int = 20, factor: float = 3.0) -> None:
        self._losses = deque((loss for loss in earlier if loss is not None), maxlen=remembered)
        self._factor = factor

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is not finite, or more than `factor` times the median of the (at least five) losses before."""
        earlier = sorted(self._losses)
        if not math.isfinite(loss):
            return True
        self._losses.append(loss)
        return len(earlier) >= 5 and loss > self._factor * earlier[len(earlier) // 2]


class MemoryAlarm:
    """Warns, once per rank, that its GPU is nearly full, and that torch had to empty its cache to find room."""

    def __init__(self, full: float = 0.9) -> None:
        self._full = full
        self._said: set[tuple[str, int]] = set()

    def look(self, readings: Sequence[Reading]) -> list[str]:
        """Warnings for the readings of all ranks; empty if there is nothing new."""
        full = self._new("full", [_share_used(reading) > self._full for reading in readings])
        retried = self._new("retried", [(reading.allocation_retries or 0) > 0 for reading in readings])
        warnings = []
        if full:
            cards = "; ".join(f"rank {rank}: {_fullness(readings[rank])}" for rank in full)
            warnings.append(
                f"over {self._full:.0%} of the GPU's memory is in use ({cards}); if it runs out, "
                "lower --batch_size or give --gradient_checkpointing"
            )
        if retried:
            ranks = ", ".join(f"rank {rank} {readings[rank].allocation_retries:.0f} times" for rank in retried)
            warnings.append(
                f"torch found no room on the GPU and emptied its cache ({ranks}), which costs time; lower "
                "--batch_size or set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment"
            )
        return warnings

    def _new(self, kind: str, ranks: Iterable[bool]) -> list[int]:
        """The ranks without an earlier warning of this kind."""
        new = [rank for rank, concerned in enumerate(ranks) if concerned and (kind, rank) not in self._said]
        self._said |= {(kind, rank) for rank in new}
        return new


def _share_used(reading: Reading) -> float:
    """Fraction of the GPU's memory in use; 0 if it is not known."""
    return (reading.memory_used_gib or 0.0) / (reading.card_memory_gib or math.inf)


def _fullness(reading: Reading) -> str:
    text = f"{reading.memory_used_gib:.1f} of {reading.card_memory_gib:.1f} GiB"
    if reading.memory_reserved_gib is None:
        return text
    return f"{text}, {reading.memory_reserved_gib:.1f} of it torch's, whose tensors took {reading.memory_gib:.1f}"


class StepLog:
    """Measures the intervals between logged steps, and writes them to `metrics.jsonl`, TensorBoard and the log.

    Every rank has one and measures; only rank 0 writes.

    Args:
        engine: the engine that trains.
        loader: the loader whose waits for data are measured.
        run_folder: the folder of `metrics.jsonl`.
        step: the step that the run continues from.
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
        """Called when training steps begin: speed and memory are measured from here on."""
        self.meter.enter_steps()
        self._begin()
        self._loader.take_wait()

    def end_interval(self) -> None:
        """Called when training steps end and other work begins."""
        self.meter.leave_steps()

    def count(self, windows: int) -> None:
        """Counts a trained step with so many windows over all ranks."""
        self._windows += windows

    def write(self, step: int, losses: Losses, window_size: int | None = None) -> dict[str, str]:
        """Writes a logged step; every rank calls it.

        Args:
            step: number of steps so far.
            losses: this rank's losses of the last step.
            window_size: window size of the last step, if a run has several.

        Returns:
            the values for the progress bar.
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
        """Waits until everything logged is on the disk."""
        self.board.sync()
        if self._file is not None:
            with tolerated("the last lines of metrics.jsonl may not be on the disk"):
                self._file.sync()

    def close(self) -> None:
        """Closes the files and ends the metering."""
        self.sync()
        if self._file is not None:
            self._file.close()
        self.meter.close()

    def _begin(self) -> None:
        self._started, self._windows = time.perf_counter(), 0

    def _show(self, metrics: dict[str, Any]) -> None:
        """Writes a logged step to TensorBoard."""
        tags = _tags_of(metrics)
        tags["Train/loss_spike"] = float(self._spikes.is_spike(metrics["loss"]))
        if tags["Train/loss_spike"]:
            logger.warning("step %d: the loss jumped to %.4g", metrics["step"], metrics["loss"])
        self.board.scalars(tags, self._engine.global_samples)
