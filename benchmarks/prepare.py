"""How fast motion is packed, and by what it is bounded: many hours of BEAT2 files, made here.

    python benchmarks/prepare.py FOLDER [--hours 50] [--workers N] [--json [FILE]]

FOLDER gets the motion (once; about 160 MB an hour) and the store (about 190 MB an hour). `ds-rvqvae prepare` runs as
users run it, while the memory of all its processes together is watched. Beside it, in one process and on the same
files, each part of the work is timed by itself: reading, conversion to 6D, rules, statistics, writing with a checksum.
What their sum leaves of the whole is Python and processes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ds_rvqvae.checksum import sha256_of
from ds_rvqvae.data.beat2 import CLIP_FOLDER, FPS_KEYS, MOTION_KEYS, rotations_and_positions
from ds_rvqvae.data.clips import load_npz
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.files import whole_file
from ds_rvqvae.data.readers import open_reader
from ds_rvqvae.data.rules import cut_take
from ds_rvqvae.data.shards import ShardFacts
from ds_rvqvae.profile import DataConfig

FRAMES, FPS, BASES = 1800, 30, 24
ROUNDS, SAMPLE = 3, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--hours", type=float, default=50.0, help="hours of motion (default: 50)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    motion = args.folder / "motion"
    write_motion(motion, round(args.hours * 3600 * FPS / FRAMES))
    result = whole(motion, args.folder / "store", args.workers)
    result["parts_us_a_frame"] = parts(motion, args.folder)
    bare = sum(result["parts_us_a_frame"].values())
    result["bare_us_a_frame"] = bare
    result["whole_us_a_frame"] = result["packing"]["seconds"] * result["packing"]["workers"] * 1e6 / result["frames"]
    result["share_of_bare_work"] = bare / result["whole_us_a_frame"]
    if args.json != "-":
        print(text(result))
    if args.json:
        content = json.dumps(result, indent=2)
        print(content) if args.json == "-" else Path(args.json).write_text(content + "\n", encoding="utf-8")


def write_motion(folder: Path, clips: int) -> None:
    """Clips of one minute: demo motion, each begun elsewhere and turned by its own small angles."""
    if len(list((folder / CLIP_FOLDER).glob("*.npz"))) == clips:
        return
    shutil.rmtree(folder, ignore_errors=True)
    bases = folder / "bases"
    write_demo_motion(bases, BASES, FRAMES)
    arrays = [dict(np.load(file)) for file in sorted((bases / CLIP_FOLDER).glob("*.npz"))]
    shutil.rmtree(bases)
    (folder / CLIP_FOLDER).mkdir(parents=True, exist_ok=True)
    for index in range(clips):
        rng = np.random.default_rng(index)
        clip = dict(arrays[index % len(arrays)])
        turn = rng.normal(size=165).astype(np.float32) * np.float32(0.02)
        clip["poses"] = np.roll(clip["poses"], int(rng.integers(FRAMES)), axis=0) + turn
        np.savez(folder / CLIP_FOLDER / f"{index % 30 + 1}_speaker_0_{index}_{index}.npz", **clip)


def whole(motion: Path, store: Path, workers: int) -> dict[str, Any]:
    """`ds-rvqvae prepare`, and the most memory that its processes had at a time."""
    shutil.rmtree(store, ignore_errors=True)
    report = store.with_name("prepared.json")
    command = [sys.executable, "-m", "ds_rvqvae.cli", "prepare", str(motion), "--out", str(store)]
    process = psutil.Popen([*command, "--workers", str(workers), "--json", str(report)], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of(process))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"prepare ended with {process.returncode}")
    found = json.loads(report.read_text(encoding="utf-8"))
    return {key: found[key] for key in ("clips", "frames", "hours", "packing")} | {"peak_memory_bytes": peak}


def memory_of(process: psutil.Process) -> int:
    """Resident bytes of a process and its children, pages that they share counted once."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:  # gone
            continue
    return total


def parts(motion: Path, folder: Path) -> dict[str, float]:
    """Microseconds a frame of each part of the work, medians over rounds."""
    config = DataConfig(path=str(motion))
    reader = open_reader(motion, config)
    names = reader.clip_names()[:SAMPLE]
    files = [motion / CLIP_FOLDER / f"{name}.npz" for name in names]
    arrays = [load_npz(file, MOTION_KEYS, FPS_KEYS) for file in files]
    takes = [reader.take(name) for name in names]
    clips = [clip for take in takes for clip in cut_take(reader, take, config.rules).clips]
    facts = ShardFacts(clips[0].motion.shape[1])

    def write() -> None:
        file = folder / "written.npy"
        with whole_file(file) as content:
            for clip in clips:
                content.write(clip.motion.data)
            content.flush()
            os.fsync(content.fileno())
        sha256_of(file)
        file.unlink()

    work: dict[str, Callable[[], Any]] = {
        "read": lambda: [load_npz(file, MOTION_KEYS, FPS_KEYS) for file in files],
        "conversion": lambda: [rotations_and_positions(each) for each in arrays],
        "rules and features": lambda: [cut_take(reader, take, config.rules) for take in takes],
        "statistics": lambda: [facts.add(clip) for clip in clips],
        "write, sync, checksum": write,
    }
    frames = sum(len(take.motion) for take in takes)
    return {name: median_of(function) * 1e6 / frames for name, function in work.items()}


def median_of(function: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def text(result: dict[str, Any]) -> str:
    packing = result["packing"]
    lines = [
        f"{result['clips']:,} clips, {result['frames']:,} frames, {result['hours']:.1f} hours:",
        f"{packing['seconds']:.0f} s by {packing['workers']} processes, "
        f"{packing['frames_per_s']:,.0f} frames a second, "
        f"{packing['times_real_time']:,.0f} x real time, processors busy {100 * packing['processor_share']:.0f} %",
        f"peak memory of all processes {result['peak_memory_bytes'] / 2**20:,.0f} MiB",
        f"a frame costs {result['whole_us_a_frame']:.1f} us of a process; its parts by themselves:",
    ]
    lines += [f"  {name:<24}{cost:6.2f} us" for name, cost in result["parts_us_a_frame"].items()]
    lines.append(
        f"  together {result['bare_us_a_frame']:.1f} us, {100 * result['share_of_bare_work']:.0f} % of the whole"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
