"""Score two tokenizers on the same held-out motion, side by side: a table and pictures.

    python examples/compare_two_tokenizers.py                       # the tokenizer of train_on_bvh.py, early and late
    python examples/compare_two_tokenizers.py runs/one runs/two --data_path /data/bvh --split test

A tokenizer is named by its run, a checkpoint of a run, its own folder, or `owner/name` on the Hugging Face hub.
"""

import argparse
import json
from pathlib import Path

from train_on_bvh import FOLDER, command, trained


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Score two tokenizers on the same held-out motion.")
    parser.add_argument("tokenizers", nargs="*", help="two of them (default: two checkpoints of train_on_bvh.py's run)")
    parser.add_argument("--data_path", type=Path, default=FOLDER / "store", help="motion (default: %(default)s)")
    parser.add_argument("--split", default="val", help="clips to score (default: %(default)s)")
    parser.add_argument("--pictures", type=Path, default=FOLDER / "comparison", help="folder (default: %(default)s)")
    args = parser.parse_args(argv)

    tokenizers = args.tokenizers
    if not tokenizers:
        checkpoints = (trained().parent / "checkpoints").glob("global_step*")
        by_step = sorted(checkpoints, key=lambda folder: int(folder.name.removeprefix("global_step")))
        tokenizers = [by_step[0], by_step[-1]]
    args.pictures.mkdir(parents=True, exist_ok=True)
    scores = args.pictures / "scores.json"
    where = ["--data_path", args.data_path, "--split", args.split, "--pictures", args.pictures]
    command("evaluate", *tokenizers, *where, "--json", scores)

    results = json.loads(scores.read_text())["tokenizers"]
    best = min(results, key=lambda result: result["angle_error_deg"])
    print(f"lowest angle error: {best['name']}, {best['angle_error_deg']:.2f} degrees")
    print(*sorted(args.pictures.glob("*.png")), sep="\n")


if __name__ == "__main__":
    main()
