"""Compares an interrupted run with one that was never interrupted."""

import json
import logging
from pathlib import Path

from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ds_rvqvae.runs.checkpoints import UNFINISHED, checkpoints, damage_of, step_of
from ds_rvqvae.train.readings import READING_KEYS
from tests.train.small import read_metrics

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every restart

MACHINE_READINGS = ("samples_per_s", "data_wait", *READING_KEYS)
"""Keys of `metrics.jsonl` that are readings of the machine."""
MACHINE_TAGS = ("Speed/", "Memory_", "GPU_")
"""Prefixes of TensorBoard's tags that are readings of the machine."""


def differences(run: Path, reference: Path) -> list[str]:
    """Returns how a finished run differs from the reference, and what it left behind; empty if nothing is wrong."""
    found = of_weights(*(folder / "tokenizer" / "model.safetensors" for folder in (run, reference)))
    lines, expected = numbers(run), numbers(reference)
    if len(lines) != len(expected):
        found.append(f"metrics.jsonl has {len(lines)} lines of {len(expected)}")
    found += [f"metrics.jsonl: {a} is not {b}" for a, b in zip(lines, expected, strict=False) if a != b][:1]
    found += _of_boards(_points(run), _points(reference))
    found += [f"{path.relative_to(run)} is left" for path in run.rglob(f"{UNFINISHED}*")]
    kept, expected_kept = (
        [step_of(path) for path in checkpoints(folder / "checkpoints")] for folder in (run, reference)
    )
    if kept != newest_with_stops(kept, expected_kept):
        found.append(f"checkpoints are {kept}, not {expected_kept}")
    return found + damaged(run)


def newest_with_stops(kept: list[int], expected: list[int]) -> list[int]:
    """Returns the steps whose checkpoints should be kept, if those in `kept` that are not expected were saved by stops:
    as many as expected, the newest. A stop saves at whatever step it comes, and its checkpoint counts as any other."""
    return sorted({*kept, *expected})[-len(expected) :]


def damaged(run: Path) -> list[str]:
    """Returns the checkpoints that have their final name and are not complete."""
    reasons = {path.name: damage_of(path) for path in checkpoints(run / "checkpoints")}
    return [f"{name}: {reason}" for name, reason in reasons.items() if reason]


def of_weights(file: Path, expected_file: Path) -> list[str]:
    if not file.is_file():
        return [f"{file.name} is missing"]
    weights, expected = load_file(file), load_file(expected_file)
    if weights.keys() != expected.keys():
        return [f"{file.name} has other tensors"]
    unequal = [name for name, value in weights.items() if value.tobytes() != expected[name].tobytes()]
    return [f"{len(unequal)} of {len(weights)} tensors differ, {unequal[0]} the first"] if unequal else []


def numbers(run: Path) -> list[str]:
    """Returns the lines of `metrics.jsonl` without readings of the machine, as text: equal text means equal bits."""
    lines = read_metrics(run)
    return [json.dumps({key: value for key, value in line.items() if key not in MACHINE_READINGS}) for line in lines]


def _points(run: Path) -> dict[str, list[tuple]]:
    """Returns TensorBoard's scalars as step and value; only the step for readings of the machine."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 1, "histograms": 1})
    events.Reload()
    return {
        tag: [(event.step, None if tag.startswith(MACHINE_TAGS) else event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def _of_boards(points: dict[str, list[tuple]], expected: dict[str, list[tuple]]) -> list[str]:
    found = []
    for tag in sorted({*points, *expected}):
        steps, expected_steps = ([step for step, _ in side.get(tag, [])] for side in (points, expected))
        twice = sorted({step for step in steps if steps.count(step) > 1})
        missing = sorted({*expected_steps} - {*steps})
        if twice or missing:
            found.append(f"TensorBoard, {tag}: twice {twice}, missing {missing}")
        elif points.get(tag) != expected.get(tag):
            found.append(f"TensorBoard, {tag}: other steps or values")
    return found
