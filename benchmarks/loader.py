"""Compares the speed of this project's loader, the lineage's loader, and a bare copy of the same bytes.

    python benchmarks/loader.py [--data PATH] [--train PROFILE] [--json [FILE]]

The lineage keeps windows as pickled arrays of axis-angle rotations in an LMDB. Its torch DataLoader converts them to 6D
and normalises them at every access. It is rebuilt here from that description, for the same windows of the same data,
and checked to give the same numbers. All are measured in turns in one run, for the 78 columns of `upper` and for all
columns, with windows of 128 frames in batches of 80 and two threads or workers each. Without `--data` it uses the BEAT2
clips in $DS_RVQVAE_TEST_DATA/beat2, or else demo motion, linked under new names until there are `--frames` frames.

It also compares windows from a store that is not in memory with plain reading of its files, and measures the fraction
of a training step on CPU that is spent waiting for data.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

import lmdb
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.cache import gather, will_need
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.formats.smpl.beat2 import CLIP_FOLDER
from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.data.order import BatchOrder
from ds_rvqvae.host import processor_name
from ds_rvqvae.motion.layout import Layout, rotation_columns
from ds_rvqvae.motion.rotations import matrix_to_axis_angle, rotation_6d_to_matrix
from ds_rvqvae.process.signals import leave_signals_to_parent

WINDOW, STRIDE, BATCH, WORKERS = 128, 64, 80, 2
ROUNDS, SECONDS, WARM = 5, 1.0, 6
"""Rounds, seconds per way and round, and first batches that do not count, as they may have been gathered before."""
MOST_WINDOWS = 4000
"""The largest number of windows in the LMDB; they are chosen evenly from more data."""
PARTS = {"upper": "upper", "all": "all columns"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="PATH", help="motion with joint rotations (default: see above)")
    parser.add_argument("--frames", type=int, default=150_000, help="frames of the default data (default: 150000)")
    parser.add_argument("--train", default="demo", metavar="PROFILE", help="profile of the short training; no: none")
    parser.add_argument("--train_steps", type=int, default=60, help="steps of that training (default: 60)")
    add_json_flag(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        path = args.data
        if path is None:
            path = link_motion(Path(folder) / "motion", args.frames)
            os.environ["DS_RVQVAE_CACHE"] = str(Path(folder) / "cache")  # is removed at the end
        result: dict[str, Any] = {"device": device(), "versions": versions(), "data": str(args.data or "default")}
        result["cold"] = in_own_process(cold, config_of(path, "all"))
        result["measured"] = [measure(config_of(path, part), Path(folder) / part) for part in PARTS]
        if args.train != "no":
            result["training"] = training(path, Path(folder) / "runs", args.train, args.train_steps)
    print_result(args, result, text(result))


def config_of(path: Path, part: str) -> DataConfig:
    return DataConfig(
        path=str(path), body_part=part, body_parts={"all": ["*"]}, window_size=WINDOW, window_stride=STRIDE
    )


def link_motion(folder: Path, frames: int) -> Path:
    """Makes the default data: clips linked under new names until there are `frames` frames."""
    source = Path(os.environ.get("DS_RVQVAE_TEST_DATA", "")) / "beat2"
    if not any(source.glob("*.npz")):
        source = write_demo_motion(folder.with_name("demo"), 12, 1800) / CLIP_FOLDER
    lengths = {file: len(np.load(file)["poses"]) for file in sorted(source.glob("*.npz"))}
    (folder / CLIP_FOLDER).mkdir(parents=True)
    for copy in range(-(-frames // sum(lengths.values()))):
        for file in lengths:
            (folder / CLIP_FOLDER / f"{file.stem}_{copy}.npz").symlink_to(file.absolute())
    return folder


def measure(config: DataConfig, folder: Path) -> dict[str, Any]:
    """Returns windows per second of each way, for one body part."""
    data = MotionData.open(config)
    began = time.perf_counter()
    order = BatchOrder.of(data, BATCH, seed=0)
    loader = BatchLoader(data, order, rank=0, world_size=1, num_workers=WORKERS)
    loader.next()
    first_batch = time.perf_counter() - began
    starts = data.window_starts()
    starts = starts[np.linspace(0, len(starts) - 1, min(len(starts), MOST_WINDOWS)).astype(np.int64)]
    write_lmdb(data, starts, folder)
    windows = LineageWindows(folder, len(starts), data)
    for index in (0, len(starts) // 2):
        if not np.allclose(windows[index], data.windows(starts[index : index + 1])[0], atol=1e-3):
            raise SystemExit("the lineage's window differs from ours: the two ways cannot be compared")
    lineage = endless(DataLoader(windows, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True, **KEPT_ALIVE))
    ways: dict[str, Callable[[], float]] = {
        "lineage": lambda: pace(lambda: next(lineage)),
        "ours": lambda: pace(loader.next),
        "bare": bare(data, starts),
    }
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):
        for name, way in ways.items():
            found = way()
            if round_:
                rounds[name].append(found)
    loader.close()
    ratios = [ours / theirs for ours, theirs in zip(rounds["ours"], rounds["lineage"], strict=True)]
    return {
        "part": PARTS[config.body_part],
        "columns": data.in_features,
        "frames": data.store.num_frames,
        "windows": sum(data.count_training_windows().values()),
        "first_batch_s": first_batch,
        "windows_per_s": {name: spread(values) for name, values in rounds.items()},
        "times_lineage": spread(ratios),
        "share_of_bare": spread([ours / most for ours, most in zip(rounds["ours"], rounds["bare"], strict=True)]),
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def pace(next_batch: Callable[[], Any]) -> float:
    """Returns windows per second, without the batches that were gathered before."""
    for _ in range(WARM):
        next_batch()
    began, batches = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        next_batch()
        batches += 1
    return batches * BATCH / (time.perf_counter() - began)


def bare(data: MotionData, starts: NDArray[np.int64]) -> Callable[[], float]:
    """Returns a way in which two threads copy windows from normalised frames in memory, each into one buffer."""
    frames = np.concatenate([data.normalised(segment) for segment in data.segments("train")])
    last = len(frames) - WINDOW

    def one(seed: int) -> float:
        buffer = np.empty((BATCH, WINDOW, data.in_features), np.float32)
        rng = np.random.default_rng(seed)
        chosen = [rng.integers(0, last, BATCH) for _ in range(len(starts) // BATCH + 1)]
        turn = iter(range(1 << 60))
        return pace(lambda: gather(frames, chosen[next(turn) % len(chosen)], WINDOW, buffer))

    def both() -> float:
        with ThreadPoolExecutor(WORKERS) as threads:
            return sum(threads.map(one, range(WORKERS)))

    return both


# The lineage's way.

KEPT_ALIVE: dict[str, Any] = {"persistent_workers": True}


def write_lmdb(data: MotionData, starts: NDArray[np.int64], folder: Path) -> None:
    """Writes each window, pickled under its number: its poses as axis-angle, and its other columns."""
    layout = data.store.layout
    columns = rotation_columns(layout)
    folder.mkdir()
    environment = lmdb.open(str(folder), map_size=1 << 40, sync=False)
    with environment.begin(write=True) as transaction:
        for index, start in enumerate(starts.tolist()):
            rows = data.store.read(start, start + WINDOW)
            poses = matrix_to_axis_angle(rotation_6d_to_matrix(rows[:, columns].astype(np.float64)))
            sample: dict[str, NDArray[np.float32]] = {"poses": poses.reshape(WINDOW, -1).astype(np.float32)}
            for part in layout:
                if part.kind != "rotation_6d":
                    sample[part.name] = rows[:, part.start : part.stop].copy()
            transaction.put(str(index).encode(), pickle.dumps(sample, protocol=pickle.HIGHEST_PROTOCOL))
    environment.close()


class LineageWindows(Dataset[torch.Tensor]):
    """Windows as the lineage reads them: float32 `[128, C]`, normalised."""

    def __init__(self, folder: Path, count: int, data: MotionData) -> None:
        self._folder, self._count = folder, count
        joints = [part.name for part in data.store.layout if part.kind == "rotation_6d"]
        self._joints = torch.tensor([joints.index(name) for name in rotations_of(data.layout)])
        self._others = [part.name for part in data.layout if part.kind != "rotation_6d"]
        self._mean, self._std = torch.from_numpy(data.mean), torch.from_numpy(data.std)
        self._environment: Any = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._environment is None:  # opened in each worker
            self._environment = lmdb.open(str(self._folder), readonly=True, lock=False)
        with self._environment.begin() as transaction:
            sample = pickle.loads(transaction.get(str(index).encode()))  # trusted: written by `write_lmdb` in this run
        poses = torch.from_numpy(sample["poses"]).reshape(WINDOW, -1, 3)[:, self._joints]
        motion = axis_angle_to_matrix(poses)[..., :2, :].reshape(WINDOW, -1)
        motion = torch.cat([motion, *(torch.from_numpy(sample[name]) for name in self._others)], dim=1)
        return (motion - self._mean) / self._std


def rotations_of(layout: Layout) -> list[str]:
    return [part.name for part in layout if part.kind == "rotation_6d"]


def axis_angle_to_matrix(axis_angle: torch.Tensor) -> torch.Tensor:
    """Converts `[..., 3]` to `[..., 3, 3]` by quaternions, as pytorch3d does."""
    angles = axis_angle.norm(dim=-1, keepdim=True)
    small = angles.abs() < 1e-6
    factor = torch.where(small, 0.5 - angles**2 / 48, torch.sin(angles / 2) / torch.where(small, 1, angles))
    real = torch.cos(angles / 2)[..., 0]
    i, j, k = torch.unbind(axis_angle * factor, -1)
    two = 2 / (real * real + i * i + j * j + k * k)
    rows = [1 - two * (j * j + k * k), two * (i * j - k * real), two * (i * k + j * real)]
    rows += [two * (i * j + k * real), 1 - two * (i * i + k * k), two * (j * k - i * real)]
    rows += [two * (i * k - j * real), two * (j * k + i * real), 1 - two * (i * i + j * j)]
    return torch.stack(rows, -1).reshape(*axis_angle.shape[:-1], 3, 3)


def endless(loader: DataLoader[torch.Tensor]) -> Iterator[torch.Tensor]:
    while True:
        yield from loader


# Data that are not in memory.


def in_own_process(function: Callable[[DataConfig], Any], config: DataConfig) -> Any:
    """Calls a function in a process of its own, because pages that a process has mapped stay in memory."""
    MotionData.open(config)
    with multiprocessing.get_context("spawn").Pool(1, leave_signals_to_parent) as pool:
        return pool.apply(function, (config,))


def cold(config: DataConfig) -> dict[str, Any]:
    """Returns bytes per second of plain reading, and of windows in random order without overlap, by two threads."""
    config = config.model_copy(update={"window_stride": WINDOW})
    store = MotionData.open(config).store
    files = [store.folder / shard.file for shard in store.shards]
    frame_bytes = store.nbytes / store.num_frames
    plain, windows, from_disk = [], [], []
    for _ in range(3):
        drop(files)
        began = time.perf_counter()
        read_bytes = sum(map(read_through, files))
        plain.append(read_bytes / (time.perf_counter() - began))
        frames, seconds, fetched = cold_windows(config, files)
        windows.append(frames * frame_bytes / seconds)
        from_disk.append(fetched / (frames * frame_bytes))
    return {
        "bytes": store.nbytes,
        "plain_bytes_per_s": spread(plain),
        "windows_bytes_per_s": spread(windows),
        "windows_per_s": spread([pace / (WINDOW * frame_bytes) for pace in windows]),
        "share_of_plain": spread([ours / theirs for ours, theirs in zip(windows, plain, strict=True)]),
        "read_from_disk": spread(from_disk),
    }


def cold_windows(config: DataConfig, files: list[Path]) -> tuple[int, float, int]:
    """Returns the frames of all windows, the seconds for reading them, and the bytes read from the disk.

    It opens the data anew, because mapped pages cannot be dropped from memory.
    """
    data = MotionData.open(config)
    starts = np.random.default_rng(0).permutation(data.window_starts())
    batches = np.array_split(starts, max(len(starts) // BATCH, 1))

    def read(batch: NDArray[np.int64]) -> None:
        will_need(data.store, batch, WINDOW)
        data.normalise(data.raw_windows(batch))

    drop(files)
    before, began = bytes_from_disk(), time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as threads:
        list(threads.map(read, batches))
    return len(starts) * WINDOW, time.perf_counter() - began, bytes_from_disk() - before


def drop(files: list[Path]) -> None:
    """Drops the pages of files from memory, except those that a process has mapped."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_through(file: Path) -> int:
    buffer, total = bytearray(4 << 20), 0
    with file.open("rb", buffering=0) as content:
        while count := content.readinto(buffer):
            total += count
    return total


def bytes_from_disk() -> int:
    """Returns the bytes that the disk has read for this process."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def training(path: Path, out: Path, profile: str, steps: int) -> dict[str, Any]:
    """Runs a short training on CPU, and returns the fraction of its time in which it waited for data."""
    every = max(1, steps // 6)
    command = [sys.executable, "-m", "ds_rvqvae.train", "--profile", profile, "--data_path", str(path)]
    command += ["--out", str(out), "--name", "run", "--total_iter", str(steps), "--log_every", str(every)]
    command += ["--eval_every", "1000000", "--save_every", "1000000"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the training ended with {done.returncode}: {done.stderr[-500:]}")
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    waits = [line["data_wait"] for line in lines[1:]]  # it always waits for the first batches
    return {"profile": profile, "steps": steps, "data_wait": spread(waits), "samples_per_s": lines[-1]["samples_per_s"]}


def device() -> str:
    return f"{len(os.sched_getaffinity(0))} cores of {processor_name()}"


def versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "numpy": np.__version__, "lmdb": lmdb.__version__}
    return {"python": platform.python_version(), **found}


def text(result: dict[str, Any]) -> str:
    lines = [f"{result['device']}, " + ", ".join(f"{name} {version}" for name, version in result["versions"].items())]
    for row in result["measured"]:
        lines.append(
            f"{row['part']}: {row['columns']} columns, {row['windows']:,} windows of {row['frames']:,} frames; "
            f"first batch after {row['first_batch_s']:.2f} s"
        )
        for name, values in row["windows_per_s"].items():
            lines.append(f"  {name:8} {between(values, ',.0f')} windows per second")
        lines.append(
            f"  {between(row['times_lineage'], '.1f')} times the lineage's speed, "
            f"{between(row['share_of_bare'], '.2f')} of the bare copy's"
        )
    cold = result["cold"]
    gigabytes = {name: {key: value / 1e9 for key, value in cold[name].items()} for name in cold if "bytes_per" in name}
    lines.append(
        f"not in memory ({cold['bytes'] / 1e9:.2f} GB): plain reading {between(gigabytes['plain_bytes_per_s'], '.2f')} "
        f"GB/s, windows {between(gigabytes['windows_bytes_per_s'], '.2f')} GB/s: "
        f"{between(cold['share_of_plain'], '.2f')} of it (from disk: {between(cold['read_from_disk'], '.2f')})"
    )
    if "training" in result:
        run = result["training"]
        lines.append(
            f"training, {run['profile']}, {run['samples_per_s']:.1f} windows per second: waits "
            f"{between({key: 100 * value for key, value in run['data_wait'].items()}, '.2f')} % of its time for data"
        )
    return "\n".join(lines)


def between(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['least']:{form}} to {values['most']:{form}})"


if __name__ == "__main__":
    run_program(main)
