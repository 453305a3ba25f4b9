"""Train a tokenizer on a folder of BVH files: prepare, read the report, train, score.

    python examples/train_on_bvh.py                                 # made motion, two minutes on two CPU cores
    python examples/train_on_bvh.py --bvh /data/bvh --folder runs/mine --steps 20000 --width 512 --depth 3 \
        --window_size 128 --batch_size 80 --mixed_precision bf16

Further flags go to `ds-rvqvae train`. It trains on GPUs 1 to 7 (`--include localhost:0`: on GPU 0 alone), and on one
CPU rank where there is no GPU. --folder gets the store and the run, in which the tokenizer is.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from made_motion import write_made_bvh

from ds_rvqvae.cli import main as ds_rvqvae

FOLDER = Path("runs/example")
SMALL = "--width=96 --depth=2 --window_size=64 --window_stride=8 --batch_size=32 --mixed_precision=no --log_every=20"
"""Settings for a first run of two minutes; the profile `best` alone is for hours of motion and for GPUs."""


def main(argv: list[str] | None = None) -> Path:
    """Run the example; return the folder of the tokenizer."""
    parser = argparse.ArgumentParser(description="Train a tokenizer on a folder of BVH files.", allow_abbrev=False)
    parser.add_argument("--bvh", type=Path, help="folder of BVH files (default: made motion)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of store and run (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (default: %(default)s)")
    args, more = parser.parse_known_args(argv)
    folder: Path = args.folder
    store, run = folder / "store", folder / "run"

    # 1. Prepare the motion. The report says which files and frames were left out, and why.
    command("prepare", args.bvh or write_made_bvh(folder / "bvh"), "--out", store)
    report = json.loads((store / "report.json").read_text())
    for entry in report["quarantine"][:5]:
        print(f"left out: {entry['file']}, frames {entry['frames']}: {entry['reason']}")
    command("data", "plot", store, "--out", folder / "store.png")

    # 2. Train. A run that was stopped goes on where it was, so that this script can be started again.
    if not torch.cuda.is_available():
        os.environ.update(DS_ACCELERATOR="cpu", LOCAL_SIZE="1")
        more = ["--include", "localhost:0", *more]
    lengths = [
        f"--total_iter={args.steps}",
        f"--warm_up_iter={args.steps // 20}",
        f"--save_every={args.steps // 3 or 1}",
    ]
    flags = ["--profile=best", *SMALL.split(), *lengths, *more]
    command("train", "--data_path", store, "--out", folder, "--name", "run", "--resume", *flags)

    # 3. Score the clips that were held out, and draw a few of them.
    command("evaluate", run, "--split", "val", "--json", folder / "scores.json")
    scores = json.loads((folder / "scores.json").read_text())
    print(f"angle error on held-out motion: {scores['angle_error_deg']:.2f} degrees")
    print(f"tokenizer: {run / 'tokenizer'}")
    return run / "tokenizer"


def trained() -> Path:
    """Return the tokenizer that this example leaves with its defaults; train it if there is none."""
    tokenizer = FOLDER / "run" / "tokenizer"
    return tokenizer if tokenizer.is_dir() else main([])


def command(*words: object) -> None:
    """Run a command of `ds-rvqvae` as a shell would; stop where it fails."""
    line = [str(word) for word in words]
    print("\n$ ds-rvqvae", *line, flush=True)
    if status := ds_rvqvae(line):
        raise SystemExit(status)


if __name__ == "__main__":
    main()
