"""What a run tells about itself: `metrics.jsonl`, TensorBoard and the log. Rank 0 writes; the others pass through."""

import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor

from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.errors import PrintableFormatter, text_of
from ds_rvqvae.files import AppendedLines, whole_file
from ds_rvqvae.model.losses import Losses
from ds_rvqvae.model.vq import perplexity_of
from ds_rvqvae.train.readings import RankMeter, Reading, board_tags, gather_readings, metrics_of

logger = logging.getLogger("ds_rvqvae")


def start_log(file: Path, rank: int) -> None:
    """Sends rank 0's messages, and errors of any rank, to `file`; rank 0's warnings to the terminal as well."""
    to_file = logging.FileHandler(file, encoding="utf-8")
    to_file.setFormatter(PrintableFormatter(f"%(asctime)s %(levelname)s rank {rank}: %(message)s"))
    to_file.setLevel(logging.ERROR if rank else logging.INFO)
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    to_terminal.addFilter(lambda record: rank == 0 and record.levelno == logging.WARNING)
    logger.handlers[:] = [to_file, to_terminal]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def announce(*lines: str) -> None:
    """Rank 0 says something about the run, on the terminal and in the log."""
    text = text_of(lines)
    logger.info(text)
    if dist.get_rank() == 0:
        print(text, file=sys.stderr, flush=True)


class MetricsFile:
    """`metrics.jsonl`: a line of JSON a logged step.

    Args:
        file: appended to; lines past `step`, and a last line that a crash tore, are cut first.
        step: the step that the run goes on from.
    """

    def __init__(self, file: Path, step: int) -> None:
        kept: list[str] = []
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n") or _step_of(line) > step:
                    break
                kept.append(line)
        with whole_file(file) as content:
            content.write("".join(kept).encode())
        self._path, self._file = file, AppendedLines(file)
        self.earlier = [json.loads(line) for line in kept]
        """The lines before `step`."""

    def write(self, metrics: dict[str, Any]) -> None:
        """Appends a line; numbers that are not finite become null, as JSON has none.

        Lines that find no room on the disk are kept and written with a later one.
        """
        line = json.dumps({key: _finite(value) for key, value in metrics.items()})
        if self._file.write(line.encode() + b"\n"):
            logger.warning("%s: no room for a line; it is kept for later", self._path)

    def close(self) -> None:
        self._file.close()


def _step_of(line: str) -> float:
    """The step of a line; infinite where a crash spoilt it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Board:
    """TensorBoard through the engine's own monitor; one x axis for all tags, samples over all ranks.

    Where its disk has no room it falls silent, with one warning, rather than end the training.

    Points at and past the first sample to come are purged, so that no step shows twice after a resume, whether from a
    checkpoint or, where the run died before its first, from the start.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self._monitor, self._silent = engine.monitor, False
        # Ranks other than 0, and profiles without TensorBoard, have no writer.
        self._writer = getattr(engine.monitor.tb_monitor, "summary_writer", None)
        if self._writer is not None:
            first = engine.global_samples + 1 if engine.global_samples else 0
            start = Event(session_log=SessionLog(status=SessionLog.START), step=first)
            self._writer.file_writer.add_event(start)

    def scalars(self, values: dict[str, float | None], samples: int) -> None:
        """Scalars by tag, to every monitor of the profile; None is left out."""
        if dist.get_rank() == 0:
            events = [(tag, value, samples) for tag, value in values.items() if value is not None]
            self._try(lambda: self._monitor.write_events(events))

    def histogram(self, tag: str, values: Tensor, samples: int) -> None:
        writer = self._writer
        if writer is not None:
            self._try(lambda: writer.add_histogram(tag, values.cpu(), samples))

    def image(self, tag: str, pixels: NDArray[np.uint8], samples: int) -> None:
        """`pixels [height, width, 3]` uint8."""
        writer = self._writer
        if writer is not None:
            self._try(lambda: writer.add_image(tag, pixels, samples, dataformats="HWC"))

    def flush(self) -> None:
        if self._writer is not None:
            self._try(self._writer.flush)

    def _try(self, write: Callable[[], None]) -> None:
        if self._silent:
            return
        try:
            write()
        except OSError as error:
            self._silent = True
            logger.warning("TensorBoard gets nothing more until a restart: %s", error)


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
        self.board = Board(engine)
        self._file = MetricsFile(run_folder / "metrics.jsonl", step) if dist.get_rank() == 0 else None
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
        if self._file is not None:
            self._file.write(metrics)
        self._show(metrics)
        for warning in self._memory_alarm.look(readings):
            logger.warning("step %d: %s", step, warning)
        self._begin()
        return {"loss": f"{metrics['loss']:.4f}", "samples/s": f"{speed:.1f}"}

    def close(self) -> None:
        """Ends the files and the metering."""
        self.board.flush()
        if self._file is not None:
            self._file.close()
        self.meter.close()

    def _begin(self) -> None:
        self._started, self._windows = time.perf_counter(), 0

    def _show(self, metrics: dict[str, Any]) -> None:
        """A logged step on TensorBoard."""
        tags = {f"Train/{name}": metrics[name] for name in (*Losses._fields, "lr", "grad_norm", "skipped_steps")}
        tags["Train/loss_spike"] = float(self._spikes.is_spike(metrics["loss"]))
        if tags["Train/loss_spike"]:
            logger.warning("step %d: the loss jumped to %.4g", metrics["step"], metrics["loss"])
        tags["Speed/samples_per_s"], tags["Speed/data_wait"] = metrics["samples_per_s"], metrics["data_wait"]
        for name in ("perplexity", "usage"):
            tags |= {f"Train_{name}/level_{level + 1}": value for level, value in enumerate(metrics[name])}
        self.board.scalars(tags | board_tags(metrics), self._engine.global_samples)
