"""The lines at the start of a run, and the summary at its end: memory and energy by rank, and the plan."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ds_rvqvae.config.profile import Profile
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.files import whole_file
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.plan import Plan, make_plan
from ds_rvqvae.gpu.sizes import parameter_count
from ds_rvqvae.process.tables import Column, Table
from ds_rvqvae.process.terminal import PLAIN, Block, Line, Terminal
from ds_rvqvae.process.tolerance import tolerated
from ds_rvqvae.text import GIB, counted, duration, gibibytes
from ds_rvqvae.train.metrics import announce
from ds_rvqvae.train.readings import Peaks, RankMeter

_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "resident_gib": ("peak resident", lambda value: f"{value:.2f} GiB"),
    "allocated_gib": ("peak of tensors", lambda value: f"{value:.2f} GiB"),
    "reserved_gib": ("reserved", lambda value: f"{value:.2f} GiB"),
    "used_gib": ("GPU used", lambda value: f"{value:.2f} GiB"),
    "card_memory_gib": ("of", lambda value: f"{value:.2f} GiB"),
    "headroom_gib": ("headroom", lambda value: f"{value:.2f} GiB"),
    "allocation_retries": ("retries", lambda value: f"{value:.0f}"),
    "energy_wh": ("energy", lambda value: f"{value:,.1f} Wh"),
    "mean_power_w": ("mean power", lambda value: f"{value:,.0f} W"),
}
"""Heading and format of each value of `Peaks`; a column without values is left out."""
_TIGHT = 0.05
"""Below this fraction of a GPU's memory its headroom is marked as small."""


def run_lines(folder: Path, profile: Profile, data: MotionData, world_size: int) -> list[str]:
    """The lines that describe the run at its start."""
    parts = [
        counted(world_size, "rank"),
        f"ZeRO stage {profile.zero_optimization.stage}",
        "bf16" if profile.bf16.enabled else "fp32",
        f"activation checkpointing {'on' if profile.rvqvae.training.gradient_checkpointing else 'off'}",
    ]
    count = parameter_count(data.in_features, profile.rvqvae.model)
    return [
        f"run: {folder}",
        ", ".join(parts),
        f"{count:,} parameters, {data.in_features} columns, {_batch_text(profile, data, world_size)}",
    ]


def _batch_text(profile: Profile, data: MotionData, world_size: int) -> str:
    batch, windows = profile.global_batch(world_size), data.count_training_windows()
    if not profile.rvqvae.data.window_sizes:
        (count,) = windows.values()
        return f"global batch {batch:,} of {count:,} windows"
    counts = ", ".join(f"{count:,} of {size}" for size, count in windows.items())
    return f"global batch {batch:,} x {profile.rvqvae.data.window_size} frames; windows by length: {counts}"


def scaled_rate(profile: Profile, world_size: int) -> str:
    """The line about the learning rate that `scale_lr` gives."""
    training, rate = profile.rvqvae.training, profile.optimizer.params.lr
    batches = f"global batch {profile.global_batch(world_size):,} / {training.reference_batch:,}"
    return f"--scale_lr linear: learning rate {rate:g} x {batches} = {profile.learning_rate(world_size):.4g}"


def sum_up(
    meter: RankMeter,
    profile: Profile,
    data: MotionData,
    run_folder: Path,
    steps: tuple[int, int],
    checkpoint: str | None = None,
) -> None:
    """Writes, on rank 0, the peaks of all ranks to the terminal, the log and `memory.json`. Every rank calls it.

    Args:
        steps: the step at which this start of the run began, and the one at which it ended.
        checkpoint: fingerprint of the last checkpoint.
    """
    peaks = meter.gather_peaks()
    if dist.get_rank() != 0:
        return
    with tolerated("no summary of the run's memory and energy"):
        plan = plan_of(profile, data.in_features, peaks)
        announce(*summary_blocks(peaks, plan))
        with tolerated("memory.json not written"):
            _write(run_folder / "memory.json", summary_dict(peaks, plan, *steps, checkpoint))


def plan_of(profile: Profile, in_features: int, peaks: Sequence[Peaks]) -> Plan | None:
    """The plan for the ranks that have these peaks; None if they are not on GPUs."""
    if peaks[0].allocated_gib is None:
        return None
    # The bytes do not depend on the GPU's model, so any will do.
    card = next(iter(CARDS.values())).with_memory(int((peaks[0].card_memory_gib or 0) * GIB))
    return make_plan(profile, in_features, len(peaks), card)


def summary_text(peaks: Sequence[Peaks], plan: Plan | None, terminal: Terminal = PLAIN) -> str:
    """The peaks by rank as a table, with sums over the ranks, and the plan next to the measured peaks."""
    return terminal.text(summary_blocks(peaks, plan))


def summary_blocks(peaks: Sequence[Peaks], plan: Plan | None) -> list[Block]:
    """The same as lines and a table."""
    seconds = max((peak.seconds or 0.0 for peak in peaks), default=0.0)
    taken = "memory" if all(peak.energy_wh is None for peak in peaks) else "memory and energy"
    return [f"{taken} of each rank over {duration(seconds)}:", _table(peaks), *_plan_lines(peaks, plan)]


def summary_dict(
    peaks: Sequence[Peaks], plan: Plan | None, first_step: int, last_step: int, checkpoint: str | None = None
) -> dict[str, Any]:
    """The same as JSON; memory in GiB, energy in watt-hours."""
    planned = plan and {"allocated_gib": plan.allocated_bytes / GIB, "total_gib": plan.total_bytes / GIB}
    ranks = [{**asdict(peak), "headroom_gib": peak.headroom_gib, "mean_power_w": peak.mean_power_w} for peak in peaks]
    steps = {"first_step": first_step, "last_step": last_step, "checkpoint": checkpoint}
    return {**steps, "planned": planned, "ranks": ranks}


def _write(file: Path, summary: dict[str, Any]) -> None:
    """Writes the summary; raises OSError if it cannot, and then an earlier one stays."""
    with whole_file(file) as content:
        content.write(json.dumps(summary, indent=2).encode() + b"\n")


def _table(peaks: Sequence[Peaks]) -> Table:
    columns, values_by_column = [Column(left=True)], []
    for name, (heading, form) in _COLUMNS.items():
        values = [getattr(peak, name) for peak in peaks]
        # Retries get a column only if there were some.
        if any(value is not None for value in values) and (name != "allocation_retries" or any(values)):
            columns.append(Column(heading))
            cells = [_cell(name, value, form, peak) for value, peak in zip(values, peaks, strict=True)]
            values_by_column.append([*cells, _total(name, values, form)])
    labels = [*(f"rank {rank}" for rank in range(len(peaks))), "together"]
    rows: list[list[Line]] = [list(row) for row in zip(labels, *values_by_column, strict=True)]
    if not any(rows[-1][1:]):
        rows.pop()
    return Table(columns, rows, indent=2)


def _cell(name: str, value: float | None, form: Callable[[float], str], peak: Peaks) -> Line:
    if value is None:
        return ""
    is_tight = name == "headroom_gib" and value < _TIGHT * (peak.card_memory_gib or 0)
    return (form(value), "warning") if is_tight or (name == "allocation_retries" and value) else form(value)


def _total(name: str, values: Sequence[float | None], form: Callable[[float], str]) -> str:
    """Sum of energy or power over all ranks; empty for memory, whose sum is of no use."""
    if len(values) == 1 or name not in ("energy_wh", "mean_power_w"):
        return ""
    return form(sum(value for value in values if value is not None))


def _plan_lines(peaks: Sequence[Peaks], plan: Plan | None) -> list[Block]:
    if plan is None:
        return []
    in_steps = max((peak.step_allocated_gib or 0.0 for peak in peaks), default=0.0)
    whole = max((peak.allocated_gib or 0.0 for peak in peaks), default=0.0)
    used = max((peak.used_gib or 0.0 for peak in peaks), default=0.0)
    lines = [f"  tensors: planned {gibibytes(plan.allocated_bytes)} per GPU, peak in steps {in_steps:.2f} GiB"]
    if whole > in_steps:
        lines[0] += f", at the start, in evaluations or saving {whole:.2f} GiB"
    if used:
        lines.append(f"  GPU: planned {gibibytes(plan.total_bytes)}, used {used:.2f} GiB by all its processes")
    return [*lines]
