"""Scores a run on the CMU task: errors by split, and the codes in use over 2,048 training windows.

    python benchmarks/cmu_task.py RUN [--data_path task.npz] [--splits train,val,test] [--json [FILE]]

The task is a packed npz with the 25 moving joints of 98 clips of the CMU motion capture database. Train it with

    --profile baseline --window_size 64 --window_stride 4 --total_iter 600    (global batch 32)
"""

import argparse
from pathlib import Path
from typing import Any

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

import numpy as np
import torch

from ds_rvqvae import MotionTokenizer
from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.gathering import Gatherer
from ds_rvqvae.model.vq import perplexity_of
from ds_rvqvae.runs.folder import read_profile
from ds_rvqvae.tokenizer.scores.evaluation import evaluate_split

WINDOWS = 2048


def use_of_codes(tokenizer: MotionTokenizer, data: MotionData) -> dict[str, list[float]]:
    """Returns the number of codes in use and their perplexity, by level, over evenly chosen training windows.

    The windows are changed as in training. Codes that only mirrored windows use are in use there, too.
    """
    size = data.config.window_size
    if size not in data.training_windows:
        size = max(data.training_windows)
    starts = data.training_windows[size]
    chosen = starts[np.linspace(0, len(starts) - 1, min(WINDOWS, len(starts))).round().astype(int)]
    windows = np.empty((len(chosen), size, data.in_features), np.float32)
    Gatherer(data, seed=0).gather(chosen, np.arange(len(chosen)), size, windows)
    codes = [tokenizer.model.encode(torch.from_numpy(part)) for part in np.array_split(windows, 32)]
    nb_code = tokenizer.model.config.nb_code
    counts = torch.stack([level.bincount(minlength=nb_code) for level in torch.cat(codes).flatten(0, 1).unbind(-1)])
    return {
        "codes_in_use": (counts > 0).sum(dim=1).tolist(),
        "perplexity_in_training": perplexity_of(counts.double()).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data_path")
    parser.add_argument("--splits", default="train,val,test", help="the splits to score (default: train,val,test)")
    add_json_flag(parser)
    args = parser.parse_args()
    splits = args.splits.split(",")
    if unknown := set(splits) - {"train", "val", "test", "all"}:
        parser.error(f"--splits: no split is called {', '.join(sorted(unknown))}")
    tokenizer = MotionTokenizer.from_pretrained(args.run / "tokenizer")
    config = read_profile(args.run).rvqvae.data
    config = config.with_values({"path": args.data_path or config.path})
    data = MotionData.open(config)
    data.use_normalisation(tokenizer.mean.numpy(), tokenizer.std.numpy())
    result: dict[str, Any] = {split: evaluate_split(tokenizer.model, data, split, "cpu") for split in splits}
    result |= use_of_codes(tokenizer, data)
    lines = []
    for split in splits:
        scores = result[split]
        if not scores["frames"]:
            lines.append(f"{split}: no clips")
            continue
        errors = f"L1 {scores['l1']:.3f}, velocity {scores['velocity_error']:.4f}"
        if scores["angle_error_deg"] is not None:
            errors = f"{scores['angle_error_deg']:.2f} deg, {errors}"
        lines.append(f"{split}: {errors} ({scores['clips']} clips, {scores['frames']:,} frames)")
    lines.append(f"codes in use by level: {' '.join(map(str, result['codes_in_use']))}")
    print_result(args, result, "\n".join(lines))


if __name__ == "__main__":
    run_program(main)
