"""Small motion files for tests."""

from pathlib import Path

import numpy as np


def beat2_arrays(frames: int = 60, fps: int = 30, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns one clip with BEAT2's keys and dtypes."""
    rng = np.random.default_rng(seed)
    return {
        "betas": np.zeros(300, np.float32),
        "poses": np.cumsum(rng.normal(size=(frames, 165)) * 0.02, axis=0).astype(np.float32),
        "expressions": rng.normal(size=(frames, 100)),
        "trans": np.array([0.2, 1.3, -0.4]) + np.cumsum(rng.normal(size=(frames, 3)) * 0.01, axis=0),
        "model": np.array("smplx2020"),
        "gender": np.array("neutral"),
        "mocap_frame_rate": np.array(fps, np.int32),
    }


def write_beat2(file: Path, frames: int = 60, seed: int = 0, **changes: np.ndarray | None) -> Path:
    """Writes one clip; a change to None drops the key."""
    arrays = {**beat2_arrays(frames, seed=seed), **changes}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **{key: values for key, values in arrays.items() if values is not None})
    return file


def write_beat2_folder(folder: Path, names: tuple[str, ...], frames: int = 60) -> Path:
    for seed, name in enumerate(names):
        write_beat2(folder / f"{name}.npz", frames, seed)
    return folder


def packed_arrays(lengths: tuple[int, ...] = (40, 30, 50), width: int = 5) -> dict[str, np.ndarray]:
    """Returns a packed npz without split and layout; each value is its row number plus a hundredth of its column."""
    rows, columns = np.arange(sum(lengths)), np.arange(width)
    return {
        "motion": (rows[:, None] + columns / 100).astype(np.float32),
        "clip_start": np.cumsum([0, *lengths]),
        "clip_name": np.array([f"clip{index}" for index in range(len(lengths))]),
        "fps": np.array(30.0),
    }


def write_packed(file: Path, lengths: tuple[int, ...] = (40, 30, 50), width: int = 5, **changes) -> Path:
    arrays = {**packed_arrays(lengths, width), **changes}
    np.savez(file, **{key: values for key, values in arrays.items() if values is not None})
    return file


def write_matrices(folder: Path, names: tuple[str, ...], width: int, frames: int = 40, suffix: str = ".npy") -> Path:
    """Writes one matrix of random values per name, in the folders that the names contain."""
    for seed, name in enumerate(names):
        file = folder / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.random.default_rng(seed).normal(size=(frames, width)).astype(np.float32))
    return folder


def write_lists(folder: Path, **names: str) -> Path:
    """Writes lists such as `train.txt`, with one line per clip; names are separated by blanks."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, listed in names.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed.split()))
    return folder


def write_statistics(folder: Path, width: int, mean: str = "Mean.npy", std: str = "Std.npy") -> Path:
    """Writes a mean and a std that no motion of `write_matrices` has."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / mean, np.arange(width, dtype=np.float32))
    np.save(folder / std, np.arange(1, width + 1, dtype=np.float32))
    return folder
