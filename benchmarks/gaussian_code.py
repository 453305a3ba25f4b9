"""A reference for tokenizers: the errors of the best linear code of a Gaussian source at the same rate, on real motion.

    python benchmarks/gaussian_code.py --data_path MOTION [--bits_per_second 450] [--frames 4 8 16] [--json [FILE]]

Motion is cut into blocks of `--frames` frames. Mean and covariance of the training split's blocks, normalised as in
training, give the principal components. The bits of a block are distributed over these as is best for a Gaussian and
squared errors (reverse water-filling: Cover and Thomas, Elements of Information Theory, 10.3). A component with a
variance v above the water level D keeps an error of D; the others are left out. A kept component is replaced by
(1 - D / v) of itself plus noise of variance D (1 - D / v), as the best possible code of infinitely many blocks does.

This is not a limit: motion is not Gaussian, and a non-linear code can do better. The row with as many frames as one
code covers is the score of a tokenizer that uses nothing but covariance, and no information from neighbouring codes.
Longer blocks show how much neighbouring codes could help.
"""

import argparse
from typing import Any

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.motion.kinematics import angle_between
from ds_rvqvae.motion.layout import rotation_columns

SPLITS = ("train", "val", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", required=True)
    parser.add_argument(
        "--bits_per_second", type=float, default=450.0, help="(default: 450, six codes of 1,024 at 7.5 Hz)"
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16], help="per block (default: 4 8 16)")
    add_json_flag(parser)
    args = parser.parse_args()
    data = MotionData.open(DataConfig(path=args.data_path))
    rows = [gaussian_code(data, frames, args.bits_per_second * frames / data.fps) for frames in args.frames]
    lines = ["frames  bits  components used   " + "   ".join(f"{split}: L1  angle, deg" for split in SPLITS)]
    for row in rows:
        scores = "   ".join(
            f"{row[split]['l1']:10.4f}  {row[split]['angle_error_deg'] or float('nan'):9.2f}" for split in SPLITS
        )
        lines.append(
            f"{row['frames']:6d}  {row['bits']:4.0f}  {row['components']:6d} of {row['columns']:5d}   {scores}"
        )
    print_result(args, rows, "\n".join(lines))


def gaussian_code(data: MotionData, frames: int, bits: float) -> dict[str, Any]:
    """Returns the errors, by split, of the best Gaussian code of blocks of `frames` frames in `bits` bits."""
    blocks = {split: blocks_of(data, split, frames, step=frames) for split in SPLITS}
    # Blocks start at every frame, because the covariance of few blocks misses some directions.
    training = blocks_of(data, "train", frames, step=1)
    mean = training.mean(axis=0)
    variances, components = np.linalg.eigh(np.cov(training, rowvar=False))
    variances = np.maximum(variances, 1e-12)
    level = water_level(variances, bits)
    kept = np.where(variances > level, 1 - level / variances, 0.0)
    noise = np.random.default_rng(0)
    counts = {"columns": len(variances), "components": int((variances > level).sum())}
    result: dict[str, Any] = {"frames": frames, "bits": bits, **counts}
    for split, truth in blocks.items():
        values = (truth - mean) @ components
        values = kept * values + np.sqrt(level * kept) * noise.standard_normal(values.shape)
        result[split] = errors(data, truth, values @ components.T + mean)
    return result


def blocks_of(data: MotionData, split: str, frames: int, step: int) -> NDArray[np.float64]:
    """Returns normalised blocks `[blocks, frames * C]` of a split's clips, fp64, one every `step` frames."""
    clips = [data.normalised(segment).astype(np.float64) for segment in data.segments(split)]
    views = [sliding_window_view(clip, frames, axis=0)[::step] for clip in clips if len(clip) >= frames]
    return np.concatenate([view.transpose(0, 2, 1).reshape(len(view), -1) for view in views])


def water_level(variances: NDArray[np.float64], bits: float) -> float:
    """Returns the water level for a rate of `bits`: the error that every component above it keeps."""
    low, high = variances.min(), variances.max()
    for _ in range(100):
        level = np.sqrt(low * high)
        rate = 0.5 * np.log2(np.maximum(variances / level, 1)).sum()
        low, high = (level, high) if rate > bits else (low, level)
    return float(level)


def errors(data: MotionData, truth: NDArray[np.float64], found: NDArray[np.float64]) -> dict[str, float | None]:
    """Returns the blocks' L1 error in normalised units, and their angle error in degrees."""
    l1 = float(np.abs(found - truth).mean())
    rotations = rotation_columns(data.layout)
    poses = [
        torch.from_numpy((blocks.reshape(-1, data.in_features) * data.std + data.mean)[:, rotations])
        for blocks in (found, truth)
    ]
    return {"l1": l1, "angle_error_deg": float(angle_between(*poses).mean()) if len(rotations) else None}


if __name__ == "__main__":
    run_program(main)
