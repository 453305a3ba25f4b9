"""Stores in which every value tells the version of the data that it belongs to."""

from pathlib import Path

import numpy as np

from ds_rvqvae.data.store.store import Store
from tests.data.motion import write_packed

CLIPS, COLUMNS = 12, 6


def write_version(file: Path, version: int) -> Path:
    """Writes clips whose values and lengths tell version, clip and row; versions differ in the number of clips."""
    lengths = tuple(_frames(version, clip) for clip in range(CLIPS + version % 3))
    motion = np.concatenate([_motion(version, clip) for clip in range(len(lengths))])
    names = np.array([f"c{clip}" for clip in range(len(lengths))])
    return write_packed(file, lengths, COLUMNS, motion=motion, clip_name=names)


def is_whole(store: Store, rng: np.random.Generator) -> int:
    """Returns the version of an opened store; fails if a randomly chosen clip belongs to another version."""
    version = int(store.clip("c0")[0, 0]) // 10_000
    own = sum(name.startswith("c") for name in store.clip_names)
    assert own == CLIPS + version % 3
    clip = int(rng.integers(own))
    assert np.array_equal(store.clip(f"c{clip}"), _motion(version, clip))
    report = store.report()
    assert (report["frames"], report["clips"]) == (store.num_frames, len(store.clip_names))
    return version


def _frames(version: int, clip: int) -> int:
    return 20 + (7 * clip + 5 * version) % 30


def _motion(version: int, clip: int) -> np.ndarray:
    rows, columns = np.arange(_frames(version, clip))[:, None], np.arange(COLUMNS)
    return (version * 10_000 + clip * 100 + rows + columns / 8).astype(np.float32)
