"""Writes the CMU clips of `motion_6d.npz` as a packed npz split by subject: the motion of a study of tokenizers.

    python benchmarks/cmu_by_subject.py motion_6d.npz OUT.npz

The split is the file's own: train subjects 01 02 05 08 09; val 03 07; test 06. The columns are the rotations of the
moving joints, those with a standard deviation over 1e-3 in the training clips.
"""

import argparse
import json
from pathlib import Path

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

import numpy as np

_MOVES = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with np.load(args.source) as source:
        motion, start, split = source["motion"], source["clip_start"], source["split"]
        names, clip_name, fps = source["joint_names"].tolist(), source["clip_name"], float(source["fps"])
    training = np.repeat(split == "train", np.diff(start))
    deviation = motion[training].std(axis=0)
    moving = [joint for joint in range(len(names)) if deviation[6 * joint : 6 * joint + 6].max() > _MOVES]
    columns = np.concatenate([np.arange(6 * joint, 6 * joint + 6) for joint in moving])
    layout = [
        {"name": names[joint], "kind": "rotation_6d", "columns": [6 * place, 6 * place + 6]}
        for place, joint in enumerate(moving)
    ]
    np.savez(
        args.out,
        motion=motion[:, columns],
        clip_start=start,
        clip_name=np.array([name.removeprefix("bvh/").removesuffix(".bvh") for name in clip_name.tolist()]),
        split=split,
        fps=fps,
        layout=json.dumps(layout),
    )
    print(f"{args.out}: {len(motion):,} frames, {len(moving)} joints, {len(split)} clips")


if __name__ == "__main__":
    run_program(main)
