"""The launcher's `--demo`: motion made for it, and what came out of training on it."""

import json
from pathlib import Path
from typing import Any

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.store.prepare import cache_folder
from ds_rvqvae.tokenizer.tables import score_table


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
    print(score_table(trained, untrained))
    pictures = sorted(evaluation.glob("reconstruction*.png"), key=lambda picture: picture.stat().st_mtime)
    if pictures:
        print(f"picture: {pictures[-1]}")
    print(f"run: {run}")
    print(f"tensorboard --logdir {run / 'tensorboard'} --host localhost")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
