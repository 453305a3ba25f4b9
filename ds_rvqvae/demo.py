"""The launcher's `--demo`: motion made for it, and what came out of training on it."""

import json
from pathlib import Path
from typing import Any

from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.prepare import cache_folder
from ds_rvqvae.profile import DataConfig


def motion_folder() -> Path:
    """Where the demo's motion is kept."""
    return cache_folder().absolute() / "demo_motion"


def write_motion(config: DataConfig) -> None:
    """Writes the demo's motion, unless the run reads other motion or it is there already."""
    if config.path == str(motion_folder()):
        write_demo_motion(motion_folder())


def print_results(run: Path) -> None:
    """Prints the scores of the run's folder against those of the untrained model, its picture and where to look on."""
    evaluation = run / "eval"
    trained, untrained = (_read(evaluation / name) for name in ("scores.json", "untrained.json"))
    print("\n".join(score_table(trained, untrained)))
    pictures = sorted(evaluation.glob("reconstruction*.png"), key=lambda picture: picture.stat().st_mtime)
    if pictures:
        print(f"picture: {pictures[-1]}")
    print(f"run: {run}")
    print(f"tensorboard --logdir {run / 'tensorboard'} --host localhost")


def score_table(trained: dict[str, Any], untrained: dict[str, Any]) -> list[str]:
    """Lines of a text table: the scores before and after training, then the trained ones by levels used."""
    lines = [f"{trained['split']}: {trained['clips']} clips, {trained['frames']:,} frames"]
    lines.append(f"{'':28}{'untrained':>11}{'trained':>11}")
    for title, key in (
        ("L1, normalised units", "l1"),
        ("angle error, degrees", "angle_error_deg"),
        ("velocity error", "velocity_error"),
    ):
        lines.append(f"{title:28}{_number(untrained[key])}{_number(trained[key])}")
    lines.append("")
    lines.append(f"{'levels used':12}{'L1':>11}{'angle, deg':>11}{'codes used':>11}{'perplexity':>11}")
    for row, usage, perplexity in zip(trained["by_levels"], trained["usage"], trained["perplexity"], strict=True):
        numbers = f"{_number(row['l1'])}{_number(row['angle_error_deg'])}{usage:>11.0%}{perplexity:>11.1f}"
        lines.append(f"{row['levels']:<12}{numbers}")
    return lines


def _number(value: float | None) -> str:
    return f"{'-':>11}" if value is None else f"{value:>11.4f}"


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
