"""Measures how fast motion is packed, and what limits the speed, on many hours of BEAT2 files that it makes.

    python benchmarks/prepare.py FOLDER [--hours 50] [--workers N] [--kills 10] [--json [FILE]]

FOLDER gets the motion (once; about 160 MB per hour) and the store (about 190 MB per hour). `ds-rvqvae prepare` runs as
users run it, while the total memory of its processes is watched. On the same files, in one process, each piece of the
work is also timed by itself: reading, conversion to 6D, rules, statistics, writing with a checksum. The rest of the
total time is Python and the management of processes. The disk's own speed is measured by plain reading and writing.
Last comes the time to check by content that no file has changed, as each start of training does.

`--kills N` then packs the same motion once more, killed N times at random moments, and compares the two stores.
"""

import argparse
import contextlib
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

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

import numpy as np
import psutil

from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.formats.base import load_npz
from ds_rvqvae.data.formats.npz import FPS_KEYS
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.formats.smpl.beat2 import CLIP_FOLDER, MOTION_KEYS, rotations_and_positions
from ds_rvqvae.data.store.rules import cut_take
from ds_rvqvae.data.store.shards import ShardFacts
from ds_rvqvae.files import contents_of, sha256_of, whole_file

FRAMES, FPS, BASES = 1800, 30, 24
ROUNDS, SAMPLE = 3, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--hours", type=float, default=50.0, help="hours of motion (default: 50)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kills", type=int, default=0, metavar="N")
    add_json_flag(parser)
    args = parser.parse_args()
    motion = args.folder / "motion"
    write_motion(motion, round(args.hours * 3600 * FPS / FRAMES))
    result = whole(motion, args.folder / "store", args.workers)
    result["parts_us_a_frame"] = parts(motion, args.folder)
    bare = sum(result["parts_us_a_frame"].values())
    result["bare_us_a_frame"] = bare
    result["whole_us_a_frame"] = result["packing"]["seconds"] * result["packing"]["workers"] * 1e6 / result["frames"]
    result["share_of_bare_work"] = bare / result["whole_us_a_frame"]
    result["read_bytes"], result["written_bytes"] = size_of(motion), size_of(args.folder / "store")
    result["disk_bytes_per_s"] = disk(motion, args.folder)
    result["check_s"] = check(motion)
    if args.kills:
        result["killed"] = killed(motion, args.folder, args.workers, args.kills, result["packing"]["seconds"])
    print_result(args, result, text(result))


def write_motion(folder: Path, clips: int) -> None:
    """Writes clips of one minute: demo motion, each with its own start and its own small rotation of every joint."""
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
    """Runs `ds-rvqvae prepare`; returns its results and the peak memory of its processes together."""
    shutil.rmtree(store, ignore_errors=True)
    report = store.with_name("prepared.json")
    process = psutil.Popen([*command(motion, store, workers), "--json", str(report)], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of(process))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"prepare ended with {process.returncode}")
    found = json.loads(report.read_text(encoding="utf-8"))
    return {key: found[key] for key in ("clips", "frames", "hours", "packing")} | {"peak_memory_bytes": peak}


def command(motion: Path, store: Path, workers: int) -> list[str]:
    program = [sys.executable, "-m", "ds_rvqvae.cli", "prepare", str(motion), "--out", str(store)]
    return [*program, "--workers", str(workers)]


def killed(motion: Path, folder: Path, workers: int, kills: int, seconds: float) -> dict[str, Any]:
    """Packs again while killing at random moments, in turns all processes or only the first one."""
    store = folder / "killed"
    shutil.rmtree(store, ignore_errors=True)
    rng = np.random.default_rng()
    moments = []
    for index in range(kills):
        began = time.perf_counter()
        process = psutil.Popen(command(motion, store, workers), stdout=subprocess.DEVNULL)
        # Each start continues the packing, so together they last about as long as packing without kills.
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(float(rng.uniform(1, 2 * seconds / kills)))
        for each in [process, *(process.children(recursive=True) if process.is_running() and index % 2 else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        moments.append(time.perf_counter() - began)
    subprocess.run(command(motion, store, workers), stdout=subprocess.DEVNULL, check=True)
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return {"after_s": moments, "equal": hashes(store) == hashes(folder / "store"), "left_behind": left}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def hashes(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_of(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def disk(motion: Path, folder: Path) -> dict[str, float]:
    """Returns the disk's bytes per second, for reading files that are not in memory and for writing with a sync."""
    files = sorted((motion / CLIP_FOLDER).glob("*.npz"))[: 10 * SAMPLE]
    drop_from_memory(files)
    began = time.perf_counter()
    size = sum(len(file.read_bytes()) for file in files)
    read = size / (time.perf_counter() - began)
    block, file = np.random.default_rng(0).bytes(64 << 20), folder / "written"
    began = time.perf_counter()
    with file.open("wb") as content:
        for _ in range(16):
            content.write(block)
        content.flush()
        os.fsync(content.fileno())
    written = 16 * len(block) / (time.perf_counter() - began)
    file.unlink()
    return {"read": read, "write": written}


def check(motion: Path) -> dict[str, float]:
    """Returns the seconds to read and hash all files, from the disk, and then from memory."""
    files = sorted((motion / CLIP_FOLDER).glob("*.npz"))
    drop_from_memory(files)
    seconds = {}
    for place in ("disk", "memory"):
        began = time.perf_counter()
        contents_of(files)
        seconds[place] = time.perf_counter() - began
    return seconds


def drop_from_memory(files: list[Path]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def memory_of(process: psutil.Process) -> int:
    """Returns resident bytes of a process and its children; shared pages count once."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:  # gone
            continue
    return total


def parts(motion: Path, folder: Path) -> dict[str, float]:
    """Returns microseconds per frame for each piece of the work, medians over rounds."""
    config = DataConfig(path=str(motion))
    reader = open_reader(motion, config)
    names = reader.clip_names()[:SAMPLE]
    files = [motion / CLIP_FOLDER / f"{name}.npz" for name in names]
    arrays = [load_npz(file, MOTION_KEYS, FPS_KEYS) for file in files]
    takes = [reader.take(name) for name in names]
    clips = [clip for take in takes for clip in cut_take(reader, take, config.rules).clips]
    facts = ShardFacts(clips[0].motion.shape[1])

    def add_up() -> None:
        for clip in clips:
            facts.add(clip)

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
        "statistics": add_up,
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
        f"{packing['frames_per_s']:,.0f} frames per second, "
        f"{packing['times_real_time']:,.0f} x real time, processors busy {100 * packing['processor_share']:.0f} %",
        f"peak memory of all processes {result['peak_memory_bytes'] / 2**20:,.0f} MiB",
        f"a frame costs {result['whole_us_a_frame']:.1f} us of a process; the pieces of the work by themselves:",
    ]
    lines += [f"  {name:<24}{cost:6.2f} us" for name, cost in result["parts_us_a_frame"].items()]
    lines.append(
        f"  together {result['bare_us_a_frame']:.1f} us, {100 * result['share_of_bare_work']:.0f} % of the total"
    )
    pace = {name: value / 1e6 for name, value in result["disk_bytes_per_s"].items()}
    moved = {"read": result["read_bytes"] / 1e6, "write": result["written_bytes"] / 1e6}
    least = sum(moved[name] / pace[name] for name in pace)
    lines.append(
        f"disk alone: reads {pace['read']:,.0f} MB/s, writes {pace['write']:,.0f} MB/s, so reading "
        f"{moved['read']:,.0f} MB and writing {moved['write']:,.0f} MB takes {least:.0f} s"
    )
    seconds, gigabytes = result["check_s"], result["read_bytes"] / 1e9
    lines.append(
        f"checking that none of {gigabytes:.1f} GB of files has changed: {seconds['disk']:.1f} s from the disk, "
        f"{seconds['memory']:.1f} s from memory"
    )
    if "killed" in result:
        found = result["killed"]
        moments = ", ".join(f"{after:.0f}" for after in found["after_s"])
        verdict = "equal byte for byte" if found["equal"] else "NOT EQUAL"
        lines.append(
            f"killed after {moments} s, then run to the end: {verdict}; "
            f"left behind: {', '.join(found['left_behind']) or 'nothing'}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
