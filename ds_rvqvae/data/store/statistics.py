"""Mean, standard deviation and range of many frames, in one pass."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512
"""Frames at a time, so that the float64 copy stays in the processor's cache."""


class RunningStatistics:
    """Mean and std per column in float64, and the smallest and largest values.

    Source: T. Chan, G. Golub, R. LeVeque, "Algorithms for Computing the Sample Variance", 1983.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.minimum: NDArray[np.float32] = np.full(columns, np.inf, np.float32)
        self.maximum: NDArray[np.float32] = np.full(columns, -np.inf, np.float32)
        self._mean: NDArray[np.float64] = np.zeros(columns)
        self._squares: NDArray[np.float64] = np.zeros(columns)

    def add(self, frames: NDArray[np.float32]) -> None:
        """Adds float32 frames `[frames, columns]`."""
        if not len(frames):
            return
        shift = frames[0].astype(np.float64)  # near the mean, so that the squares keep their precision
        sums, squares = np.zeros(len(shift)), np.zeros(len(shift))
        for start in range(0, len(frames), _BLOCK):
            block = frames[start : start + _BLOCK]
            np.minimum(self.minimum, block.min(axis=0), out=self.minimum)
            np.maximum(self.maximum, block.max(axis=0), out=self.maximum)
            difference = block - shift
            sums += difference.sum(axis=0)
            squares += np.einsum("ij,ij->j", difference, difference)
        mean = sums / len(frames)
        self._merge(len(frames), shift + mean, np.maximum(squares - sums * mean, 0))

    def merge(self, other: "RunningStatistics") -> None:
        """Adds all frames that another one has seen."""
        np.minimum(self.minimum, other.minimum, out=self.minimum)
        np.maximum(self.maximum, other.maximum, out=self.maximum)
        self._merge(other.count, other._mean, other._squares)

    def mean_and_std(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns mean and std, float32 `[columns]` each; the std is the population's (divided by the count)."""
        return self._mean.astype(np.float32), np.sqrt(self._squares / max(self.count, 1)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Returns all statistics as JSON objects, which keep every digit."""
        arrays: dict[str, NDArray[Any]] = {"mean": self._mean, "squares": self._squares}
        if self.count:
            arrays |= {"minimum": self.minimum, "maximum": self.maximum}
        return {"count": self.count, **{name: values.tolist() for name, values in arrays.items()}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunningStatistics":
        """Returns statistics from a result of `to_json`; raises ValueError, KeyError or TypeError for other values."""
        running = cls(len(values["mean"]))
        running.count = int(values["count"])
        running._mean, running._squares = np.array(values["mean"], float), np.array(values["squares"], float)
        if running.count:
            running.minimum = np.array(values["minimum"], np.float32)
            running.maximum = np.array(values["maximum"], np.float32)
        for found in (running._mean, running._squares, running.minimum, running.maximum):
            if found.shape != (len(values["mean"]),) or (running.count and not np.isfinite(found).all()):
                raise ValueError("statistics of other columns, or not finite")
        if running.count < 0:
            raise ValueError(f"statistics of {running.count} frames")
        return running

    def _merge(self, count: int, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        total = self.count + count
        if not count:
            return
        difference = mean - self._mean
        self._squares += squares + np.square(difference) * (self.count * count / total)
        self._mean += difference * (count / total)
        self.count = total
